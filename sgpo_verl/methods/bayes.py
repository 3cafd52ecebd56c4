"""Ours, beyond the papers: prompts, and how many rollouts each gets, by what is believed of every prompt's pass rate.

How it differs from sGPO: the profile is evidence, not a verdict, and may be missing. Every rollout moves a Beta posterior
(``posterior.py``); nothing is removed for ever, mastered prompts fade and unsolved ones return as the policy moves. The order
easy to hard is not prescribed: it emerges.

A step:  p ~ Beta(a, b) for every prompt (Thompson 1933)  ->  a rollout for each of those where p (1 - p) is largest, for the
exact budget (``allocation.py``)  ->  only outcomes that were not expected of their prompt have an advantage
(``advantage.rare``)  ->  the others are not trained on (``sgpo.prune``): they cost their generation, a fifth of a trained row.

No groups: what a group would tell of a prompt, its posterior knows. With ``sgpo.advantage=grpo`` there are groups again, of the
sizes in ``sgpo.group_size``, where they are most likely to be mixed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sgpo_verl.allocation import Gain, allocate, mixed
from sgpo_verl.config import GroupSizeSettings, PosteriorSettings
from sgpo_verl.methods.base import Groups, Outcome, check_state, pack
from sgpo_verl.methods.curriculum import Phase
from sgpo_verl.posterior import Posterior


class Bayes:
    """The choice in progress. The posterior is kept, observed and saved by its owner, not here.

    phase: who may be drawn, with group_size (or sizes_M) where ``sizes`` is None. sizes: bounds of group sizes that are
    chosen here. gain: what rollouts of a prompt are expected to teach. rollouts, total_rollouts, seed, fingerprint: as for
    ``Greso``.
    """

    def __init__(
        self,
        name: str,
        phase: Phase,
        posterior: Posterior,
        sizes: GroupSizeSettings | None,
        rollouts: int,
        total_rollouts: int,
        settings: PosteriorSettings,
        gain: Gain,
        seed: int,
        fingerprint: dict[str, Any],
    ):
        self.name, self.phase, self.posterior, self.sizes = name, phase, posterior, sizes
        self.rollouts, self.total_rollouts = rollouts, total_rollouts
        self.settings, self.gain, self.seed, self.fingerprint = settings, gain, seed, fingerprint
        self.draws = 0  # times that groups were asked for
        self.total = 0  # rollouts handed out, refills apart

    def step_rollouts(self) -> int:
        return self.rollouts

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(a pass rate from each posterior, a weight by chance), float64 (M,): anew at every call."""
        rng = np.random.default_rng([self.seed, 0, self.draws])
        self.draws += 1
        p_M = self.posterior.draw(self.phase.prompts_M, rng)
        return p_M, np.exp(self.settings.temperature * rng.gumbel(size=len(p_M)))

    def more_groups(self, sizes: Sequence[int]) -> Groups:
        p_M, weight_M = self._draw()
        best_M = np.argsort(-weight_M * mixed(p_M, 2), kind="stable")
        return [(int(self.phase.prompts_M[best_M[i % len(best_M)]]), size) for i, size in enumerate(sizes)]

    def next_groups(self, rollouts: int) -> Groups:
        prompts_M = self.phase.prompts_M
        p_M, weight_M = self._draw()
        sizes: Sequence[int] | np.ndarray
        if self.sizes is not None:
            places, sizes = allocate(
                p_M, rollouts, self.sizes.min, self.sizes.max, weight_M, self._price(prompts_M), self.gain
            )
        else:
            places, sizes = self._fixed_sizes(weight_M * mixed(p_M, 2), rollouts)
        self.total += rollouts
        return list(zip(prompts_M[places].tolist(), [int(size) for size in sizes], strict=True))

    def _price(self, prompts_M: np.ndarray) -> np.ndarray | None:
        """What a rollout of each must bring: length_price x its length / the mean of those known; the mean if not known."""
        if not self.settings.length_price:
            return None
        tokens_M = self.posterior.tokens_P[prompts_M]
        known_M = tokens_M > 0
        mean = tokens_M[known_M].mean() if known_M.any() else 1.0
        return self.settings.length_price * np.where(known_M, tokens_M / mean, 1.0)

    def _fixed_sizes(self, gain_M: np.ndarray, rollouts: int) -> tuple[np.ndarray, list[int]]:
        sizes_M, members = self.phase.sizes_M, len(gain_M)
        smallest = self.phase.group_size if sizes_M is None else int(sizes_M.min())
        most = min(members, rollouts // smallest + 1)
        best_K = np.argpartition(-gain_M, most - 1)[:most]
        best_K = best_K[np.argsort(-gain_M[best_K], kind="stable")]
        if sizes_M is not None:
            sizes = pack(sizes_M[best_K].tolist(), rollouts)
        else:
            groups = min(members, max(1, rollouts // self.phase.group_size))
            sizes = [rollouts // groups + (i < rollouts % groups) for i in range(groups)]
        return best_K[: len(sizes)], sizes

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        pass  # the posterior learns

    def state_dict(self) -> dict[str, Any]:
        return {"method": self.name, "fingerprint": self.fingerprint, "draws": self.draws, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(state, self.state_dict(), ("draws", "total"))
        self.draws, self.total = state["draws"], state["total"]

    def metrics(self) -> dict[str, float]:
        return {"curriculum/phase": 0, "curriculum/progress": min(1.0, self.total / self.total_rollouts)}
