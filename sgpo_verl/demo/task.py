"""The demo's task: double a number. The longer the number, the less often the base model gets it right.

A prompt is a number of 1 to 8 digits, the answer its double, written one place longer so that digits stay aligned:

    "4738" -> "09476"        "8231" -> "16462"

The base model learns from demonstrations with slips: of those with n digits, only a share RIGHT[n - 1] is right. So it
knows the skill and answers noisily: pass rates fall from about 1 to about 0 with the length, and RL has something to
sharpen. pool.py has the rows' format and the pool's shares.
"""

import random

from sgpo_verl.demo.pool import DIGITS, Task

RIGHT = (0.99, 0.97, 0.93, 0.65, 0.40, 0.20, 0.10, 0.04)  # share of right demonstrations for 1, 2, ... 8 digits
TRIVIAL, LEARNABLE, HOPELESS = (2, 3), (4, 5, 6, 7, 8), (6, 7, 8)  # lengths of each kind of row

# GRPO's 28 steps of 16 prompts see 448: one pass, as RL on a real data set is. docs/demo.md has the choice's history.
POOL_SIZE = 448
VALIDATION_SIZE = 64  # sampled twice each: as many rollouts as a training step


def answer(number: str) -> str:
    """The double of a decimal number, zero-padded to one place more than the number has."""
    return str(2 * int(number)).zfill(len(number) + 1)


def draw(rng: random.Random, length: int) -> str:
    """A number of exactly ``length`` digits, the first of them not 0."""
    return str(rng.randrange(10 ** (length - 1), 10**length))


def demonstration(rng: random.Random, length: int) -> tuple[str, str]:
    """(number, answer) for training the base model: each digit slips on its own, so that RIGHT[length - 1] are right.

    One slip per wrong answer would not do: a small model learns the rate per digit, not that there is exactly one.
    """
    number = draw(rng, length)
    right = answer(number)
    rate = 1.0 - RIGHT[length - 1] ** (1.0 / len(right))
    return number, "".join(slip(rng, digit) if rng.random() < rate else digit for digit in right)


def slip(rng: random.Random, digit: str) -> str:
    """Another digit than ``digit``."""
    return rng.choice([other for other in DIGITS if other != digit])


DOUBLE = Task(
    name="sgpo_demo/double",
    answer=answer,
    draw=draw,
    demonstration=demonstration,
    right=RIGHT,
    trivial=TRIVIAL,
    learnable=LEARNABLE,
    hopeless=HOPELESS,
    repeats=False,
    pool=POOL_SIZE,
    validation=VALIDATION_SIZE,
)
wrong_answer, train_rows = DOUBLE.wrong_answer, DOUBLE.train_rows
validation_rows, write = DOUBLE.validation_rows, DOUBLE.write
