"""sGPO as published (arXiv 2606.08854): one profile decides who is trained on, how often, and when.

How it differs from GRPO: prompts that the initial policy nearly always solves are removed, never-solved ones
sub-sampled (section "Select"); a prompt of pass rate p gets about 1/p rollouts instead of a constant ("Group size"); and
clusters of equal group size are trained one after another, easy to hard ("Curriculum", Eq. 9 and 13).

A row of the plan, for N = 8 samples:  successes  7..8      3..6     2        1        0
                                       class      trivial   G = 2    G = 4    G = 8    unsolved, drawn into each phase

Our reading, where the paper is silent or we could not read it: the unsolved sample is redrawn once per phase, not per
pass; a phase's last step is filled from the next pass over that phase, so that every step holds the same budget.
"""

from enum import IntEnum
from fractions import Fraction

import numpy as np

from sgpo_verl.config import FilterSettings, GroupSizeSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.curriculum import Phase


class Class(IntEnum):
    """What the profile says of a prompt. FAILED: nothing, it could not be sampled; it is not trained on."""

    TRIVIAL = 0
    LEARNABLE = 1
    UNSOLVED = 2
    FAILED = 3


def classify(trials_P: np.ndarray, successes_P: np.ndarray, settings: FilterSettings) -> np.ndarray:
    """Class of each prompt, int8 (P,): unsolved at 0 successes, trivial above ``max_pass_rate``, else learnable.

    successes_P in [0, trials_P]; a prompt without trials could not be sampled: failed. The comparison is exact:
    successes > floor(max_pass_rate x trials).
    """
    limit = Fraction(str(settings.max_pass_rate))
    trials, which_P = np.unique(trials_P, return_inverse=True)  # few distinct values: exact arithmetic once for each
    most = np.array([int(limit * n) for n in trials.tolist()], dtype=np.int64)
    class_P = np.where(successes_P > most[which_P.ravel()], Class.TRIVIAL, Class.LEARNABLE)
    class_P = np.where(successes_P == 0, Class.UNSOLVED, class_P)
    return np.where(trials_P == 0, Class.FAILED, class_P).astype(np.int8)


def group_size(trials_P: np.ndarray, successes_P: np.ndarray, settings: GroupSizeSettings) -> np.ndarray:
    """G = clip(2^round(log2(trials / successes)), min, max), int64 (P,). Paper: rounding down, [2, 8].

    Rounding is exact for "floor" and "ceil" (integer comparisons, no logarithm). Never-solved prompts get ``max``.
    """
    trials_P, successes_P = trials_P.astype(np.int64), np.maximum(successes_P.astype(np.int64), 0)
    solved_P = np.maximum(successes_P, 1)
    if settings.rounding == "none":
        size_P = -(-trials_P // solved_P)
    else:
        down_P = np.ones_like(trials_P)
        while (fits_P := 2 * down_P * solved_P <= trials_P).any():
            down_P = np.where(fits_P, 2 * down_P, down_P)
        up_P = np.where(down_P * solved_P < trials_P, 2 * down_P, down_P)
        # Halfway between two powers in log2 is their geometric mean: sqrt(2) x down, squared here to stay exact.
        nearest_P = np.where(trials_P**2 >= 2 * (down_P * solved_P) ** 2, 2 * down_P, down_P)
        size_P = {"floor": down_P, "ceil": up_P, "nearest": nearest_P}[settings.rounding]
    size_P = np.where(successes_P == 0, settings.max, size_P)
    return np.clip(size_P, settings.min, settings.max)


def phases(class_P: np.ndarray, size_P: np.ndarray, settings: FilterSettings, seed: int) -> list[Phase]:
    """Clusters by group size, small (easy) first; each with its own draw of round(alpha x unsolved) unsolved prompts.

    class_P: int8, as from ``classify``; where nothing is filtered, every prompt that could be sampled is learnable.

    Raises SgpoError if no prompt is learnable: then there is nothing to train on.
    """
    learnable_P, unsolved_U = class_P == Class.LEARNABLE, np.flatnonzero(class_P == Class.UNSOLVED)
    if not learnable_P.any():
        raise SgpoError(_nothing_to_learn(class_P, settings))
    draw = int(settings.unsolved_fraction * len(unsolved_U) + 0.5)
    result = []
    for number, size in enumerate(np.unique(size_P[learnable_P])):
        cluster_C = np.flatnonzero(learnable_P & (size_P == size))
        extra_U = np.random.default_rng([seed, number]).choice(unsolved_U, size=draw, replace=False)
        prompts_M = np.concatenate([cluster_C, np.sort(extra_U)]).astype(np.int32)
        result.append(Phase(int(size), len(cluster_C), draw, prompts_M))
    return result


def _nothing_to_learn(class_P: np.ndarray, settings: FilterSettings) -> str:
    trivial, unsolved, failed = (int((class_P == c).sum()) for c in (Class.TRIVIAL, Class.UNSOLVED, Class.FAILED))
    not_sampled = f", {failed} could not be profiled" if failed else ""
    return (
        f"no prompt to train on: of {len(class_P)}, {trivial} are trivial (pass rate above sgpo.filter.max_pass_rate="
        f"{settings.max_pass_rate}) and {unsolved} were never solved{not_sampled}; use harder or easier data, raise "
        "sgpo.filter.max_pass_rate, or profile with a larger sgpo.profile.n"
    )
