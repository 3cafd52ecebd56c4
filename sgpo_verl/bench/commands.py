"""Each run of a benchmark as a command for verl's own main, and a check that all of them compose before any starts."""

import hashlib
import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpo_verl import provenance
from sgpo_verl.bench.spec import Spec
from sgpo_verl.errors import SgpoError
from sgpo_verl.run_config import check_supported, compose, numbers_of, settings_of

MAIN = (sys.executable, "-m", "verl.trainer.main_ppo")
TUNE = "tune"


@dataclass(frozen=True)
class BenchRun:
    """One training run. name: "grpo/seed0", also its folder below the benchmark's. where: the key of the file that it comes
    from. label, seed: as the report shows it. digest: of everything that decides what it computes, wherever it lies.
    """

    name: str
    where: str
    label: str
    seed: int
    directory: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    digest: str

    @property
    def metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def command(self) -> tuple[str, ...]:
        return (*MAIN, *self.arguments)


def method_runs(spec: Spec, bench: Path, chosen: Sequence[str] = ()) -> list[BenchRun]:
    """All methods with the first seed, then with the second, ...: a benchmark that is cut short still compares.

    chosen: the overrides that tuning found best.
    """
    return [
        _run(spec, bench, f"{method}/seed{seed}", f"methods.{method}", method, seed, [*chosen, *own])
        for seed in spec.seeds
        for method, own in spec.methods.items()
    ]


def tune_runs(spec: Spec, bench: Path) -> dict[tuple[str, ...], list[BenchRun]]:
    """The names of one option per axis -> the baseline's runs with them, a seed each; all combinations."""
    runs = {}
    for options in itertools.product(*spec.tune.values()) if spec.tune else ():
        label = "+".join(options)
        where = ", ".join(f"tune.{axis}.{option}" for axis, option in zip(spec.tune, options, strict=True))
        own = [*tuned_overrides(spec, options), *spec.methods[spec.baseline]]
        seeds = spec.seeds[: spec.tune_seeds]
        runs[options] = [_run(spec, bench, f"{TUNE}/{label}/seed{seed}", where, label, seed, own) for seed in seeds]
    return runs


def tuned_overrides(spec: Spec, options: Sequence[str]) -> list[str]:
    return [item for axis, option in zip(spec.tune.values(), options, strict=True) for item in axis[option]]


def _run(spec: Spec, bench: Path, name: str, where: str, label: str, seed: int, own: Sequence[str]) -> BenchRun:
    directory = bench / name
    places = {"{seed}": str(seed), "{dir}": str(directory), "{bench}": str(bench)}

    def filled(text: str) -> str:
        for mark, value in places.items():
            text = text.replace(mark, value)
        return text

    given = [filled(item) for item in [*spec.common, *own]]
    flags = [item for item in given if item.startswith("--")]  # argparse wants them together
    overrides = [item for item in given if not item.startswith("--")]
    arguments = (*flags, *_seeds(seed, overrides), *_task(spec, bench), *overrides, *_places(spec, name, directory))
    environment = {"PYTHONUNBUFFERED": "1"} | {key: filled(value) for key, value in spec.env.items()}
    task = spec.task.model_dump() if spec.task else None
    decides = [[item.replace(str(bench), "{bench}") for item in arguments], spec.env, task]
    digest = hashlib.sha256(provenance.canonical(decides).encode()).hexdigest()[:16]
    return BenchRun(name, where, label, seed, directory, arguments, environment, digest)


def _seeds(seed: int, overrides: Sequence[str]) -> list[str]:
    """Every seed that differs between runs, ahead of the file's own overrides, so that those win."""
    keys = ["data.seed", "actor_rollout_ref.rollout.seed", "actor_rollout_ref.actor.data_loader_seed"]
    if any(item.lstrip("+").startswith("sgpo=") for item in overrides):
        keys.append("sgpo.seed")
    return [f"{key}={seed}" for key in keys]


def _task(spec: Spec, bench: Path) -> list[str]:
    """What a built-in task's data, model and reward are."""
    if spec.task is None:
        return []
    folder = bench / "task"
    return [
        f"data.train_files={quoted(folder / 'data' / 'train.parquet')}",
        f"data.val_files={quoted(folder / 'data' / 'val.parquet')}",
        f"actor_rollout_ref.model.path={quoted(folder / 'base')}",
        "reward.custom_reward_function.path=pkg://sgpo_verl.demo.reward",
        "reward.custom_reward_function.name=compute_score",
    ]


def _places(spec: Spec, name: str, directory: Path) -> list[str]:
    """Where everything goes that a run leaves, after the file's own overrides."""
    return [
        f"trainer.project_name={quoted(spec.name)}",
        f"trainer.experiment_name={quoted(name)}",
        "trainer.logger=[console,file]",
        "trainer.resume_mode=auto",
        f"trainer.default_local_dir={quoted(directory / 'checkpoints')}",
        f"trainer.rollout_data_dir={quoted(directory / 'rollouts')}",
        f"hydra.run.dir={quoted(directory)}",
    ]


def quoted(value: object) -> str:
    """As one value of Hydra's override grammar, where a path holds more than plain characters."""
    text = str(value)
    plain = all(c.isalnum() or c in "/._-" for c in text)
    return text if plain else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def check(run: BenchRun) -> dict[str, Any]:
    """The configuration that the run would train with. Raises SgpoError naming the key of the file and what is wrong."""
    try:
        with _environment(run.environment):
            config = compose(run.arguments)
        numbers_of(config)
        if "sgpo" in config:
            settings_of(config)
            check_supported(config)
        _check_validation(config)
        return config
    except SgpoError as error:
        raise SgpoError(f"{run.where}: {error}") from None


def _check_validation(config: Mapping[str, Any]) -> None:
    frequency = config["trainer"]["test_freq"]
    if type(frequency) is not int or frequency < 1:
        raise SgpoError(f"trainer.test_freq={frequency!r}: nothing would be compared; set it to a number of steps")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def prepare_command(spec: Spec, bench: Path) -> tuple[str, ...]:
    """Makes data and base model of a built-in task."""
    assert spec.task is not None
    options = {
        "--task": spec.task.name,
        "--model": spec.task.model,
        "--seed": spec.task.seed,
        "--steps": spec.task.steps,
        "--prompts": spec.task.prompts,
        "--validation": spec.task.validation,
    }
    given = [text for key, value in options.items() if value is not None for text in (key, str(value))]
    return (sys.executable, "-m", "sgpo_verl.demo.base", str(bench / "task"), *given)


def shell_line(run: BenchRun, facts: str, done: str) -> str:
    """The run as one line of shell that leaves what `sgpo bench` itself would: facts, log, and at success the marker."""
    folder, metrics = shlex.quote(str(run.directory)), shlex.quote(str(run.metrics))
    older = shlex.quote(str(run.directory / "metrics.")) + "$(date +%s).jsonl"
    variables = [
        f"{k}={shlex.quote(v)}" for k, v in {**run.environment, "VERL_FILE_LOGGER_PATH": str(run.metrics)}.items()
    ]
    return (
        f"cd {shlex.quote(os.getcwd())} && mkdir -p {folder} && {{ [ ! -e {metrics} ] || mv {metrics} {older}; }} && "
        f"printf %s {shlex.quote(facts)} > {folder}/run.json && env {' '.join(variables)} {shlex.join(run.command)} "
        f">> {folder}/log 2>&1 && printf %s {shlex.quote(done)} > {folder}/done.json"
    )
