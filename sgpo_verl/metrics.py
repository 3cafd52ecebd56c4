"""One step's groups and tokens -> the flat dict that is logged under ``sgpo/``; and the totals of a run.

Per step: group/*, rollouts/{generated,trained,padding}, tokens/{generated,trained}. Cumulative over the run, the profile
included, and carried through checkpoints: flops/*, rollouts/{profile,total}, tokens/total_trained, seconds/profile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from sgpo_verl.cost import ModelShape, StepTokens, generate_flops, step_flops
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Outcome
from sgpo_verl.profile import Profile


def group_metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of mixed, all-correct and all-wrong groups (they sum to 1), and the mean group size. Empty: {}."""
    if not outcomes:
        return {}
    kinds = [outcome.kind for outcome in outcomes]
    shares = {f"group/frac_{kind}": kinds.count(kind) / len(kinds) for kind in ("mixed", "all_correct", "all_wrong")}
    return {**shares, "group/size_mean": sum(o.size for o in outcomes) / len(outcomes)}


@dataclass
class Ledger:
    """Running totals. FLOPs, rollouts and tokens since the run began, the profile included."""

    flops_profile: float = 0.0
    flops_generate: float = 0.0
    flops_train: float = 0.0
    rollouts_profile: int = 0
    rollouts_generated: int = 0
    tokens_trained: float = 0.0
    seconds_profile: float = 0.0

    @classmethod
    def after_profile(cls, shape: ModelShape, profile: Profile) -> "Ledger":
        """The state before the first step: the profile's samples have been generated."""
        return cls(
            flops_profile=generate_flops(shape, profile.tokens()),
            rollouts_profile=profile.samples,
            seconds_profile=profile.metadata.seconds,
        )

    def add(self, shape: ModelShape, step: StepTokens, rollouts: int) -> None:
        """rollouts: sampled for ``step``; of several rows each where an agent loop has several outputs."""
        generate, train = step_flops(shape, step)
        self.flops_generate += generate
        self.flops_train += train
        self.rollouts_generated += rollouts
        self.tokens_trained += step.trained * step.epochs

    def metrics(self) -> dict[str, float]:
        return {
            "flops/profile": self.flops_profile,
            "flops/generate": self.flops_generate,
            "flops/train": self.flops_train,
            "flops/total": self.flops_profile + self.flops_generate + self.flops_train,
            "rollouts/profile": self.rollouts_profile,
            "rollouts/total": self.rollouts_profile + self.rollouts_generated,
            "tokens/total_trained": self.tokens_trained,
            "seconds/profile": self.seconds_profile,
        }

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise SgpoError(f"checkpoint: its sgpo totals are {state!r:.60}: start a new run from its weights")
        missing = [item.name for item in fields(self) if item.name not in state]
        if missing:
            raise SgpoError(
                f"checkpoint: lacks {', '.join(missing)} in its sgpo totals: start a new run from its weights"
            )
        wrong = [
            f"{item.name}={state[item.name]!r:.60}"
            for item in fields(self)
            if not _fits(state[item.name], item.type is int)
        ]
        if wrong:
            raise SgpoError(
                f"checkpoint: its sgpo totals cannot be ({', '.join(wrong)}): start a new run from its weights"
            )
        for item in fields(self):
            setattr(self, item.name, state[item.name])


def _fits(value: Any, whole: bool) -> bool:
    """Whether a value can be a total: a number that is not negative, and a whole one where it must be."""
    number: Any = Integral if whole else Real
    return isinstance(value, number) and not isinstance(value, bool) and 0 <= value < 1e300


@dataclass(frozen=True)
class StepRollouts:
    """generated: sampled. trained: of them, scored and updated on. padding: rows that verl added to fill up a batch."""

    generated: int = 0
    trained: int = 0
    padding: int = 0


class StepTotals:
    """What one training step generated and trained, over all its local updates (verl's parameter_sync_step of them)."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.tokens: list[StepTokens] = []
        self.rollouts: list[StepRollouts] = []

    def add(self, outcomes: Sequence[Outcome], tokens: StepTokens, rollouts: StepRollouts) -> None:
        self.outcomes += outcomes
        self.tokens.append(tokens)
        self.rollouts.append(rollouts)

    def metrics(self) -> dict[str, float]:
        counts = {
            f"rollouts/{item.name}": sum(getattr(r, item.name) for r in self.rollouts) for item in fields(StepRollouts)
        }
        return {
            **group_metrics(self.outcomes),
            **counts,
            "tokens/generated": sum(step.generated for step in self.tokens),
            "tokens/trained": sum(step.trained for step in self.tokens),
        }
