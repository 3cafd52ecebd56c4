"""A step's rollouts, right after sampling -> their advantages, and which of them are trained on.

Three numbers per rollout: its advantage; whether it counts in the loss's denominators; whether it is scored and trained on.

    rule              advantage                counts   trained on
    as stock GRPO     of its group             all      all
    prune             of its group             all      where it is not zero: the gradient is the same
    train_fraction    of its group / P(kept)   all      drawn in proportion to |A|: the expected gradient is the same
    rare              of unexpected outcomes   all      with prune, those: the others' advantage is zero
    aero              of what is kept          kept     kept: a rejected rollout is as if it had not been sampled
"""

from dataclasses import dataclass

import numpy as np

from sgpo_verl import advantage
from sgpo_verl.config import Settings
from sgpo_verl.methods import aero
from sgpo_verl.methods.base import Outcome

AGAINST_BELIEF = {"posterior": advantage.posterior, "rare": advantage.rare}


@dataclass(frozen=True)
class Sampled:
    """The N rollouts of a step. rewards_N: float. successes_N: 0 or 1. group_N: any label. prompt_N: position in the plan.

    tokens_N: of prompt and response. a_N, b_N: what was believed of the prompt before this step (``Posterior.believed``);
    None where nothing is.
    """

    rewards_N: np.ndarray
    successes_N: np.ndarray
    group_N: np.ndarray
    prompt_N: np.ndarray
    tokens_N: np.ndarray
    a_N: np.ndarray | None = None
    b_N: np.ndarray | None = None

    def prior(self) -> tuple[np.ndarray, np.ndarray]:
        """(a_N, b_N) of a run that believes something."""
        assert self.a_N is not None and self.b_N is not None, "an advantage against beliefs, and none are kept"
        return self.a_N, self.b_N


def outcomes_of(sampled: Sampled) -> list[Outcome]:
    """One outcome per group, in the order of their first rollouts."""
    if not len(sampled.group_N):
        return []
    member_N = advantage.numbered(sampled.group_N)
    order_N = np.argsort(member_N, kind="stable")
    start_G = np.flatnonzero(np.diff(member_N[order_N], prepend=-1))
    size_G = np.diff(start_G, append=len(order_N))
    wins_G = np.add.reduceat(sampled.successes_N[order_N], start_G)
    mean_G = np.add.reduceat(sampled.rewards_N[order_N], start_G) / size_G
    tokens_G = np.add.reduceat(sampled.tokens_N[order_N], start_G) / size_G
    rewards_N = sampled.rewards_N[order_N]
    equal_G = np.maximum.reduceat(rewards_N, start_G) == np.minimum.reduceat(rewards_N, start_G)
    columns = (sampled.prompt_N[order_N[start_G]], size_G, wins_G, mean_G, tokens_G, equal_G)
    return [Outcome(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _groups(group_N: np.ndarray) -> list[np.ndarray]:
    """Rows of each group, in the order of their first rows."""
    member_N = advantage.numbered(group_N)
    order_N = np.argsort(member_N, kind="stable")
    return np.split(order_N, np.flatnonzero(np.diff(member_N[order_N])) + 1) if len(order_N) else []


@dataclass(frozen=True)
class Selection:
    """advantages_N: float64, of rows not trained on too. counts_N, trained_N: bool; trained on implies counts."""

    advantages_N: np.ndarray
    counts_N: np.ndarray
    trained_N: np.ndarray


def select(sampled: Sampled, settings: Settings, seeds: list[int], normalize_by_std: bool = True) -> Selection:
    """seeds: of the random choices of this step, the same after a crash."""
    rng = np.random.default_rng(seeds)
    counts_N = np.ones(len(sampled.rewards_N), dtype=bool)
    if settings.advantage == "aero":
        advantages_N, counts_N = _aero(sampled, settings, rng, normalize_by_std)
    elif settings.advantage in AGAINST_BELIEF:
        against = AGAINST_BELIEF[settings.advantage]
        advantages_N = against(sampled.successes_N, sampled.group_N, *sampled.prior(), normalize_by_std)
    else:
        advantages_N = advantage.grpo(sampled.rewards_N, sampled.group_N, normalize_by_std)
    trained_N = counts_N & (advantages_N != 0) if settings.prune else counts_N
    if settings.train_fraction < 1:
        chance_N = keep_probability(np.abs(advantages_N) * counts_N, settings.train_fraction * counts_N.sum())
        trained_N = counts_N & (rng.random(len(chance_N)) < chance_N)
        advantages_N = np.divide(advantages_N, chance_N, out=np.zeros_like(advantages_N), where=chance_N > 0)
    return Selection(advantages_N, counts_N, trained_N)


def keep_probability(size_N: np.ndarray, expected: float) -> np.ndarray:
    """P(kept) = min(1, l x size), with l such that they sum to ``expected``; all 1 (0 at size 0) if fewer rows have a size.

    size_N: |advantage|, at least 0. [4, 1, 1, 0] for 2: 4 is certain, l = 1/2 for the rest: [1, 1/2, 1/2, 0].
    """
    order_N = np.argsort(-size_N, kind="stable")
    sorted_N = size_N[order_N]
    rest_N = np.cumsum(sorted_N[::-1])[::-1]  # of a row and all smaller ones
    # The first k are certain: l = (expected - k) / rest of the others; the smallest k for which the next stays below 1.
    left_N = expected - np.arange(len(size_N))
    some_N = (rest_N > 0) & (left_N * sorted_N <= rest_N) & (left_N > 0)
    if not some_N.any():
        return (size_N > 0).astype(np.float64)
    k = int(np.flatnonzero(some_N)[0])
    return np.minimum(1.0, size_N * (left_N[k] / rest_N[k]))


def _aero(
    sampled: Sampled, settings: Settings, rng: np.random.Generator, normalize_by_std: bool
) -> tuple[np.ndarray, np.ndarray]:
    advantages_N, kept_N = np.zeros(len(sampled.rewards_N)), np.zeros(len(sampled.rewards_N), dtype=bool)
    for rows_G in _groups(sampled.group_N):
        success_G = sampled.successes_N[rows_G]
        keep_G = aero.kept(success_G, settings.aero, rng)
        kept_N[rows_G] = keep_G
        advantages_N[rows_G] = aero.advantages(sampled.rewards_N[rows_G], success_G, keep_G, normalize_by_std)
    return advantages_N, kept_N
