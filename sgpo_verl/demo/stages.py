"""The demo's stages: the command of each, what it writes, and what it depends on."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sgpo_verl import cost, provenance
from sgpo_verl.demo import progress
from sgpo_verl.errors import SgpoError

PACKAGE = Path(__file__).parents[1]
RECIPES = PACKAGE.parent / "recipes"
SGPO = (sys.executable, "-m", "sgpo_verl.cli")
CHILD_ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "110",  # tables go to a file first
}


@dataclass(frozen=True)
class Stage:
    """One child process.

    name: of its log and its marker. outputs: files and folders that are removed before it runs and must be there
    after it. progress: its state in a few words. after: the stages whose outputs it reads. sources: files whose change
    makes it run again. environment: variables of its own. prepare: called when its old outputs are gone. show: print
    its output when it is done. again: run it even if nothing changed (it takes seconds).
    """

    name: str
    title: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    progress: Callable[[], str]
    after: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    show: bool = False
    again: bool = False


def log_of(directory: Path, name: str) -> Path:
    return directory / "logs" / f"{name}.log"


def stages(directory: Path, seed: int) -> list[Stage]:
    """All stages, in order, for a demo in ``directory`` (absolute). Raises SgpoError if the recipes are not there."""
    if not RECIPES.is_dir():
        raise SgpoError(
            f"{RECIPES}: no such folder - the demo runs from a checkout of sgpo-verl, where its recipes are"
        )
    ours = _training_arguments("arithmetic_sgpo", directory, seed)
    profile, page = directory / "profile.parquet", directory / "report.html"
    plan = ("plan", str(profile), *ours, "--plot", str(directory / "plan.png"))
    return [
        _base(directory, seed),
        Stage(
            name="profile",
            title="profile the prompts",
            command=(*SGPO, "profile", *ours),
            outputs=(profile,),
            progress=lambda: progress.last_line(
                log_of(directory, "profile"), ("sgpo: profiled", "profile:"), "starting Ray and vLLM (about a minute)"
            ),
            after=("base",),
            sources=(*_settings("arithmetic_sgpo"), PACKAGE / "demo" / "reward.py"),
        ),
        _table("plan", "plan the training", plan, directory / "plan.png"),
        _training("grpo", "GRPO", "train with stock GRPO", directory, seed, after=("base",)),
        _training("sgpo", "sGPO + prune", "train with sGPO", directory, seed, after=("base", "profile")),
        _table("report", "compare", ("report", f"{directory}/grpo", f"{directory}/sgpo", "--output", str(page)), page),
    ]


def _base(directory: Path, seed: int) -> Stage:
    return Stage(
        name="base",
        title="train the base model",
        command=(sys.executable, "-m", "sgpo_verl.demo.base", str(directory), "--seed", str(seed)),
        outputs=(directory / "base", directory / "data"),
        progress=lambda: progress.last_line(log_of(directory, "base"), ("step", "right"), "loading torch"),
        sources=tuple(PACKAGE / "demo" / f"{name}.py" for name in ("base", "task", "pool", "tasks")),
    )


def _table(name: str, title: str, arguments: tuple[str, ...], output: Path) -> Stage:
    """A command of a few seconds whose output is what the user wants to see."""
    return Stage(
        name=name,
        title=title,
        command=(*SGPO, *arguments),
        outputs=(output,),
        progress=lambda: "",
        show=True,
        again=True,
    )


def _training(name: str, label: str, title: str, directory: Path, seed: int, after: tuple[str, ...]) -> Stage:
    run, recipe = directory / name, f"arithmetic_{name}"
    metrics, steps = run / "metrics.jsonl", _training_steps()
    return Stage(
        name=name,
        title=title,
        command=(sys.executable, "-m", "verl.trainer.main_ppo", *_training_arguments(recipe, directory, seed)),
        outputs=(run,),
        progress=lambda: progress.training(metrics, steps),
        after=after,
        sources=(*_settings(recipe), PACKAGE / "demo" / "reward.py"),
        environment={"VERL_FILE_LOGGER_PATH": str(metrics)},
        prepare=lambda: _write_facts(run, label, seed, directory / "base"),
    )


def _training_arguments(recipe: str, directory: Path, seed: int) -> tuple[str, ...]:
    """What follows ``main_ppo`` and ``sgpo profile`` alike."""
    quoted = str(directory).replace("'", r"\'")  # Hydra has a grammar for values; in quotes, any path is one
    overrides = ("+runtime=cpu", f"demo_dir='{quoted}'", f"data.seed={seed}")
    return ("--config-dir", str(RECIPES), "--config-name", recipe, *overrides)


def _training_steps() -> int:
    """Of either run: the pair shares the number."""
    return yaml.safe_load((RECIPES / "arithmetic_grpo.yaml").read_text())["trainer"]["total_training_steps"]


def _settings(recipe: str) -> tuple[Path, ...]:
    """The YAML files that a recipe is made of, verl's own left aside."""
    files = [RECIPES / "arithmetic_grpo.yaml", PACKAGE / "conf" / "runtime" / "cpu.yaml"]
    if recipe != "arithmetic_grpo":
        files += [RECIPES / f"{recipe}.yaml", PACKAGE / "conf" / "sgpo" / "paper.yaml"]
    return tuple(files)


def _write_facts(run: Path, label: str, seed: int, base: Path) -> None:
    """run.json, which the report reads: what verl's own files do not say."""
    run.mkdir(parents=True)
    facts = {
        "label": label,
        "commit": commit(),
        "versions": provenance.installed_versions(),
        "seed": seed,
        "model_shape": cost.shape_from_path(base).to_dict(),
    }
    (run / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def commit() -> str:
    """The checkout's commit; "" where there is no git or no checkout."""
    try:
        answer = subprocess.run(["git", "-C", str(PACKAGE), "rev-parse", "HEAD"], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
