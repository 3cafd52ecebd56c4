"""One training run, read from its directory: what it was, what it measured, what it cost, step by step.

A run directory holds verl's file log (see ``runlog.py``), Hydra's ``.hydra/config.yaml`` and, optionally, ``run.json``:

    {"label": "GRPO", "seed": 1, "commit": "1a2b3c4", "versions": {"verl": "0.9.1"},
     "model_shape": {"parameters": 494032768, "attention": 21504}}
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sgpo_verl.cost import ModelShape, shape_from_path
from sgpo_verl.errors import SgpoError
from sgpo_verl.hub import model_folder
from sgpo_verl.report.runlog import read_log, training_rows
from sgpo_verl.report.stock import StockSettings, mixed_from_dumps, stock_steps

BASELINE = "grpo"

# A column of our table <- what an sgpo run logs. The totals survive a resume and include the profile.
PER_STEP = {
    "rollouts": "sgpo/rollouts/generated",
    "trained_rollouts": "sgpo/rollouts/trained",
    "padding_rows": "sgpo/rollouts/padding",
    "generated_tokens": "sgpo/tokens/generated",
    "trained_tokens": "sgpo/tokens/trained",
    "group_size": "sgpo/group/size_mean",
    "frac_mixed": "sgpo/group/frac_mixed",
    "phase": "sgpo/curriculum/phase",
    "plugin_seconds": "sgpo/seconds/plugin",
    "step_seconds": "timing_s/step",
}
TOTALS = {
    "total_flops": "sgpo/flops/total",
    "total_trained_tokens": "sgpo/tokens/total_trained",
    "total_rollouts": "sgpo/rollouts/total",
}
# What run.json may hold, and how to call it.
FACTS = {"label": str, "seed": int, "commit": str, "versions": dict}
WORDS = {str: "a text", int: "a whole number", dict: "an object"}
PROFILE = {
    "total_flops": "sgpo/flops/profile",
    "total_rollouts": "sgpo/rollouts/profile",
    "total_seconds": "sgpo/seconds/profile",
}


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    path: as the caller gave it. kind: "grpo" (stock, the baseline), "dynamic sampling" or the sgpo method's name.
    label: how it is shown; runs with one label are seeds of one method. log: verl's own metrics, one row per step.
    table: one row per step (index ``step``; 0 is validation before training), float columns, NaN where unknown:
      rollouts, trained_rollouts, padding_rows, generated_tokens, trained_tokens, group_size, frac_mixed (share of
      groups whose rewards differ), phase, plugin_seconds, step_seconds - of that step;
      total_flops, total_trained_tokens (each epoch of an update counts), total_rollouts, total_seconds - up to and
      including that step, profile included; step_seconds and total_seconds leave validation out, as verl's timer does.
    profile: what the profile cost, by total_... column; empty for stock runs.
    gap: why the log does not show the whole run, or "". remarks: other things that a reader should know.
    estimated: share of the generated tokens that is an estimate. row_tokens: mean length of a trained row, NaN if unknown.
    """

    path: Path
    label: str
    kind: str
    seed: int | None
    commit: str
    versions: dict[str, str]
    model: str
    log: pd.DataFrame
    table: pd.DataFrame
    profile: dict[str, float]
    gap: str
    remarks: tuple[str, ...]
    estimated: float = 0.0
    row_tokens: float = math.nan


def load_run(path: str | Path) -> Run:
    """Reads a run directory. Raises SgpoError naming the path and the way out if a part is missing or damaged."""
    path = Path(path)
    log, remarks = read_log(path)
    if not any(column.startswith("val-") for column in log.columns):
        raise SgpoError(
            f"{path}: no validation metric in its log - train with data.val_files and trainer.test_freq set"
        )
    config = RunConfig(path / ".hydra" / "config.yaml")
    facts = _read_facts(path / "run.json")
    gap = _gap(log)
    kind, label = _kind_and_label(config)
    if config.get("sgpo") is not None:
        table, profile = _sgpo_table(log, path, gap)
    else:
        table, profile = _stock_table(log, config, facts, path, gap), {}
    planned = config.get("trainer.total_training_steps")
    if isinstance(planned, int) and log.index[-1] < planned:
        remarks.append(f"ends at step {log.index[-1]} of the {planned} planned")
    return Run(
        path=path,
        label=facts.get("label") or label,
        kind=kind,
        seed=facts.get("seed", config.seed()),
        commit=facts.get("commit") or "",
        versions=facts.get("versions") or {},
        model=str(config.get("actor_rollout_ref.model.path") or ""),
        log=log,
        table=table,
        profile=profile,
        gap=gap,
        remarks=tuple(remarks),
        estimated=_share(table, "estimated_tokens", "generated_tokens"),
        row_tokens=_share(table, "trained_tokens", "trained_rollouts"),
    )


def _share(table: pd.DataFrame, part: str, whole: str) -> float:
    """Sum / sum; 0 where the part is not a column, NaN where the whole is nothing."""
    if part not in table:
        return 0.0
    total = float(table[whole].sum())
    return float(table[part].sum()) / total if total > 0 else math.nan


class RunConfig:
    """Hydra's composed config, resolved key by key: an interpolation that only the training machine can resolve
    (an environment variable, a resolver of the trainer's) does not matter unless its key is asked for."""

    def __init__(self, path: Path):
        import yaml
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        self.path = path
        if not path.is_file():
            missing = "a folder, not a file" if path.is_dir() else "no such file"
            raise SgpoError(f"{path}: {missing} - a run directory is Hydra's output directory (hydra.run.dir)")
        try:
            self.config = OmegaConf.load(path)
            if not OmegaConf.is_dict(self.config):
                raise OSError("a list, not a mapping")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise SgpoError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None

    def get(self, key: str, default: Any = None) -> Any:
        """The value at a dotted key, or ``default``. Raises SgpoError if it holds what cannot be resolved here."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            return OmegaConf.select(self.config, key, default=default)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise SgpoError(f"{self.path}: {key} cannot be resolved ({reason}) - write its value there") from None

    def seed(self) -> int | None:
        value = self.get("data.seed")
        if value is not None and type(value) is not int:
            raise SgpoError(f"{self.path}: data.seed is {value!r}, expected a whole number or null")
        return value

    def number(self, key: str) -> int:
        value = self.get(key)
        if type(value) is not int or not 0 < value < 2**31:
            raise SgpoError(f"{self.path}: {key} is {value!r}, expected a number above 0 - needed to count the cost")
        return value


def _read_facts(path: Path) -> dict[str, Any]:
    """run.json, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text())
        json.dumps(facts, ensure_ascii=False).encode()  # raises where a label could not be shown
    except (OSError, ValueError, RecursionError) as error:
        raise SgpoError(f"{path}: not readable as JSON ({error}) - repair it, or remove it (it is optional)") from None
    if not isinstance(facts, dict):
        raise SgpoError(f'{path}: expected an object such as {{"label": ..., "seed": ...}}')
    for name, kind in FACTS.items():
        if facts.get(name) is not None and (not isinstance(facts[name], kind) or isinstance(facts[name], bool)):
            raise SgpoError(f"{path}: {name} is {facts[name]!r}, expected {WORDS[kind]} - correct it or leave it out")
    return facts


def _kind_and_label(config: RunConfig) -> tuple[str, str]:
    if config.get("sgpo") is not None:
        method = str(config.get("sgpo.method") or "sgpo")
        return method, f"sGPO ({method})"
    if config.get("algorithm.filter_groups.enable", False):
        return "dynamic sampling", "dynamic sampling"
    return BASELINE, "GRPO"


def _gap(log: pd.DataFrame) -> str:
    """Steps count from 1, one by one; a log that does not was cut by a resume."""
    steps = log.index[training_rows(log)]
    if steps[0] > 1:
        return f"log starts at step {steps[0]}: the cost before it is missing"
    jumps = np.flatnonzero(np.diff(steps) > 1)
    if len(jumps):
        return f"log has no step {steps[jumps[0]] + 1}: the cost of the steps up to {steps[jumps[0] + 1]} is missing"
    return ""


def _sgpo_table(log: pd.DataFrame, path: Path, gap: str) -> tuple[pd.DataFrame, dict[str, float]]:
    for key in TOTALS.values():
        if key not in log:
            raise SgpoError(f"{path}: its config has an sgpo node, but its log no {key} - was the plugin active?")
    nothing = pd.Series(np.nan, index=log.index)
    table = pd.DataFrame({name: log.get(key, nothing) for name, key in (PER_STEP | TOTALS).items()})
    profile = {name: _first(log.get(key, nothing)) for name, key in PROFILE.items()}
    table["total_seconds"] = profile["total_seconds"] + table["step_seconds"].fillna(0.0).cumsum()
    if gap:
        table["total_seconds"] = np.nan
    if log.index[0] == 0:  # before training, the profile is all that was spent
        for name in (*TOTALS, "total_seconds"):
            table.loc[0, name] = profile.get(name, 0.0)
    return table, profile


def _first(values: pd.Series) -> float:
    known = values.dropna()
    return float(known.iloc[0]) if len(known) else 0.0


def _stock_table(log: pd.DataFrame, config: RunConfig, facts: dict[str, Any], path: Path, gap: str) -> pd.DataFrame:
    settings = _stock_settings(config)
    table = stock_steps(log, settings, _model_shape(config, facts, path), path)
    dumps = config.get("trainer.rollout_data_dir")
    if isinstance(dumps, str) and dumps and not settings.dynamic:
        # The directory may have moved since: look where the config says, then inside the run.
        places = [Path(dumps), path / dumps, path / Path(dumps).name]
        found = next((place for place in places if os.path.isdir(place)), None)
        if found:
            table["frac_mixed"] = mixed_from_dumps(found).reindex(table.index)
    for name in ("padding_rows", "phase", "plugin_seconds"):
        table[name] = np.nan
    table["total_flops"] = (table["generate_flops"] + table["train_flops"]).cumsum()
    table["total_trained_tokens"] = table["trained_tokens"].cumsum() * settings.epochs
    table["total_rollouts"] = table["rollouts"].cumsum()
    table["total_seconds"] = table["step_seconds"].cumsum()
    if gap:
        table[[column for column in table.columns if column.startswith("total_")]] = np.nan
    return table


def _stock_settings(config: RunConfig) -> StockSettings:
    reference = config.get("actor_rollout_ref.actor.use_kl_loss") or config.get("algorithm.use_kl_in_reward")
    bypass = config.get("algorithm.rollout_correction.bypass_mode")
    return StockSettings(
        groups=config.number("data.train_batch_size"),
        group_size=config.number("actor_rollout_ref.rollout.n"),
        mini_batch=config.number("actor_rollout_ref.actor.ppo_mini_batch_size"),
        scoring_passes=(0 if bypass else 1) + (1 if reference else 0),
        epochs=config.number("actor_rollout_ref.actor.ppo_epochs"),
        dynamic=bool(config.get("algorithm.filter_groups.enable", False)),
    )


def _model_shape(config: RunConfig, facts: dict[str, Any], path: Path) -> ModelShape:
    remedy = '{"model_shape": {"parameters": ..., "attention": ...}}'
    if "model_shape" in facts:
        given = facts["model_shape"]
        numbers = [given.get(name) for name in ("parameters", "attention")] if isinstance(given, dict) else [None]
        if not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or not numbers[0]:
            raise SgpoError(f"{path / 'run.json'}: model_shape must be as in {remedy}, whole numbers")
        return ModelShape(*numbers)
    model = config.get("actor_rollout_ref.model.path")
    folder = model_folder(model) if isinstance(model, str) and model else None
    if folder is None:
        raise SgpoError(
            f"{path}: the model's shape is unknown, {model!r} is neither a folder nor in the hub's cache here"
            f" - write {remedy} to run.json"
        )
    return shape_from_path(folder)
