"""What every method is: a stateful chooser of (prompt, rollouts) with five verbs.

next -> rollouts -> observe -> next -> ...        state_dict / load_state_dict at checkpoints        metrics when logged
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sgpo_verl.errors import SgpoError

Groups = list[tuple[int, int]]  # (the prompt's position in the plan, number of rollouts)


@dataclass(frozen=True)
class Outcome:
    """What became of one group: its prompt's position, its size G, how many rollouts succeeded, their mean reward.

    tokens: of prompt and response of a rollout, on average. equal: whether all its rewards are; None: as its successes say.
    """

    prompt: int
    size: int
    successes: int
    reward_mean: float
    tokens: float = 0.0
    equal: bool | None = None

    @property
    def kind(self) -> str:
        """ "mixed", "all_correct" or "all_wrong"."""
        if self.successes == 0:
            return "all_wrong"
        return "all_correct" if self.successes == self.size else "mixed"

    @property
    def zero_variance(self) -> bool:
        """Whether it gives every rollout a group-relative advantage of zero."""
        return self.kind != "mixed" if self.equal is None else self.equal


class Chooser(Protocol):
    """What a method of one's own has (``methods/custom.py``). State must survive a round trip through state_dict exactly."""

    def next_groups(self, rollouts: int) -> Groups:
        """Groups of a step, whose sizes sum to exactly ``rollouts``."""
        ...

    def more_groups(self, sizes: Sequence[int]) -> Groups:
        """Groups of exactly these sizes, in place of some of this step that failed or were dropped."""
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from the groups of one training step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data (json types and numpy arrays), enough to go on after a crash as if there had been none."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore. Raises SgpoError naming what differs if the state belongs to another method, plan or data."""
        ...

    def metrics(self) -> dict[str, float]:
        """What to log beside the counts, keys without the ``sgpo/`` prefix."""
        ...


class Method(Chooser, Protocol):
    """The interface of ``methods/*.py``."""

    def step_rollouts(self) -> int:
        """What the next step is to ask ``next_groups`` for."""
        ...


def split(rollouts: int, size: int) -> list[int]:
    """Sizes of as many groups of ``size`` as fit in ``rollouts``, at least one; the remainder is dealt out one by one.

    So the sum is exact: split(16, 8) = [8, 8]; split(17, 8) = [9, 8]; split(4, 8) = [4], in place of a smaller group that
    failed. Both are at least 1.
    """
    groups = max(1, rollouts // size)
    base, extra = divmod(rollouts, groups)
    return [base + (i < extra) for i in range(groups)]


def pack(sizes_M: Sequence[int], rollouts: int) -> list[int]:
    """Of prompts in their order, with the group sizes that they want: sizes of the first few, whose sum is ``rollouts``.

    Whole groups as long as they fit. What is left is the next prompt's, if it is 2 or more, else added to the last group's;
    where there is no next prompt it is dealt out one by one, from the last group on:
    pack([2, 8, 4], 12) = [2, 8, 2]; pack([2, 8, 4], 11) = [2, 9]; pack([8], 4) = [4]; pack([2, 4], 9) = [3, 6].
    """
    packed: list[int] = []
    left = rollouts
    for size in sizes_M:
        if size > left:
            break
        packed.append(int(size))
        left -= int(size)
    if (left >= 2 and len(packed) < len(sizes_M)) or not packed:
        return [*packed, left]
    for i in range(left):
        packed[-1 - i % len(packed)] += 1
    return packed


def start_over(problem: str) -> SgpoError:
    """A checkpoint whose state no run of ours can have written."""
    return SgpoError(f"checkpoint: {problem}: start a new run from its weights")


def check_state(
    state: Any, mine: Mapping[str, Any], counters: Sequence[str] = (), what: str = "sgpo state"
) -> Mapping[str, Any]:
    """Refuse a state that is not this run's. mine: the state of this run, as it begins. counters: keys of whole numbers.

    Raises SgpoError naming the method, the missing keys, the impossible value or the differences of the fingerprint.
    """
    method = state.get("method") if isinstance(state, Mapping) else state
    if method != mine["method"]:
        raise SgpoError(f"checkpoint: written by sgpo.method={method!r:.60}, this run is {mine['method']!r}")
    if missing := sorted(mine.keys() - state.keys()):
        raise start_over(f"lacks {', '.join(missing)} in its {what}")
    for name in counters:
        value = state[name]
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise start_over(f"its {what} cannot be ({name}={value!r:.60})")
    theirs, ours = state["fingerprint"], mine["fingerprint"]
    if not isinstance(theirs, Mapping):
        raise start_over(f"its {what} cannot be (fingerprint={theirs!r:.60})")
    if differ := sorted((k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)), key=str):
        differences = "; ".join(f"{k}: checkpoint {theirs.get(k)!r}, run {ours.get(k)!r}" for k in differ)
        raise SgpoError(
            f"checkpoint: its plan is not this run's ({differences}): restore the setting, or start a new run"
        )
    return state


def check_array(state: Mapping[str, Any], name: str, like: np.ndarray, least: float, most: float) -> np.ndarray:
    """A copy of an array of a state, of the shape and type of ``like``. Raises SgpoError if it is no such array."""
    value = state.get(name) if isinstance(state, Mapping) else None
    if not isinstance(value, np.ndarray) or value.shape != like.shape or value.dtype != like.dtype:
        raise start_over(f"its sgpo state cannot be ({name} is no {like.dtype} of shape {like.shape})")
    if not ((value >= least) & (value <= most)).all():
        raise start_over(f"its sgpo state cannot be ({name} is not within [{least:g}, {most:g}])")
    return value.copy()
