"""GRESO (arXiv 2506.02177): a prompt whose last groups taught nothing is drawn again only now and then.

How it differs from GRPO: when a prompt's turn comes, it is skipped with a probability that grows with z, the number of its
most recent groups in a row whose rewards were all equal and of the same kind, too easy or too hard:

    P(drawn) = max(p^z, explore)        p = p_easy or p_hard, by the kind; z = 0: always; a group with signal sets z = 0

The two base probabilities follow the share of such groups that is seen: at or above its target, fewer are drawn.
Groups of equal rewards are dropped and others drawn in their place until the step is full (``filter=mixed``, ``refill``).

Our reading: easy is a mean reward of 0.98 or more, hard is no success; the authors' code has a group size of 8 and a reward of
0.1 written into these rules. A step's share is over all its groups, dropped ones included.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sgpo_verl.config import GresoSettings
from sgpo_verl.methods.base import Groups, Outcome, check_array, check_state, split, start_over
from sgpo_verl.methods.curriculum import Phase

CHUNK = 4096  # turns looked at together
LONGEST = np.iinfo(np.int16).max


def draw_probability(z_P: np.ndarray, p_easy: float, p_hard: float, explore: float) -> np.ndarray:
    """P(drawn) = max(p^|z|, explore), float64 (P,). z_P: length of the run, positive: easy, negative: hard, 0: 1."""
    base_P = np.where(z_P > 0, p_easy, p_hard)
    return np.where(z_P == 0, 1.0, np.maximum(base_P ** np.abs(z_P.astype(np.int64)), explore))


def next_run(z: int, outcome: Outcome, easy_reward: float) -> int:
    """The run after one more group: one longer, begun anew, or over. Signed as in ``draw_probability``."""
    if not outcome.zero_variance:
        return 0
    if outcome.reward_mean >= easy_reward:
        return min(max(z, 0) + 1, LONGEST)
    if outcome.successes == 0:
        return max(min(z, 0) - 1, -LONGEST)
    return 0


def moved(p: float, share: float, target: float, settings: GresoSettings) -> float:
    """The base probability after a step: down by ``step`` if the share is at or above its target, else up; clamped."""
    # 2 of 12 is at a target of 1/4 x 2/3, though not to the last bit.
    p += -settings.step if share >= target - 1e-9 else settings.step
    return min(max(p, settings.least), settings.most)


def refill(missing: int, zero_variance: float, most: int, settings: GresoSettings) -> int:
    """Prompts to draw in place of dropped ones: min(most, factor x missing / (1 - share)), at least the floor.

    missing: groups that the step lacks. zero_variance: share of dropped groups so far. most: data.train_batch_size.
    With factor 1.25, most 256, floor 64: refill(100, 0.5) = 250; refill(10, 0.5) = 64; refill(10, 1.0) = 256.
    """
    floor = settings.refill_min or -(-most // 4)
    expected = settings.refill_factor * missing / (1 - zero_variance) if zero_variance < 1 else math.inf
    return max(1, min(most, max(floor, math.ceil(min(expected, most)))))


class Greso:
    """The choice in progress. phase: who is drawn. rollouts: per step. total_rollouts: of the whole run.

    prompts: P, of the whole plan. The rest as for ``Curriculum``.
    """

    def __init__(
        self,
        name: str,
        phase: Phase,
        prompts: int,
        rollouts: int,
        total_rollouts: int,
        settings: GresoSettings,
        seed: int,
        fingerprint: dict[str, Any],
        shuffle: bool = True,
    ):
        self.name, self.phase, self.rollouts, self.total_rollouts = name, phase, rollouts, total_rollouts
        self.settings, self.seed, self.fingerprint, self.shuffle = settings, seed, fingerprint, shuffle
        self.turn = 0  # turns taken: prompts drawn or skipped
        self.drawn = 0
        self.total = 0  # rollouts handed out, refills apart
        self.p_easy = self.p_hard = settings.start
        self.run_P = np.zeros(prompts, dtype=np.int16)
        self._pass, self._order_M, self._luck_M = -1, np.array([], dtype=np.int32), np.array([])

    def step_rollouts(self) -> int:
        return self.rollouts

    def next_groups(self, rollouts: int) -> Groups:
        self.total += rollouts
        return self.more_groups(split(rollouts, self.phase.group_size))

    def more_groups(self, sizes: Sequence[int]) -> Groups:
        groups = list(zip(self._next_prompts(len(sizes)), sizes, strict=True))
        self.drawn += len(groups)
        return groups

    def _next_prompts(self, count: int) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < count:
            place = self._begin_pass()
            prompts_C = self.phase.prompts_M[self._order_M[place : place + CHUNK]]
            chance_C = draw_probability(self.run_P[prompts_C], self.p_easy, self.p_hard, self.settings.explore)
            taken_C = np.flatnonzero(self._luck_M[place : place + CHUNK] < chance_C)[: count - len(chosen)]
            chosen += prompts_C[taken_C].tolist()
            self.turn += int(taken_C[-1]) + 1 if len(chosen) == count else len(prompts_C)
        return chosen

    def _begin_pass(self) -> int:
        """The place of the next turn in its pass, whose order and luck are a function of the seed and its number."""
        members = len(self.phase.prompts_M)
        number, place = divmod(self.turn, members)
        if number != self._pass:
            rng = np.random.default_rng([self.seed, 0, 1 + number])
            order_M = rng.permutation(members)
            if not self.shuffle:
                order_M = np.argsort(self.phase.prompts_M, kind="stable")
            self._order_M = order_M.astype(np.int32)
            self._luck_M, self._pass = rng.random(members), number
        return place

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        easy = hard = 0
        for outcome in outcomes:
            run = next_run(int(self.run_P[outcome.prompt]), outcome, self.settings.easy_reward)
            self.run_P[outcome.prompt] = run
            easy, hard = easy + (run > 0), hard + (run < 0)
        if outcomes and self.turn > len(self.phase.prompts_M):
            target, share = self.settings.target, self.settings.easy_share
            self.p_easy = moved(self.p_easy, easy / len(outcomes), target * share, self.settings)
            self.p_hard = moved(self.p_hard, hard / len(outcomes), target * (1 - share), self.settings)

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": self.name,
            "fingerprint": self.fingerprint,
            "turn": self.turn,
            "drawn": self.drawn,
            "total": self.total,
            "p_easy": self.p_easy,
            "p_hard": self.p_hard,
            "run_P": self.run_P.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, self.state_dict(), ("turn", "drawn", "total"))
        if state["drawn"] > state["turn"]:
            raise start_over(f"its sgpo state cannot be (drawn={state['drawn']} of turn={state['turn']})")
        for name in ("p_easy", "p_hard"):
            value = state[name]
            if not isinstance(value, float) or not self.settings.least <= value <= self.settings.most:
                raise start_over(f"its sgpo state cannot be ({name}={value!r:.60})")
        self.run_P = check_array(state, "run_P", self.run_P, -LONGEST, LONGEST)
        self.turn, self.drawn, self.total = state["turn"], state["drawn"], state["total"]
        self.p_easy, self.p_hard = state["p_easy"], state["p_hard"]

    def metrics(self) -> dict[str, float]:
        return {
            "curriculum/phase": 0,
            "curriculum/progress": min(1.0, self.total / self.total_rollouts),
            "greso/p_easy": self.p_easy,
            "greso/p_hard": self.p_hard,
            "greso/frac_skipped": 1 - self.drawn / self.turn if self.turn else 0.0,
        }
