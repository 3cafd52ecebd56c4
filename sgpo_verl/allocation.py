"""How many rollouts each prompt gets, where one more is expected to teach most: an exact budget, spent by marginal gain.

What a group of n is expected to teach, f(n): with group-relative advantages the probability that it is mixed,
1 - p^n - (1 - p)^n; with advantages that need no group n p (1 - p). Both are concave from the second rollout on, so
the best allocation takes rollouts in the order of their gain (Fox 1966): first whole groups of ``least``, by f(least) / least
each, and more for groups that are there, by f(n) - f(n - 1).
"""

from collections.abc import Callable

import numpy as np

Gain = Callable[[np.ndarray, np.ndarray | int], np.ndarray]


def mixed(p_M: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """P(a group of n is mixed) = 1 - p^n - (1 - p)^n, float64, of the broadcast shape. n = 1: 0."""
    return 1.0 - p_M**n - (1.0 - p_M) ** n


def alone(p_M: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Variance of n outcomes, n p (1 - p): what rollouts teach that are not measured against each other."""
    return n * p_M * (1.0 - p_M)


def allocate(
    p_M: np.ndarray,
    rollouts: int,
    least: int,
    most: int,
    weight_M: np.ndarray | None = None,
    price_M: np.ndarray | None = None,
    gain: Gain = mixed,
) -> tuple[np.ndarray, np.ndarray]:
    """(places, sizes): who gets how many, maximising sum of weight x f(n) - price x n over sizes 0 or least..most.

    Exact for least = 2, where f is concave from the opening on, and for ``alone``; else within the gain of one group.

    The sizes sum to exactly ``rollouts``: should all groups be at ``most``, or the rest be too small for one, what is left is
    dealt out one by one. p_M: pass rates (M,). gain: f, of p and n. weight_M, price_M: per prompt (M,), 1 and 0 if not given.
    Best prompts first.
    """
    weight_M = np.ones_like(p_M) if weight_M is None else weight_M
    price_M = np.zeros_like(p_M) if price_M is None else price_M
    least = min(least, rollouts)
    gain_M = weight_M * gain(p_M, least) / least - price_M
    # No more groups than these can be opened, and groups are opened in the order of this gain.
    openable = min(len(p_M), rollouts // least)
    best_K = np.argpartition(-gain_M, openable - 1)[:openable]
    best_K = best_K[np.argsort(-gain_M[best_K], kind="stable")]

    p_K, weight_K, price_K = p_M[best_K], weight_M[best_K], price_M[best_K]
    extra_E = np.arange(least + 1, most + 1)
    gain_KE = weight_K[:, None] * (gain(p_K[:, None], extra_E) - gain(p_K[:, None], extra_E - 1)) - price_K[:, None]
    size_K = _by_gain(gain_M[best_K], gain_KE, rollouts, least)
    opened_K = size_K > 0
    best_K, size_K = best_K[opened_K], size_K[opened_K]
    for i in range(rollouts - int(size_K.sum())):
        size_K[i % len(size_K)] += 1
    return best_K, size_K


def _by_gain(open_K: np.ndarray, gain_KE: np.ndarray, rollouts: int, least: int) -> np.ndarray:
    """Sizes (K,) from the gains per rollout of opening a group, and of each rollout more: the largest first."""
    groups, extras = gain_KE.shape
    gain_KE = np.minimum(gain_KE, open_K[:, None])  # f(3) - f(2) = f(2) / 2, but not to the last bit
    gain = np.concatenate([open_K, gain_KE.ravel()])
    cost = np.concatenate([np.full(groups, least), np.ones(groups * extras, dtype=np.int64)])
    owner = np.concatenate([np.arange(groups), np.repeat(np.arange(groups), extras)])
    order = np.argsort(-gain, kind="stable")  # at equal gain a group opens before it, or another, grows
    spent = np.cumsum(cost[order])
    fits = int(np.searchsorted(spent, rollouts, side="right"))
    size_K = np.zeros(groups, dtype=np.int64)
    np.add.at(size_K, owner[order[:fits]], cost[order[:fits]])
    left = rollouts - (int(spent[fits - 1]) if fits else 0)
    return _end(size_K, open_K, gain_KE, left, least) if left else size_K


def _end(size_K: np.ndarray, open_K: np.ndarray, gain_KE: np.ndarray, left: int, least: int) -> np.ndarray:
    """Spend what is less than a group: on groups that are there, or on one more, for which others give up their last."""
    grown, extras = size_K.copy(), gain_KE.shape[1]
    total_grown = 0.0
    for _ in range(left):
        place_K = grown - least
        can_K = (grown > 0) & (place_K < extras)
        if not can_K.any():
            break
        next_K = np.where(can_K, gain_KE[np.arange(len(grown)), np.clip(place_K, 0, extras - 1)], -np.inf)
        grown[best := int(next_K.argmax())] += 1
        total_grown += next_K[best]
    closed = np.flatnonzero(size_K == 0)
    if not closed.size or extras == 0:
        return grown
    new = int(closed[open_K[closed].argmax()])
    opened, total_opened = size_K.copy(), least * open_K[new]
    opened[new] = least
    for _ in range(least - left):
        place_K = opened - least - 1
        last_K = np.where(place_K >= 0, gain_KE[np.arange(len(opened)), np.clip(place_K, 0, extras - 1)], np.inf)
        last_K[new] = np.inf
        opened[worst := int(last_K.argmin())] -= 1
        total_opened -= last_K[worst]
    complete = int(grown.sum()) == int(size_K.sum()) + left
    return opened if total_opened > total_grown or (not complete and np.isfinite(total_opened)) else grown
