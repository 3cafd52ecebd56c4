"""A method of one's own, from a file or a package: ``sgpo.curriculum.order=custom``. How to write one: docs/add_a_method.md.

What it chooses is checked before anything is sampled, and its state is kept beside the plan's fingerprint, so that a run with
it holds its budget and resumes as any other does.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from sgpo_verl.config import CustomSettings
from sgpo_verl.errors import SgpoError
from sgpo_verl.extern import load_class
from sgpo_verl.methods.base import Chooser, Groups, Outcome, check_state, pack, split, start_over
from sgpo_verl.posterior import Posterior
from sgpo_verl.prompts import Keys


@dataclass(frozen=True)
class Known:
    """What a plan keeps of the prompts for a custom method, as in ``Context``."""

    keys_P: Keys
    trials_P: np.ndarray | None = None
    successes_P: np.ndarray | None = None


@dataclass(frozen=True)
class Context:
    """What a custom method is made from. Its arrays are to be read only.

    keys_P: key of every prompt of the data set; a prompt is named by its position in it, 0 to P - 1.
    prompts_M: int32, positions of those that may be drawn, after ``sgpo.filter``. sizes_P: int32, the rollouts that
    ``sgpo.allocation`` has for each of them; 0 for the others. size: where it has the same for all, that; else None.
    rollouts: of a step. total_rollouts: of the run. seed: ``sgpo.seed``.
    trials_P, successes_P: of the profile, int32; None where there is none.
    posterior: a_P, b_P of Beta(a, b), what is believed of every prompt's pass rate; moved and saved by the plugin.
    """

    keys_P: Keys = field(repr=False)
    prompts_M: np.ndarray = field(repr=False)
    sizes_P: np.ndarray = field(repr=False)
    size: int | None
    rollouts: int
    total_rollouts: int
    seed: int
    trials_P: np.ndarray | None = field(repr=False)
    successes_P: np.ndarray | None = field(repr=False)
    posterior: Posterior = field(repr=False)

    def groups(self, prompts: Sequence[int] | np.ndarray, rollouts: int) -> Groups:
        """Groups of the first of ``prompts`` (positions, the wanted ones first), with the sizes of ``sgpo.allocation``: they
        sum to exactly ``rollouts``. With one size for all, and fewer prompts than groups, it begins with the first again."""
        first = [int(prompt) for prompt in prompts[:rollouts]]
        if self.size is None:
            return list(zip(first, pack(self.sizes_P[first].tolist(), rollouts), strict=False))
        return [(first[i % len(first)], size) for i, size in enumerate(split(rollouts, self.size))]


class Custom:
    """The method in progress: the user's own, and what every method has.

    name: of ``sgpo.method``. custom: which class, and its kwargs. largest: rollouts that a group may have. size: where all
    groups of a step must have one size (``split``), that size; else None. fingerprint: as for ``Curriculum``.
    Raises SgpoError if the class cannot be had, or is no method.
    """

    def __init__(
        self,
        name: str,
        custom: CustomSettings,
        context: Context,
        largest: int,
        size: int | None,
        fingerprint: dict[str, Any],
    ):
        self.name, self.context, self.largest, self.size, self.fingerprint = name, context, largest, size, fingerprint
        self.own: Chooser = load_class(custom)(context, **custom.kwargs)
        self.label = custom.name
        self.total = 0  # rollouts handed out, refills apart
        self.may_be_drawn_P = np.zeros(len(context.keys_P), dtype=bool)
        self.may_be_drawn_P[context.prompts_M] = True

    def step_rollouts(self) -> int:
        return self.context.rollouts

    def next_groups(self, rollouts: int) -> Groups:
        call = f"{self.label}.next_groups({rollouts})"
        groups = self._checked(self.own.next_groups(rollouts), call)
        sizes = [size for _, size in groups]
        if sum(sizes) != rollouts:
            raise SgpoError(f"{call}: its {len(groups)} groups have {sum(sizes)} rollouts in all, not {rollouts}")
        if self.size is not None and sorted(sizes) != sorted(split(rollouts, self.size)):
            raise SgpoError(
                f"{call}: groups of {_few(sorted(set(sizes)))} rollouts; sgpo.filter.by=mixed and sgpo.allocation=rescue need "
                f"split({rollouts}, {self.size}), groups of {self.size}"
            )
        self.total += rollouts
        return groups

    def more_groups(self, sizes: Sequence[int]) -> Groups:
        call = f"{self.label}.more_groups({_few(sizes)})"
        groups = self._checked(self.own.more_groups(sizes), call)
        if [size for _, size in groups] != list(sizes):
            raise SgpoError(
                f"{call}: gave sizes {_few([size for _, size in groups])}; they must be those it was asked for"
            )
        return groups

    def _checked(self, groups: Any, call: str) -> Groups:
        """As ints. Raises SgpoError naming what is no (position, rollouts) of this run."""
        try:
            pairs = [(prompt, size) for prompt, size in groups]
        except (TypeError, ValueError):
            raise SgpoError(f"{call}: returned {groups!r:.60}, not a list of (position, rollouts)") from None
        for prompt, size in pairs:
            if wrong := self._wrong(prompt, size):
                raise SgpoError(f"{call}: {wrong}")
        return [(int(prompt), int(size)) for prompt, size in pairs]

    def _wrong(self, prompt: Any, size: Any) -> str:
        if not all(isinstance(value, Integral) and not isinstance(value, bool) for value in (prompt, size)):
            return f"({prompt!r:.40}, {size!r:.40}) is not a position and a number of rollouts"
        if not 0 <= prompt < len(self.may_be_drawn_P):
            return f"position {prompt} is outside the data, whose prompts are 0 to {len(self.may_be_drawn_P) - 1}"
        who = f"prompt {self.context.keys_P[prompt]} (position {prompt})"
        if not self.may_be_drawn_P[prompt]:
            return f"{who} is none of context.prompts_M: sgpo.filter left it out"
        if not 1 <= size <= self.largest:
            return (
                f"a group of {size} rollouts for {who}; it may have 1 to {self.largest}, those of an optimizer update"
            )
        return ""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self.own.observe(outcomes)

    def state_dict(self) -> dict[str, Any]:
        own = copy.deepcopy(self.own.state_dict())  # what it holds goes on changing
        return {"method": self.name, "fingerprint": self.fingerprint, "total": self.total, "own": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = {"method": self.name, "fingerprint": self.fingerprint, "total": 0, "own": {}}
        check_state(state, mine, ("total",))
        if not isinstance(state["own"], Mapping):
            raise start_over(f"its sgpo state cannot be (own={state['own']!r:.60})")
        self.own.load_state_dict(copy.deepcopy(dict(state["own"])))
        self.total = state["total"]

    def metrics(self) -> dict[str, float]:
        own = self.own.metrics()
        for name, value in own.items():
            if not isinstance(value, Real):
                raise SgpoError(f"{self.label}.metrics(): {name}={value!r:.60} is not a number")
        progress = min(1.0, self.total / self.context.total_rollouts)
        ours = {"curriculum/phase": 0, "curriculum/progress": progress}
        return ours | {f"custom/{name}": value for name, value in own.items()}


def _few(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:8]))
    return f"[{shown}, ...]" if len(values) > 8 else f"[{shown}]"
