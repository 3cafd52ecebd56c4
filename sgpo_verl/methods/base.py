"""What every method is: a stateful chooser of (prompt, rollouts) with five verbs.

next -> rollouts -> observe -> next -> ...        state_dict / load_state_dict at checkpoints        metrics when logged
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Groups = list[tuple[int, int]]  # (the prompt's position in the plan, number of rollouts)


@dataclass(frozen=True)
class Outcome:
    """What became of one group: its prompt's position, its size G, how many rollouts succeeded, their mean reward."""

    prompt: int
    size: int
    successes: int
    reward_mean: float

    @property
    def kind(self) -> str:
        """ "mixed", "all_correct" or "all_wrong"."""
        if self.successes == 0:
            return "all_wrong"
        return "all_correct" if self.successes == self.size else "mixed"


class Method(Protocol):
    """The interface of ``methods/*.py``. State must survive a round trip through state_dict exactly."""

    def group_size(self, refill: bool = False) -> int:
        """Size of the groups that ``next_groups`` would hand out."""
        ...

    def next_groups(self, rollouts: int, refill: bool = False) -> Groups:
        """Groups whose sizes sum to exactly ``rollouts``. refill: in place of groups of this step that failed."""
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from the groups of one training step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data (json types), enough to go on after a crash as if there had been none."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore. Raises SgpoError naming what differs if the state belongs to another method, plan or data."""
        ...

    def metrics(self) -> dict[str, float]:
        """What to log beside the counts, keys without the ``sgpo/`` prefix."""
        ...
