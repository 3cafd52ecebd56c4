"""AERO (arXiv 2602.14338): more rollouts where none has succeeded, fewer rows where most have failed.

How it differs from GRPO, for a prompt with c of n rollouts correct:
- rescue: it gets ``explore`` rollouts; while none is correct, ``wave`` more at a time, up to ``most``;
- selective rejection: of a group with 0 < c / n < 1/2 all c correct rollouts are kept and as many wrong ones, at random, and
  the advantage is GRPO's among those that are kept; with c / n >= 1/2 all are;
- a group that is all correct, or all wrong after its rescue: ``keep`` rollouts at random, and against the posterior mean.

Our reading of the last rule: the posterior mean u = (c + 1) / (n + 2), from Beta(1, 1), replaces both mean and deviation,
A_i = (s_i - u) / sqrt(u (1 - u)), or else the group would be normalised to zero again.
"""

import numpy as np

from sgpo_verl.advantage import grpo
from sgpo_verl.config import AeroSettings


def more(sampled: int, successes: int, settings: AeroSettings) -> int:
    """Rollouts to add to a prompt that has had ``sampled``, of which ``successes`` were correct: 0 when it is done."""
    return 0 if successes else max(0, min(settings.wave, settings.most - sampled))


def kept(success_G: np.ndarray, settings: AeroSettings, rng: np.random.Generator) -> np.ndarray:
    """Which rollouts of a group are trained on, bool (G,)."""
    n, c = len(success_G), int(success_G.sum())
    if c in (0, n):
        keep_G = np.zeros(n, dtype=bool)
        keep_G[rng.choice(n, min(settings.keep, n), replace=False)] = True
        return keep_G
    if 2 * c >= n:
        return np.ones(n, dtype=bool)
    keep_G = success_G.astype(bool)
    keep_G[rng.choice(np.flatnonzero(~keep_G), c, replace=False)] = True
    return keep_G


def advantages(
    rewards_G: np.ndarray, success_G: np.ndarray, keep_G: np.ndarray, normalize_by_std: bool = True
) -> np.ndarray:
    """Of the rollouts of one group, float64 (G,); 0 where it is not kept. success_G: all that were sampled, 0 or 1.

    Without the division, as in Dr. GRPO, an all-same group has A_i = s_i - u.
    """
    n, c = len(success_G), int(success_G.sum())
    advantages_G = np.zeros(n)
    if c in (0, n):
        u = (c + 1) / (n + 2)
        advantages_G[keep_G] = (success_G[keep_G] - u) / (np.sqrt(u * (1 - u)) if normalize_by_std else 1.0)
    else:
        advantages_G[keep_G] = grpo(rewards_G[keep_G], np.zeros(int(keep_G.sum())), normalize_by_std)
    return advantages_G
