"""Phases of prompts, one after another, each in shuffled passes: the curriculum of sGPO; with a single phase, stock order.

How it differs from GRPO: a phase has its own group size, and ends when its rollouts are spent or its reward stops rising.
With one phase of all prompts and groups of ``rollout.n`` it is what stock GRPO draws, in an order of its own seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sgpo_verl.config import CurriculumSettings
from sgpo_verl.methods.base import Groups, Outcome, check_state, pack, split, start_over


@dataclass(frozen=True)
class Phase:
    """One cluster. prompts_M: int32, positions in the plan of its M prompts, unsolved ones last.

    sizes_M: where they are of several group sizes, int32; ``group_size`` is then their mean, rounded.
    """

    group_size: int
    learnable: int
    unsolved: int
    prompts_M: np.ndarray = field(repr=False)
    sizes_M: np.ndarray | None = field(default=None, repr=False)

    @property
    def rollouts_per_pass(self) -> int:
        return self.group_size * len(self.prompts_M) if self.sizes_M is None else int(self.sizes_M.sum())


class Curriculum:
    """The curriculum in progress.

    name: of the method. phase_list: clusters in their order. steps, rollouts: of each phase, how many, and per step. The
    last phase goes on for as long as it is asked, so steps that a plateau leaves over are spent on the hardest prompts.
    shuffle: False keeps the order of the data in every pass.
    fingerprint: of everything the plan was made from; a checkpoint of another plan is refused.
    """

    def __init__(
        self,
        name: str,
        phase_list: Sequence[Phase],
        steps: Sequence[int],
        rollouts: Sequence[int],
        settings: CurriculumSettings,
        seed: int,
        fingerprint: dict[str, Any],
        shuffle: bool = True,
    ):
        self.name, self.phases, self.rollouts = name, list(phase_list), list(rollouts)
        self.budgets = [s * r for s, r in zip(steps, rollouts, strict=True)]
        self.settings, self.seed, self.fingerprint, self.shuffle = settings, seed, fingerprint, shuffle
        self.phase = 0  # of the groups handed out last
        self.drawn = 0  # groups handed out in this phase
        self.spent = 0  # rollouts handed out in this phase
        self.total = 0  # rollouts handed out in all
        self.rewards: list[float] = []  # mean reward of each of the last 2 x window steps of this phase
        self._order_key, self._order_M = (-1, -1), np.array([], dtype=np.int32)

    def step_rollouts(self) -> int:
        return self.rollouts[self._next_phase()]

    def next_groups(self, rollouts: int) -> Groups:
        if (phase := self._next_phase()) != self.phase:
            self.phase, self.drawn, self.spent, self.rewards = phase, 0, 0, []
        self.spent += rollouts
        self.total += rollouts
        return self.more_groups(self._sizes(rollouts))

    def more_groups(self, sizes: Sequence[int]) -> Groups:
        groups = [(self._prompt(self.drawn + i), size) for i, size in enumerate(sizes)]
        self.drawn += len(sizes)
        return groups

    def _sizes(self, rollouts: int) -> list[int]:
        phase = self.phases[self.phase]
        if phase.sizes_M is None:
            return split(rollouts, phase.group_size)
        coming = rollouts // int(phase.sizes_M.min()) + 1
        return pack([int(phase.sizes_M[self._place(self.drawn + i)]) for i in range(coming)], rollouts)

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
        gain = np.mean(self.rewards[-window:]) - np.mean(self.rewards[-2 * window : -window])
        return bool(gain < self.settings.min_gain)

    def _prompt(self, draw: int) -> int:
        """The ``draw``-th prompt of this phase: pass after pass, each in its own order, a function of the seed alone."""
        return int(self.phases[self.phase].prompts_M[self._place(draw)])

    def _place(self, draw: int) -> int:
        number, place = divmod(draw, len(self.phases[self.phase].prompts_M))
        return int(self._order(number)[place])

    def _order(self, number: int) -> np.ndarray:
        """Permutation of this phase's prompts in pass ``number``; kept until another is asked for."""
        number = number if self.shuffle else 0
        if self._order_key != (self.phase, number):
            # From 1 on: [s, p, 0] would be the stream of [s, p], from which the unsolved sample was drawn.
            rng = np.random.default_rng([self.seed, self.phase, 1 + number])
            self._order_key = (self.phase, number)
            prompts_M = self.phases[self.phase].prompts_M  # not in the order of the data: clusters one after another
            order_M = rng.permutation(len(prompts_M)) if self.shuffle else np.argsort(prompts_M, kind="stable")
            self._order_M = order_M.astype(np.int32)
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
        check_state(state, self.state_dict(), ("phase", "drawn", "spent", "total"))
        if wrong := _impossible(state, len(self.phases)):
            raise start_over(f"its sgpo state cannot be ({wrong})")
        self.phase, self.drawn, self.spent = state["phase"], state["drawn"], state["spent"]
        self.total, self.rewards = state["total"], list(state["rewards"])

    def metrics(self) -> dict[str, float]:
        return {"curriculum/phase": self.phase, "curriculum/progress": min(1.0, self.total / sum(self.budgets))}


def _impossible(state: Mapping[str, Any], phases: int) -> str:
    """What of a state no curriculum of that many phases can have written; "" if nothing."""
    if state["phase"] >= phases:
        return f"phase={state['phase']} of {phases}"
    if state["spent"] > state["total"]:
        return f"spent={state['spent']} of total={state['total']}"
    rewards = state["rewards"]
    if not isinstance(rewards, list) or not all(isinstance(r, int | float | np.floating) for r in rewards):
        return f"rewards={rewards!r:.60}"
    return "" if np.isfinite(np.array(rewards, float)).all() else "a reward that is not finite"
