"""Adaptive profiling: the same number of samples, spent where they decide something. Ours; the paper samples all alike.

A prompt's class is what the plan makes of it: trivial, one of the group sizes, or unsolved. Half of the samples go to all
prompts; the rest, round by round, to those whose class more samples would most likely put right.

    4 samples:  0 right -> is it unsolved?  sample on       2 right -> G = 2, far from any border: left alone

The pass rate's posterior is Beta(1 + successes, 1 + failures), kept as a mass on CELLS equal parts of [0, 1].
"""

from functools import lru_cache
from math import comb

import numpy as np

from sgpo_verl.config import FilterSettings, GroupSizeSettings
from sgpo_verl.methods.paper import classify, group_size

CELLS = 960  # divides into the borders 3/4, 1/4, 1/8, 1/16
CAP = 4  # no prompt gets more than this many times the average
LAST_ROUND = 1 / 16  # of the budget: when no more is left, it is spent at once, for every round waits for its slowest


def class_of(
    trials_P: np.ndarray, successes_P: np.ndarray, filtering: FilterSettings, sizes: GroupSizeSettings
) -> np.ndarray:
    """What the plan makes of counts, as one number, int64 (P,): 2^32 x class + group size. trials_P >= 1."""
    class_P = classify(trials_P, successes_P, filtering).astype(np.int64)
    return (class_P << 32) + group_size(trials_P, successes_P, sizes)


def class_of_rate(rate_C: np.ndarray, filtering: FilterSettings, sizes: GroupSizeSettings) -> np.ndarray:
    """What the plan would make of known pass rates, int64 (C,).

    Counts of 0 are unsolved, yet no rate is exactly 0: below half of 1 / (largest group), where a group of that size is
    rather all wrong than not, we call it unsolved. Our reading.
    """
    trials_C = np.full(rate_C.shape, 10**6)
    successes_C = np.maximum(np.rint(rate_C * 10**6), 1).astype(np.int64)
    unsolved_C = rate_C < 1 / (2 * sizes.max)
    return class_of(trials_C, np.where(unsolved_C, 0, successes_C), filtering, sizes)


class _Decision:
    """How likely the plan is right about counts, and how much more samples would help: by posterior expectation."""

    def __init__(self, filtering: FilterSettings, sizes: GroupSizeSettings):
        self.filtering, self.sizes = filtering, sizes
        self.rate_C = (np.arange(CELLS) + 0.5) / CELLS
        self.class_C = class_of_rate(self.rate_C, filtering, sizes)

    def posterior(self, trials: int) -> np.ndarray:
        """Mass of the pass rate on each cell after 0 ... ``trials`` successes: (trials + 1, CELLS), rows sum to 1."""
        wins_S = np.arange(trials + 1)[:, None]
        log_SC = wins_S * np.log(self.rate_C) + (trials - wins_S) * np.log1p(-self.rate_C)
        mass_SC = np.exp(log_SC - log_SC.max(axis=1, keepdims=True))
        return mass_SC / mass_SC.sum(axis=1, keepdims=True)

    def right(self, trials: int) -> np.ndarray:
        """Probability that the plan's class is the true one, after 0 ... ``trials`` successes: (trials + 1,)."""
        decided_S = class_of(np.full(trials + 1, trials), np.arange(trials + 1), self.filtering, self.sizes)
        return (self.posterior(trials) * (decided_S[:, None] == self.class_C)).sum(axis=1)

    def gain(self, trials: int, more: int) -> np.ndarray:
        """Expected rise of ``right`` from ``more`` samples, (trials + 1,)."""
        outcome_JC = np.array(
            [comb(more, j) * self.rate_C**j * (1 - self.rate_C) ** (more - j) for j in range(more + 1)]
        )
        predicted_SJ = self.posterior(trials) @ outcome_JC.T
        after_S = self.right(trials + more)
        wins_SJ = np.arange(trials + 1)[:, None] + np.arange(more + 1)
        return (predicted_SJ * after_S[wins_SJ]).sum(axis=1) - self.right(trials)


@lru_cache(maxsize=4096)
def _gain(trials: int, more: int, filtering: FilterSettings, sizes: GroupSizeSettings) -> np.ndarray:
    return _Decision(filtering, sizes).gain(trials, more)


def next_samples(
    trials_P: np.ndarray,
    successes_P: np.ndarray,
    budget: int,
    filtering: FilterSettings,
    sizes: GroupSizeSettings,
    seed: int = 0,
) -> np.ndarray:
    """Samples that each prompt gets in the next round, int32 (P,); all 0 when the pass is over.

    trials_P, successes_P: so far. budget: samples in all, those so far included; never exceeded. A function of the counts
    alone, so a pass that was killed goes on from what it finds. Rounds: half of what is left, then half of the rest, ...
    """
    count, left = len(trials_P), int(budget - trials_P.sum())
    average = max(1, budget // count)
    step = max(1, average // 2)
    unseen_P = trials_P == 0
    samples_P = np.zeros(count, np.int32)
    if unseen_P.any():
        samples_P[np.flatnonzero(unseen_P)[: max(left, 0) // step]] = step
        return samples_P
    spend = left if left <= max(LAST_ROUND * budget, step) else left // 2
    if left < step:
        step = max(left, 1)
    kinds_K, number_K, kind_P = _kinds(trials_P, successes_P)
    gain_K = np.array([_gain(int(t), step, filtering, sizes)[int(s)] for t, s in kinds_K])
    gain_K[kinds_K[:, 0] + step > CAP * average] = 0.0
    rng, places = np.random.default_rng([seed, left]), spend // step
    for kind in np.argsort(-gain_K, kind="stable"):
        if places <= 0 or gain_K[kind] <= 1e-9:
            break
        members = np.flatnonzero(kind_P == kind)
        if number_K[kind] > places:
            members = np.sort(rng.choice(members, places, replace=False))
        samples_P[members] = step
        places -= len(members)
    return samples_P


def _kinds(trials_P: np.ndarray, successes_P: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((K, 2) distinct pairs of trials and successes, how many prompts have each, which one each prompt has (P,))."""
    width = int(trials_P.max()) + 1
    code_P = trials_P.astype(np.int64) * width + successes_P
    present = np.bincount(code_P)
    code_K = np.flatnonzero(present)
    place = np.zeros(len(present), np.int32)
    place[code_K] = np.arange(len(code_K))
    return np.stack(np.divmod(code_K, width), axis=1), present[code_K], place[code_P]
