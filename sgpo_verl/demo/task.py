"""The demo's task: double a number. The longer the number, the less often the base model gets it right.

A prompt is a number of 1 to 8 digits, the answer its double, written one place longer so that digits stay aligned:

    "4738" -> "09476"        "8231" -> "16462"

The base model learns from demonstrations with slips: of those with n digits, only a share RIGHT[n - 1] is right. So it
knows the skill and answers noisily: pass rates fall from about 1 to about 0 with the length, and RL has something to
sharpen. The training pool is what real data sets are like: 35% trivial, 35% hopeless (their ground truth is wrong), 30%
worth learning. One row of data/train.parquet:

    {"data_source": "sgpo_demo/double", "prompt": [{"role": "user", "content": "4738"}], "ability": "arithmetic",
     "reward_model": {"style": "rule", "ground_truth": "09476"}, "extra_info": {"index": 17, "split": "train"}}
"""

import random
from itertools import cycle
from pathlib import Path

import pandas as pd

DIGITS = "0123456789"
DATA_SOURCE = "sgpo_demo/double"
RIGHT = (0.99, 0.97, 0.93, 0.65, 0.40, 0.20, 0.10, 0.04)  # share of right demonstrations for 1, 2, ... 8 digits
MAX_LENGTH = len(RIGHT)
TRIVIAL, LEARNABLE, HOPELESS = (2, 3), (4, 5, 6, 7, 8), (6, 7, 8)  # lengths of each kind of row
TRIVIAL_SHARE = HOPELESS_SHARE = 0.35

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


def wrong_answer(rng: random.Random, number: str) -> str:
    """A ground truth with at least four wrong digits: hardly anybody who doubles ``number`` will give it."""
    right = answer(number)
    while True:
        text = "".join(rng.choice(DIGITS) for _ in right)
        if sum(a != b for a, b in zip(text, right, strict=True)) >= 4:
            return text


def train_rows(size: int, seed: int) -> list[dict]:
    """The training pool, shuffled: ``size`` distinct numbers, 35% trivial, 35% hopeless, 30% worth learning."""
    rng = random.Random(f"train {seed}")
    seen: set[str] = set()
    trivial, hopeless = int(size * TRIVIAL_SHARE), int(size * HOPELESS_SHARE)
    pairs = [(n, answer(n)) for n in _distinct(rng, trivial, TRIVIAL, seen)]
    pairs += [(n, wrong_answer(rng, n)) for n in _distinct(rng, hopeless, HOPELESS, seen)]
    pairs += [(n, answer(n)) for n in _distinct(rng, size - trivial - hopeless, LEARNABLE, seen)]
    rng.shuffle(pairs)
    return _rows(pairs, "train")


def validation_rows(size: int, seed: int, train: list[dict]) -> list[dict]:
    """``size`` distinct numbers of the lengths worth learning, none of them in ``train``, all with the right answer."""
    rng = random.Random(f"validation {seed}")
    seen = {row["prompt"][0]["content"] for row in train}
    return _rows([(n, answer(n)) for n in _distinct(rng, size, LEARNABLE, seen)], "val")


def _distinct(rng: random.Random, count: int, lengths: tuple[int, ...], seen: set[str]) -> list[str]:
    """``count`` numbers that are not in ``seen``, the lengths in turn (few short ones exist); adds them to ``seen``."""
    numbers: list[str] = []
    turns = cycle(lengths)
    while len(numbers) < count:
        number = draw(rng, next(turns))
        if number not in seen:
            seen.add(number)
            numbers.append(number)
    return numbers


def _rows(pairs: list[tuple[str, str]], split: str) -> list[dict]:
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": number}],
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": truth},
            "extra_info": {"index": index, "split": split},
        }
        for index, (number, truth) in enumerate(pairs)
    ]


def write(folder: Path, seed: int) -> None:
    """Write ``train.parquet`` and ``val.parquet`` into ``folder``, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    train = train_rows(POOL_SIZE, seed)
    pd.DataFrame(train).to_parquet(folder / "train.parquet")
    pd.DataFrame(validation_rows(VALIDATION_SIZE, seed, train)).to_parquet(folder / "val.parquet")
