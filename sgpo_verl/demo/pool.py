"""A synthetic task and its pool of prompts: what real data sets are like, 35% trivial, 35% hopeless, 30% worth learning.

A task says how to answer a string of digits and how a demonstration goes wrong; everything else is the same for all. One
row of train.parquet:

    {"data_source": "sgpo_demo/double", "prompt": [{"role": "user", "content": "4738"}], "ability": "arithmetic",
     "reward_model": {"style": "rule", "ground_truth": "09476"}, "extra_info": {"index": 17, "split": "train"}}
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

DIGITS = "0123456789"
TRIVIAL_SHARE = HOPELESS_SHARE = 0.35


@dataclass(frozen=True)
class Task:
    """name: its data source. answer: of a prompt. draw: a prompt of exactly n digits. demonstration: (prompt, answer) of n
    digits as the base model sees it, right or not. right: share of right demonstrations for 1, 2, ... digits.
    trivial, learnable, hopeless: lengths of each kind of row. repeats: whether trivial prompts may repeat, where so few
    short ones exist. pool, validation: rows, if not said otherwise.
    """

    name: str
    answer: Callable[[str], str]
    draw: Callable[[random.Random, int], str]
    demonstration: Callable[[random.Random, int], tuple[str, str]]
    right: tuple[float, ...]
    trivial: tuple[int, ...]
    learnable: tuple[int, ...]
    hopeless: tuple[int, ...]
    repeats: bool
    pool: int
    validation: int

    @property
    def max_length(self) -> int:
        return len(self.right)

    def wrong_answer(self, rng: random.Random, prompt: str) -> str:
        """A ground truth with at least four wrong digits: hardly anybody who knows the task will give it."""
        right = self.answer(prompt)
        while True:
            text = "".join(rng.choice(DIGITS) for _ in right)
            if sum(a != b for a, b in zip(text, right, strict=True)) >= 4:
                return text

    def train_rows(self, size: int, seed: int) -> list[dict[str, Any]]:
        """The training pool, shuffled: ``size`` prompts, 35% trivial, 35% hopeless, 30% worth learning."""
        rng = random.Random(f"train {seed}")
        seen: set[str] = set()
        trivial, hopeless = int(size * TRIVIAL_SHARE), int(size * HOPELESS_SHARE)
        pairs = [(n, self.answer(n)) for n in self._drawn(rng, trivial, self.trivial, seen, self.repeats)]
        pairs += [(n, self.wrong_answer(rng, n)) for n in self._drawn(rng, hopeless, self.hopeless, seen)]
        pairs += [(n, self.answer(n)) for n in self._drawn(rng, size - trivial - hopeless, self.learnable, seen)]
        rng.shuffle(pairs)
        return self._rows(pairs, "train")

    def validation_rows(self, size: int, seed: int, train: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``size`` distinct prompts of the lengths worth learning, none of them in ``train``, all with the right answer."""
        rng = random.Random(f"validation {seed}")
        seen = {row["prompt"][0]["content"] for row in train}
        return self._rows([(n, self.answer(n)) for n in self._drawn(rng, size, self.learnable, seen)], "val")

    def write(self, folder: Path, seed: int, pool: int | None = None, validation: int | None = None) -> None:
        """Write ``train.parquet`` and ``val.parquet`` into ``folder``, which is made if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        train = self.train_rows(pool or self.pool, seed)
        pd.DataFrame(train).to_parquet(folder / "train.parquet")
        held_out = self.validation_rows(validation or self.validation, seed, train)
        pd.DataFrame(held_out).to_parquet(folder / "val.parquet")

    def _drawn(
        self, rng: random.Random, count: int, lengths: tuple[int, ...], seen: set[str], repeats: bool = False
    ) -> list[str]:
        """``count`` prompts, the lengths in turn (few short ones exist), none of them in ``seen`` unless they may repeat;
        adds them to ``seen``."""
        prompts: list[str] = []
        turns = cycle(lengths)
        while len(prompts) < count:
            prompt = self.draw(rng, next(turns))
            if repeats or prompt not in seen:
                seen.add(prompt)
                prompts.append(prompt)
        return prompts

    def _rows(self, pairs: list[tuple[str, str]], split: str) -> list[dict[str, Any]]:
        return [
            {
                "data_source": self.name,
                "prompt": [{"role": "user", "content": prompt}],
                "ability": "arithmetic",
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"index": index, "split": split},
            }
            for index, (prompt, truth) in enumerate(pairs)
        ]
