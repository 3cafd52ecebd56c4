"""sGPO as published (arXiv 2606.08854): one profile decides who is trained on, how often, and when.

How it differs from GRPO: prompts that the initial policy nearly always solves are removed, never-solved ones
sub-sampled (section "Select"); a prompt of pass rate p gets about 1/p rollouts instead of a constant ("Group size"); and
clusters of equal group size are trained one after another, easy to hard ("Curriculum", Eq. 9 and 13).

A row of the plan, for N = 8 samples:  successes  7..8      3..6     2        1        0
                                       class      trivial   G = 2    G = 4    G = 8    unsolved, drawn into each phase

Our reading, where the paper is silent or we could not read it: the unsolved sample is redrawn once per phase, not per
pass; a phase's last step is filled from the next pass over that phase, so that every step holds the same budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np

from sgpo_verl.config import CurriculumSettings, FilterSettings, GroupSizeSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Groups, Outcome


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


@dataclass(frozen=True)
class Phase:
    """One cluster of the curriculum. prompts_M: int32, positions in the plan of its M prompts, unsolved ones last."""

    group_size: int
    learnable: int
    unsolved: int
    prompts_M: np.ndarray = field(repr=False)

    @property
    def rollouts_per_pass(self) -> int:
        return self.group_size * len(self.prompts_M)


def phases(class_P: np.ndarray, size_P: np.ndarray, settings: FilterSettings, seed: int) -> list[Phase]:
    """Clusters by group size, small (easy) first; each with its own draw of round(alpha x unsolved) unsolved prompts.

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


def split(rollouts: int, size: int) -> list[int]:
    """Sizes of as many groups of ``size`` as fit in ``rollouts``, at least one; the remainder is dealt out one by one.

    So the sum is exact: split(16, 8) = [8, 8]; split(17, 8) = [9, 8]; split(4, 8) = [4], in place of a smaller group that
    failed. Both are at least 1.
    """
    groups = max(1, rollouts // size)
    base, extra = divmod(rollouts, groups)
    return [base + (i < extra) for i in range(groups)]


class Paper:
    """The curriculum in progress.

    phase_list: from ``phases``. budgets: rollouts that each phase may draw. The last
    phase goes on for as long as it is asked, so steps that a plateau leaves over are spent on the hardest prompts.
    fingerprint: of everything the plan was made from; a checkpoint of another plan is refused.
    """

    name = "paper"

    def __init__(
        self,
        phase_list: Sequence[Phase],
        budgets: Sequence[int],
        settings: CurriculumSettings,
        seed: int,
        fingerprint: dict[str, Any],
    ):
        self.phases, self.budgets = list(phase_list), list(budgets)
        self.settings, self.seed, self.fingerprint = settings, seed, fingerprint
        self.phase = 0  # of the groups handed out last
        self.drawn = 0  # groups handed out in this phase
        self.spent = 0  # rollouts handed out in this phase
        self.total = 0  # rollouts handed out in all
        self.rewards: list[float] = []  # mean reward of each of the last 2 x window steps of this phase
        self._order_key, self._order_M = (-1, -1), np.array([], dtype=np.int32)

    def group_size(self, refill: bool = False) -> int:
        """G of the groups that come next; refill: of those that were handed out last."""
        return self.phases[self.phase if refill else self._next_phase()].group_size

    def next_groups(self, rollouts: int, refill: bool = False) -> Groups:
        phase = self.phase if refill else self._next_phase()
        if phase != self.phase:
            self.phase, self.drawn, self.spent, self.rewards = phase, 0, 0, []
        sizes = split(rollouts, self.phases[phase].group_size)
        groups = [(self._prompt(self.drawn + i), size) for i, size in enumerate(sizes)]
        self.drawn += len(sizes)
        if not refill:
            self.spent += rollouts
            self.total += rollouts
        return groups

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        rollouts = sum(o.size for o in outcomes)
        mean = sum(o.reward_mean * o.size for o in outcomes) / max(rollouts, 1)
        self.rewards = [*self.rewards, mean][-2 * self.settings.window :]

    def _next_phase(self) -> int:
        last = len(self.phases) - 1
        over = self.spent >= self.budgets[self.phase] or self._plateaued()
        return self.phase + 1 if over and self.phase < last else self.phase

    def _plateaued(self) -> bool:
        """Mean reward of the last ``window`` steps is less than ``min_gain`` above that of the window before."""
        window = self.settings.window
        if self.settings.until != "plateau" or len(self.rewards) < 2 * window:
            return False
        return np.mean(self.rewards[-window:]) - np.mean(self.rewards[-2 * window : -window]) < self.settings.min_gain

    def _prompt(self, draw: int) -> int:
        """The ``draw``-th prompt of this phase: pass after pass, each in its own order, a function of the seed alone."""
        prompts_M = self.phases[self.phase].prompts_M
        number, place = divmod(draw, len(prompts_M))
        return int(prompts_M[self._order(number)[place]])

    def _order(self, number: int) -> np.ndarray:
        """Permutation of this phase's prompts in pass ``number``; kept until another is asked for."""
        if self._order_key != (self.phase, number):
            # From 1 on: [s, p, 0] would be the stream of [s, p], from which the unsolved sample was drawn.
            rng = np.random.default_rng([self.seed, self.phase, 1 + number])
            self._order_key = (self.phase, number)
            self._order_M = rng.permutation(len(self.phases[self.phase].prompts_M)).astype(np.int32)
        return self._order_M

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "fingerprint": self.fingerprint,
            "phase": self.phase,
            "drawn": self.drawn,
            "spent": self.spent,
            "total": self.total,
            "rewards": list(self.rewards),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        method = state.get("method") if isinstance(state, Mapping) else state
        if method != self.name:
            raise SgpoError(f"checkpoint: written by sgpo.method={method!r:.60}, this run is {self.name!r}")
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise SgpoError(
                f"checkpoint: lacks {', '.join(missing)} in its sgpo state: start a new run from its weights"
            )
        if wrong := _impossible(state, len(self.phases)):
            raise SgpoError(f"checkpoint: its sgpo state cannot be ({wrong}): start a new run from its weights")
        mine, theirs = self.fingerprint, state["fingerprint"]
        differ = sorted((k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)), key=str)
        if differ:
            what = "; ".join(f"{k}: checkpoint {theirs.get(k)!r}, run {mine.get(k)!r}" for k in differ)
            raise SgpoError(f"checkpoint: its plan is not this run's ({what}): restore the setting, or start a new run")
        self.phase, self.drawn, self.spent = state["phase"], state["drawn"], state["spent"]
        self.total, self.rewards = state["total"], list(state["rewards"])

    def metrics(self) -> dict[str, float]:
        return {"curriculum/phase": self.phase, "curriculum/progress": min(1.0, self.total / sum(self.budgets))}


def _impossible(state: Mapping[str, Any], phases: int) -> str:
    """What of a state no curriculum of that many phases can have written; "" if nothing."""
    for name in ("phase", "drawn", "spent", "total"):
        value = state[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value < 2**63:
            return f"{name}={value!r:.60}"
    if state["phase"] >= phases:
        return f"phase={state['phase']} of {phases}"
    if state["spent"] > state["total"]:
        return f"spent={state['spent']} of total={state['total']}"
    rewards = state["rewards"]
    if not isinstance(rewards, list) or not all(isinstance(r, int | float | np.floating) for r in rewards):
        return f"rewards={rewards!r:.60}"
    if not np.isfinite(np.array(rewards, float)).all():
        return "a reward that is not finite"
    return "" if isinstance(state["fingerprint"], Mapping) else f"fingerprint={state['fingerprint']!r:.60}"
