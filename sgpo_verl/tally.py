"""How a profiling pass is getting on, in numbers and in one line of text."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from sgpo_verl.config import FilterSettings
from sgpo_verl.counts import Sampled
from sgpo_verl.methods.paper import Class, classify


class Tally:
    """Running counts of one pass: ``prompts`` in all, ``budget`` samples in all, those of earlier calls included."""

    def __init__(
        self, prompts: int, budget: int, filter_settings: FilterSettings, clock: Callable[[], float] = time.monotonic
    ):
        self.prompts, self.budget, self._clock = prompts, budget, clock
        self.samples = self.tokens = self.requests = self._here = 0
        self._seen: Counter[Class] = Counter()
        self._class_of = lru_cache(maxsize=None)(
            lambda trials, successes: Class(classify(np.array([trials]), np.array([successes]), filter_settings)[0])
        )
        self.start()

    def start(self) -> None:
        """Speeds count from here: servers take their time to come up."""
        self._start = self._clock()

    def found(self, trials_P: np.ndarray, successes_P: np.ndarray) -> None:
        """What earlier calls of this pass, or an existing profile, have already sampled."""
        self.samples += int(trials_P.sum())
        pairs, number = np.unique(np.stack([trials_P, successes_P]), axis=1, return_counts=True)
        for (trials, successes), times in zip(pairs.T.tolist(), number.tolist(), strict=True):
            if trials:
                self._seen[self._class_of(trials, successes)] += times

    def add(self, sampled: Sampled, trials: int, successes: int) -> None:
        """A request is done; ``trials`` and ``successes`` of its prompt, this request included."""
        self.requests += 1
        if not sampled.trials:
            return
        if before := trials - sampled.trials:
            self._seen[self._class_of(before, successes - sampled.successes)] -= 1
        self._seen[self._class_of(trials, successes)] += 1
        self.samples += sampled.trials
        self._here += sampled.trials
        self.tokens += sampled.prompt_tokens + sampled.response_tokens

    @property
    def seconds(self) -> float:
        return max(self._clock() - self._start, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before the first sample."""
        return (self.budget - self.samples) * self.seconds / self._here if self._here else None

    def line(self) -> str:
        """For example: "4,096/16,384 samples (25%), 51 prompts/s, 9,120 tokens/s, 1:15 left; trivial 31%, learnable 50%,
        unsolved 19% of 512 prompts"."""
        left = "" if self.seconds_left is None else f", {_clock_time(self.seconds_left)} left"
        speed = f"{self.requests / self.seconds:,.0f} prompts/s, {self.tokens / self.seconds:,.0f} tokens/s"
        known = sum(self._seen.values())
        shares = ", ".join(
            f"{c.name.lower()} {self._seen[c] / max(known, 1):.0%}"
            for c in (Class.TRIVIAL, Class.LEARNABLE, Class.UNSOLVED)
        )
        share = self.samples / max(self.budget, 1)
        return f"{self.samples:,}/{self.budget:,} samples ({share:.0%}), {speed}{left}; {shares} of {known:,} prompts"


def plain_lines(every: float = 10.0) -> Callable[[Tally], None]:
    """Shows a tally as a line on standard error, at most every ``every`` seconds, and at the end: for logs."""
    last = time.monotonic()

    def show(tally: Tally) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= every or tally.samples >= tally.budget:
            last = now
            print(f"sgpo: profiled {tally.line()}", file=sys.stderr, flush=True)

    return show


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
