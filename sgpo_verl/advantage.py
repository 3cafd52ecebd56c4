"""Advantages of outcome rewards in groups of any size."""

import numpy as np
import pandas as pd

EPSILON = 1e-6  # as in verl's GRPO
LEAST_VARIANCE = 0.05  # of an outcome, in ``rare``: no rollout weighs more than 1 / sqrt(0.05) = 4.5


def grpo(rewards_N: np.ndarray, group_N: np.ndarray, normalize_by_std: bool = True) -> np.ndarray:
    """Group-relative advantage: A_i = (r_i - mean(r_G)) / (std(r_G) + epsilon), float64 (N,).

    Shao et al. 2024 (arXiv 2402.03300), Eq. in section 4.1.2; std with G - 1 in the denominator, as verl computes it.
    Without the division it is Dr. GRPO's (Liu et al. 2025, arXiv 2503.20783).

    rewards_N: one score per rollout. group_N: any labels; equal labels form a group, in any order.
    A group of one, and a group whose rewards are all equal, gets exactly 0: it says nothing about its rollouts.
    (verl's own GRPO gives a group of one its raw reward.)
    """
    rewards_N = np.asarray(rewards_N, dtype=np.float64)
    if len(group_N) != len(rewards_N):
        raise ValueError(f"{len(rewards_N)} rewards, {len(group_N)} group labels")
    if rewards_N.size == 0:
        return rewards_N
    member_N = numbered(group_N)
    order_N = np.argsort(member_N, kind="stable")
    start_G = np.flatnonzero(np.diff(member_N[order_N], prepend=-1))
    size_G = np.diff(start_G, append=len(order_N))

    sorted_N = rewards_N[order_N]
    mean_N = np.repeat(np.add.reduceat(sorted_N, start_G) / size_G, size_G)
    centred_N = sorted_N - mean_N
    variance_G = np.add.reduceat(centred_N**2, start_G) / np.maximum(size_G - 1, 1)
    same_G = np.maximum.reduceat(sorted_N, start_G) == np.minimum.reduceat(sorted_N, start_G)
    if normalize_by_std:
        centred_N = centred_N / np.repeat(np.sqrt(variance_G) + EPSILON, size_G)

    advantages_N = np.empty_like(rewards_N)
    advantages_N[order_N] = np.where(np.repeat(same_G, size_G), 0.0, centred_N)
    return advantages_N


def posterior(
    successes_N: np.ndarray,
    group_N: np.ndarray,
    a_N: np.ndarray,
    b_N: np.ndarray,
    normalize_by_std: bool = True,
) -> np.ndarray:
    """Advantage against what was expected of the prompt, without the rollout itself: float64 (N,).

    A_i = (s_i - b_i) / sqrt(m (1 - m)),  b_i = (a + c - s_i) / (a + b + G - 1),  m = a / (a + b)

    b_i is the posterior mean of the prompt's pass rate given the other rollouts of its group. It does not depend on s_i, nor m
    on any of them, so the expected gradient is that of the pass rate, scaled per prompt: unbiased. A group of equal outcomes
    teaches unless the prior expected just that; a group of one is measured against the prior alone.

    successes_N: 0 or 1. group_N: as for ``grpo``. a_N, b_N: of the Beta prior of the row's prompt, before the group.
    """
    successes_N = np.asarray(successes_N, dtype=np.float64)
    if successes_N.size == 0:
        return successes_N
    baseline_N = expected_without(successes_N, group_N, a_N, b_N)
    mean_N = a_N / (a_N + b_N)
    return (successes_N - baseline_N) / (np.sqrt(mean_N * (1 - mean_N)) if normalize_by_std else 1.0)


def rare(
    successes_N: np.ndarray,
    group_N: np.ndarray,
    a_N: np.ndarray,
    b_N: np.ndarray,
    normalize_by_std: bool = True,
) -> np.ndarray:
    """Advantage of the outcome that was not expected; exactly 0 for the one that was: float64 (N,). Ours.

    A_i = (s_i - b_i) / sqrt(max(m_i (1 - m_i), 1/20)),  b_i = 1 if m_i > 1/2 else 0,  m_i = (a + c - s_i) / (a + b + G - 1)

    m_i is the expected pass rate given the other rollouts of the group, as in ``posterior``, so neither b_i nor the scale
    depends on s_i: unbiased. Of a prompt that is mostly failed only successes teach, of one that is mostly solved only
    failures: a share min(p, 1 - p) of the rows, and no group is needed. Rows are what costs (2N FLOPs to generate a token, 8N
    more to train on it), and with p = 1/4 a row's second moment is p = 1/4 where the mean as baseline has p (1 - p) = 3/16:
    a third more noise for a quarter of the training.

    Arguments as for ``posterior``.
    """
    successes_N = np.asarray(successes_N, dtype=np.float64)
    if successes_N.size == 0:
        return successes_N
    mean_N = expected_without(successes_N, group_N, a_N, b_N)
    deviation_N = np.sqrt(np.maximum(mean_N * (1 - mean_N), LEAST_VARIANCE))
    return (successes_N - (mean_N > 0.5)) / (deviation_N if normalize_by_std else 1.0)


def expected_without(successes_N: np.ndarray, group_N: np.ndarray, a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    """(a + c - s_i) / (a + b + G - 1): the pass rate expected of a row's prompt, given the other rollouts of its group."""
    member_N = numbered(group_N)
    correct_N = np.bincount(member_N, successes_N)[member_N]
    size_N = np.bincount(member_N)[member_N]
    return (a_N + correct_N - successes_N) / (a_N + b_N + size_N - 1)


def numbered(group_N: np.ndarray) -> np.ndarray:
    """Labels -> numbers of groups, in the order of their first row."""
    if not isinstance(group_N, np.ndarray):
        labels, group_N = group_N, np.empty(len(group_N), dtype=object)
        group_N[:] = labels
    return pd.factorize(group_N, use_na_sentinel=False)[0]
