"""A benchmark as a file: what is shared, what each method adds, which seeds. Unknown keys and bad values are refused by name.

    name: sort-cpu
    seeds: [0, 1, 2]
    baseline: grpo
    task: {name: sort, steps: 1000}
    common: [+runtime=cpu, data.train_batch_size=8, ...]
    methods:
      grpo: []
      paper: [+sgpo=paper]

Every override is one that ``python -m verl.trainer.main_ppo`` takes. In it, {seed} stands for the run's seed, {dir} for its
folder and {bench} for the benchmark's.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from sgpo_verl.errors import SgpoError

RESERVED = ("tune", "task")  # folders beside those of the methods


def _name(text: str) -> str:
    if not text or not all(c.isalnum() or c in "._-" for c in text) or text.startswith("."):
        raise ValueError("it names a folder: use letters, digits, dot, dash and underscore")
    return text


def _override(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{text!r} is no Hydra override: write key=value, in quotes if YAML reads it as something else"
        )
    if not text.startswith(("--", "~")) and "=" not in text:
        raise ValueError(f"{text!r} is no Hydra override: write key=value")
    return text


def _texts(node: Any) -> Any:
    """YAML reads 32 and 1e-4 as numbers; as names, and in the environment, they are texts."""
    if not isinstance(node, Mapping):
        return node
    plain = {str(key): value for key, value in node.items()}
    return {k: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v for k, v in plain.items()}


Name = Annotated[str, AfterValidator(_name)]
Overrides = list[Annotated[str, BeforeValidator(_override)]]
Choices = Annotated[dict[Name, Overrides], BeforeValidator(_texts)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskSpec(_Node):
    """A built-in task: its data and base model are made on the spot, its reward is set. ``sgpo_verl/demo`` has them."""

    name: Literal["double", "sort", "sort_long"] = Field(description="What is learned.")
    model: Literal["0.6M", "85M"] = Field("0.6M", description="Parameters of the base model.")
    seed: int = Field(0, ge=0, description="Of data and base model: one of each for all runs.")
    steps: int = Field(600, ge=1, description="Of training the base model from scratch.")
    prompts: int | None = Field(None, ge=8, description="In the training pool; null: the task's own.")
    validation: int | None = Field(None, ge=1, description="Held-out prompts; null: the task's own.")


class Spec(_Node):
    """The whole file."""

    name: Name = Field(description="Of the benchmark: title of its page, project in verl's trackers.")
    seeds: list[Seed] = Field(min_length=1, description="One run of every method with each.")
    baseline: Name = Field(description="The method that the others are held against.")
    common: Overrides = Field(description="Overrides shared by all: model, data, reward, batch, rate, validation.")
    methods: Choices = Field(min_length=1, description="Method: what it adds to the common overrides.")
    tune: Annotated[dict[str, Choices], BeforeValidator(_texts)] = Field(
        {}, description="Axis: option: overrides. All combinations are run with the baseline; the best is used for all."
    )  # fmt: skip
    tune_seeds: int = Field(
        1, ge=1, description="How many of the seeds, from the first on, each combination is run with."
    )
    task: TaskSpec | None = Field(None, description="A built-in task, in place of data and model of one's own.")
    env: Annotated[dict[str, str], BeforeValidator(_texts)] = Field({}, description="Environment of every run.")
    metric: str | None = Field(None, description="Validation metric; null: verl's val-core accuracy.")

    @model_validator(mode="after")
    def _consistent(self) -> "Spec":
        if self.baseline not in self.methods:
            raise ValueError(f"baseline: {self.baseline} is none of the methods ({', '.join(self.methods)})")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} names one twice")
        if taken := [name for name in self.methods if name in RESERVED]:
            raise ValueError(f"methods: {taken[0]} is the name of a folder of the benchmark's own; choose another")
        if self.tune_seeds > len(self.seeds):
            raise ValueError(f"tune_seeds: {self.tune_seeds} is more than the {len(self.seeds)} seeds")
        if empty := [axis for axis, options in self.tune.items() if not options]:
            raise ValueError(f"tune.{empty[0]}: names no option")
        return self


def load_spec(path: Path) -> Spec:
    """The file, checked. Raises SgpoError naming file, key and the way out."""
    try:
        node = OmegaConf.to_container(OmegaConf.load(path))  # refuses a key that is there twice
    except FileNotFoundError:
        raise SgpoError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise SgpoError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(node, dict):
        raise SgpoError(f"{path}: must be a mapping with {', '.join(Spec.model_fields)}")
    try:
        return Spec.model_validate(node)
    except ValidationError as error:
        raise SgpoError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Mapping[str, Any]) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "missing":
        return f"{key}: is missing"
    if item["type"] == "value_error":  # ours
        return f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
    if item["type"] != "extra_forbidden":
        return f"{key}={item['input']!r:.60}: {item['msg']}"
    known = list((TaskSpec if path[0] == "task" else Spec).model_fields)
    close = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {'.'.join([*path[:-1], close[0]])}?" if close else f"known here: {', '.join(known)}"
    return f"{key}: no such key; {hint}"
