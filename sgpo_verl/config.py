"""Settings under ``sgpo:``. This file is their only definition: names, types, defaults, bounds, meaning.

The defaults are the papers' where they give a value. Unknown keys and bad values are refused by name. A method is a
choice of parts (``parts.py``), each of which may be set on its own: an ablation is a list of overrides.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sgpo_verl.endpoints import base_url
from sgpo_verl.errors import SgpoError
from sgpo_verl.parts import filled, misfits

Prune = Literal[True, False, "force"]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation: Any = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation not in (bool, Prune):
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

    @field_validator("endpoints")
    @classmethod
    def _addresses(cls, endpoints: list[str] | None) -> list[str] | None:
        for url in endpoints or []:
            base_url(url)
        return endpoints

    @model_validator(mode="after")
    def _consistent(self) -> "ProfileSettings":
        if self.endpoints is not None and not self.endpoints:
            raise ValueError("endpoints is an empty list; name a URL, or null")
        if self.endpoints and self.sampler == "agent_loop":
            raise ValueError("sampler=agent_loop drives verl's own servers; it cannot use endpoints")
        if self.endpoint_model is not None and not self.endpoints:
            raise ValueError("endpoint_model is only read with endpoints")
        return self


class FilterSettings(_Node):
    """Which prompts are trained on."""

    by: Literal["profile", "mixed", "none"] = Field(
        "profile",
        description="profile: trivial prompts removed, unsolved ones sub-sampled; mixed: groups of equal rewards dropped, and "
        "others drawn in their place; none: all are trained on; null: the method's own.",
    )
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
    def _ordered(self) -> "GroupSizeSettings":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is larger than max ({self.max})")
        return self


class CustomSettings(_Node):
    """curriculum.order=custom: a class of your own chooses (docs/add_a_method.md). Named as verl's custom_reward_function."""

    path: str | None = Field(None, description="Of the Python file, or pkg://package.module of an installed one.")
    name: str | None = Field(None, description="Of the class in it.")
    kwargs: dict[str, Any] = Field({}, description="What its constructor gets beside the context.")


class CurriculumSettings(_Node):
    """In which order prompts are drawn."""

    order: Literal["phases", "shuffle", "greso", "posterior", "custom"] = Field(
        "phases",
        description="phases: one per group size, easy (small groups) to hard; shuffle: as stock GRPO; greso: shuffled, prompts "
        "skipped at random by their own past groups; posterior: by what is believed of them; custom: by a class of your own; "
        "null: the method's own.",
    )
    until: Literal["epochs", "steps", "plateau"] = Field("epochs", description="What ends a phase.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over a phase's prompts, where trainer.total_training_steps is null; null: trainer.total_epochs.",
    )
    steps: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, min_length=1, description="Steps of each phase, easy to hard, for until=steps."
    )
    window: int = Field(5, ge=1, description="until=plateau: steps averaged on either side of the comparison.")
    min_gain: float = Field(0.01, description="until=plateau: a phase ends when its mean reward gained less than this.")
    custom: CustomSettings = CustomSettings()

    @model_validator(mode="after")
    def _custom_is_whole(self) -> "CurriculumSettings":
        given = [name for name, value in self.custom.model_dump().items() if value]
        if self.order != "custom" and given:
            raise ValueError(f"custom.{given[0]} is only read with curriculum.order=custom, not {self.order}")
        if self.order == "custom" and not (self.custom.path and self.custom.name):
            raise ValueError(
                "order=custom needs curriculum.custom.path and curriculum.custom.name, of a class of yours"
            )
        return self


class GresoSettings(_Node):
    """curriculum.order=greso, and how filter.by=mixed draws prompts in place of dropped ones (arXiv 2506.02177)."""

    target: float = Field(0.25, ge=0, le=1, description="Share of groups of equal rewards that is aimed at.")
    easy_share: float = Field(1 / 3, ge=0, le=1, description="Of the target, the share of too easy prompts.")
    easy_reward: float = Field(
        0.98, description="A group of equal rewards of at least this is easy, one below it hard."
    )
    start: float = Field(
        0.5, gt=0, lt=1, description="Base probability, easy and hard, of drawing once more, at first."
    )
    step: float = Field(0.01, ge=0, lt=1, description="What it moves by after each step from the second epoch on.")
    least: float = Field(0.05, gt=0, lt=1, description="Its lower bound.")
    most: float = Field(0.95, gt=0, lt=1, description="Its upper bound.")
    explore: float = Field(
        0.01, ge=1e-4, le=1, description="A prompt is drawn at least this often when its turn comes."
    )
    refill_factor: float = Field(1.25, ge=1, description="Prompts drawn in place of dropped ones: over those expected.")
    refill_min: int | None = Field(
        None, ge=1, description="At least so many; null: a quarter of data.train_batch_size, as the authors' 64 of 256."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "GresoSettings":
        if not self.least <= self.start <= self.most:
            raise ValueError(f"start ({self.start}) is outside [least, most] = [{self.least}, {self.most}]")
        return self


class AeroSettings(_Node):
    """allocation=rescue and advantage=aero (arXiv 2602.14338)."""

    explore: int = Field(8, ge=2, description="Rollouts of every prompt.")
    wave: int = Field(2, ge=1, description="Added at a time while none has succeeded.")
    most: int = Field(16, ge=2, description="Rollouts of a prompt in all, at most.")
    keep: int = Field(
        4, ge=1, description="Of a group that is all correct, or all wrong after rescue: so many are trained on."
    )

    @model_validator(mode="after")
    def _ordered(self) -> "AeroSettings":
        if self.most < self.explore:
            raise ValueError(f"most ({self.most}) is smaller than explore ({self.explore})")
        return self


class PosteriorSettings(_Node):
    """What is believed of every prompt's pass rate, Beta(a, b): allocation, curriculum or advantage = posterior,
    advantage = rare, curriculum = custom."""

    successes: float = Field(1.0, ge=1e-6, le=1e6, description="a of a prompt of which nothing is known.")
    failures: float = Field(1.0, ge=1e-6, le=1e6, description="b of a prompt of which nothing is known.")
    profile_weight: float = Field(
        0.5, ge=0, le=1, description="What a sample of sgpo.profile.path counts as, in rollouts."
    )
    memory: float = Field(0.7, ge=0, le=1, description="Share of the old evidence that stays when new comes.")
    strength: float = Field(
        4.0, ge=1e-6, description="advantage=posterior or rare: a + b are scaled down to this at most."
    )
    temperature: float = Field(
        0.05, ge=0, description="Noise in the choice of prompts, beyond a draw from the posterior."
    )
    length_price: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Signal that a rollout of mean length must bring to be worth drawing; longer ones, more.",
    )


class BatchSettings(_Node):
    """What a training step holds."""

    unit: Literal["rollouts", "prompts"] = Field(
        "rollouts", description="rollouts: an exact number of rollouts; prompts: data.train_batch_size prompts."
    )
    rollouts: int | None = Field(
        None,
        ge=1,
        lt=2**31,
        description="Rollouts per step; null: data.train_batch_size x actor_rollout_ref.rollout.n.",
    )


class Settings(_Node):
    """Everything under ``sgpo:``."""

    method: Literal["paper", "prune", "greso", "aero", "bayes"] = Field(
        "paper",
        description="paper: sGPO as published; prune: GRPO without the rows that teach nothing; greso, aero: as published; "
        "bayes: prompts and group sizes by a posterior.",
    )
    allocation: Literal["profile", "uniform", "posterior", "rescue"] = Field(
        "profile",
        description="Rollouts per prompt. profile: 1 / pass rate; uniform: actor_rollout_ref.rollout.n; posterior: where one "
        "more is expected to teach most; rescue: more while none succeeds; null: the method's own.",
    )
    advantage: Literal["grpo", "posterior", "rare", "aero"] = Field(
        "grpo",
        description="grpo: against the group's mean; posterior: against what was expected of the prompt; rare: only the "
        "outcome that was not expected of the prompt has one; aero: against the posterior mean where a group is all the same; "
        "null: the method's own.",
    )
    seed: int = Field(0, ge=0, description="Of every random choice made here: profile samples, sub-sampling, order.")
    success_threshold: float = Field(
        0.5,
        description="A rollout succeeds if the reward function's acc, or its score where it has none, is at least this.",
    )
    prune: Prune = Field(
        False,
        description="Leave rows without advantage out of log-probs and update; the gradient stays. force: even where a KL loss "
        "or an entropy bonus would have moved them; null: the method's own.",
    )
    train_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Expected share of rows that are trained on: drawn in proportion to |advantage|, weighted by the inverse.",
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
    greso: GresoSettings = GresoSettings()
    aero: AeroSettings = AeroSettings()
    posterior: PosteriorSettings = PosteriorSettings()

    @property
    def needs_profile(self) -> bool:
        return "profile" in (self.filter.by, self.allocation) or self.curriculum.order == "phases"

    @property
    def needs_posterior(self) -> bool:
        return (
            "posterior" in (self.allocation, self.curriculum.order)
            or self.curriculum.order == "custom"
            or self.advantage in ("posterior", "rare")
        )

    @property
    def chooses_rows(self) -> bool:
        """Whether advantages are settled right after sampling, before any row is scored."""
        return bool(self.prune) or self.advantage != "grpo" or self.train_fraction < 1

    @model_validator(mode="before")
    @classmethod
    def _parts_of_the_method(cls, node: Any) -> Any:
        return filled(node) if isinstance(node, Mapping) else node

    @model_validator(mode="after")
    def _parts_fit(self) -> "Settings":
        for wrong, reason in misfits(self):
            if wrong:
                raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
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
