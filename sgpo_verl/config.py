"""Settings under ``sgpo:``. This file is their only definition: names, types, defaults, bounds, meaning.

The defaults are the paper's (arXiv 2606.08854) where it gives a value. Unknown keys and bad values are refused by name.
"""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sgpo_verl.errors import SgpoError

Prune = Literal[True, False, "force"]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in (bool, Prune):
            raise PydanticCustomError("bool", "true and false are no value for this")
        return value


class ProfileSettings(_Node):
    """How the pass rate of every prompt is measured, once, under the initial policy."""

    path: str | None = Field(None, description="Profile to train from; null: profile first, then train.")
    n: int = Field(8, ge=1, lt=2**20, description="Samples per prompt.")
    allow_mismatch: bool = Field(False, description="Train although the profile is of another model, data or reward.")
    max_in_flight: int = Field(64, ge=1, description="Prompts sent to each server at a time.")
    sampler: Literal["auto", "completions", "agent_loop"] = Field(
        "auto",
        description="completions: one request per prompt asks for all its samples; agent_loop: verl's own agent loops, one "
        "by one; auto: completions, and agent_loop where tools, turns, images or the engine need it.",
    )
    adaptive: bool = Field(
        False, description="Spend n x prompts samples where the class is uncertain, not n on every prompt."
    )
    max_failed_frac: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of prompts that may fail (too long, reward error, time-out) before it stops.",
    )
    timeout: float = Field(1800.0, gt=0, description="Seconds that sampling a prompt, or scoring it, may take.")
    endpoints: list[str] | None = Field(
        None, description="URLs of OpenAI-compatible servers to sample from; null: verl's own, started for the pass."
    )
    endpoint_model: str | None = Field(
        None, description="The model's name at the endpoints; null: the only one served."
    )

    @model_validator(mode="after")
    def _consistent(self):
        if self.endpoints is not None and not self.endpoints:
            raise ValueError("endpoints is an empty list; name a URL, or null")
        if self.endpoints and self.sampler == "agent_loop":
            raise ValueError("sampler=agent_loop drives verl's own servers; it cannot use endpoints")
        if self.endpoint_model is not None and not self.endpoints:
            raise ValueError("endpoint_model is only read with endpoints")
        return self


class FilterSettings(_Node):
    """Which prompts are trained on (paper: trivial removed, unsolved sub-sampled)."""

    max_pass_rate: float = Field(0.75, ge=0, le=1, description="Prompts solved more often than this are removed.")
    unsolved_fraction: float = Field(0.1, ge=0, le=1, description="Share of never-solved prompts drawn per phase.")


class GroupSizeSettings(_Node):
    """Rollouts per prompt: 1 / pass rate, rounded, clipped to [min, max]."""

    min: int = Field(2, ge=1, description="Smallest group.")
    max: int = Field(8, ge=1, le=2**31, description="Largest group.")
    rounding: Literal["floor", "nearest", "ceil", "none"] = Field(
        "floor", description="Of log2(1 / pass rate), to a power of two; none: 1 / pass rate rounded up to an integer."
    )

    @model_validator(mode="after")
    def _ordered(self):
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        return self


class CurriculumSettings(_Node):
    """In which order: one phase per group size, easy (small groups) to hard (large groups)."""

    until: Literal["epochs", "steps", "plateau"] = Field("epochs", description="What ends a phase.")
    epochs: int = Field(
        1, ge=1, description="Passes over a phase's prompts, where trainer.total_training_steps is null."
    )
    steps: list[int] | None = Field(None, description="Steps of each phase, easy to hard, for until=steps.")
    window: int = Field(5, ge=1, description="until=plateau: steps averaged on either side of the comparison.")
    min_gain: float = Field(0.01, description="until=plateau: a phase ends when its mean reward gained less than this.")


class BatchSettings(_Node):
    """What a training step holds."""

    unit: Literal["rollouts", "prompts"] = Field(
        "rollouts", description="rollouts: an exact number of rollouts; prompts: data.train_batch_size prompts."
    )
    rollouts: int | None = Field(
        None, ge=1, description="Rollouts per step; null: data.train_batch_size x actor_rollout_ref.rollout.n."
    )


class Settings(_Node):
    """Everything under ``sgpo:``."""

    method: Literal["paper"] = Field("paper", description="paper: sGPO as published.")
    seed: int = Field(0, ge=0, description="Of every random choice made here: profile samples, sub-sampling, order.")
    success_threshold: float = Field(
        0.5,
        description="A rollout succeeds if the reward function's acc, or its score where it has none, is at least this.",
    )
    prune: Prune = Field(
        False,
        description="Leave rows without advantage out of log-probs and update; the gradient stays. force: even where a KL loss "
        "or an entropy bonus would have moved them.",
    )
    graded_rewards: bool = Field(False, description="Accept scores other than 0 and 1; success is by the threshold.")
    duplicates: Literal["error", "first"] = Field(
        "error", description="Rows that are the same prompt: refuse, or keep one."
    )
    profile: ProfileSettings = ProfileSettings()
    filter: FilterSettings = FilterSettings()
    group_size: GroupSizeSettings = GroupSizeSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    batch: BatchSettings = BatchSettings()

    @model_validator(mode="after")
    def _consistent(self):
        if self.curriculum.steps is not None and self.curriculum.until != "steps":
            raise ValueError("curriculum.steps is only read with curriculum.until=steps")
        if self.curriculum.steps is None and self.curriculum.until == "steps":
            raise ValueError("curriculum.until=steps needs curriculum.steps")
        if self.batch.rollouts is not None and self.batch.unit != "rollouts":
            raise ValueError("batch.rollouts is only read with batch.unit=rollouts")
        return self


def load_settings(node: Mapping[str, Any]) -> Settings:
    """Settings from the resolved ``sgpo:`` node (a plain dict). Raises SgpoError naming each bad key and the way out."""
    try:
        return Settings.model_validate(dict(node) if isinstance(node, Mapping) else node)
    except ValidationError as error:
        raise SgpoError("; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Mapping[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(["sgpo", *path])
    if item["type"] == "value_error":  # ours, of settings that contradict each other
        return f"{key}: {item['ctx']['error']}"
    if item["type"] != "extra_forbidden":
        return f"{key}={item['input']!r}: {item['msg']}"
    known = _keys_at(path[:-1])
    close = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean sgpo.{'.'.join([*path[:-1], close[0]])}?" if close else f"known here: {', '.join(known)}"
    return f"{key}: no such setting; {hint}"


def _keys_at(path: list[str]) -> list[str]:
    node: type[BaseModel] = Settings
    for part in path:
        node = node.model_fields[part].annotation  # type: ignore[assignment]
    return list(node.model_fields)
