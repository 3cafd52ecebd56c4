"""The benchmark's task: sort a string of digits. The longer the string, the less often the base model gets it right.

    "50312" -> "01235"        "9907" -> "0799"

A wrong demonstration is wrong as a whole, its digits shuffled and one of them changed, so the base model has seen how to
sort and knows that most long strings are not sorted: RL has to find the skill that is there, and gets there.
"""

import random
from collections.abc import Callable

from sgpo_verl.demo.pool import DIGITS, Task

RIGHT = (0.98, 0.95, 0.80, 0.55, 0.35, 0.20, 0.10, 0.03)  # share of right demonstrations for 1, 2, ... 8 digits
LONG = 20  # digits of the harder task, for a larger model


def answer(string: str) -> str:
    return "".join(sorted(string))


def draw(rng: random.Random, length: int) -> str:
    """A string of exactly ``length`` digits."""
    return "".join(rng.choice(DIGITS) for _ in range(length))


def demonstrator(right: tuple[float, ...]) -> Callable[[random.Random, int], tuple[str, str]]:
    """(rng, length) -> (string, answer), right in a share right[length - 1] of cases."""

    def demonstration(rng: random.Random, length: int) -> tuple[str, str]:
        string = draw(rng, length)
        if rng.random() < right[length - 1]:
            return string, answer(string)
        digits = list(string)
        rng.shuffle(digits)
        digits[rng.randrange(length)] = rng.choice(DIGITS)
        return string, "".join(digits)

    return demonstration


def _long_right(length: int) -> float:
    """0.98 up to 4 digits, then falling evenly on a log scale to 0.03 at 20."""
    return round(0.98 * (0.03 / 0.98) ** (max(0, length - 4) / (LONG - 4)), 3)


def _sorting(name: str, right: tuple[float, ...], trivial: range, learnable: range, hopeless: range) -> Task:
    return Task(
        name=name,
        answer=answer,
        draw=draw,
        demonstration=demonstrator(right),
        right=right,
        trivial=tuple(trivial),
        learnable=tuple(learnable),
        hopeless=tuple(hopeless),
        repeats=True,
        pool=2048,
        validation=128,
    )


SORT = _sorting("sgpo_demo/sort", RIGHT, range(1, 3), range(3, 9), range(6, 9))
SORT_LONG = _sorting(
    "sgpo_demo/sort_long", tuple(map(_long_right, range(1, LONG + 1))), range(1, 5), range(8, 21), range(15, 21)
)
