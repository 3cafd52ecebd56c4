"""Run what is not finished, and know what is: a run's folder says with which command it began and whether it ended well.

    <bench>/<method>/seed<k>/  run.json done.json metrics.jsonl .hydra/ log checkpoints/ rollouts/

run.json is written when a run begins, done.json when it ends with exit status 0. A run that broke off goes on from its last
checkpoint, if it has one; verl starts its log afresh then, so the earlier part becomes metrics.<n>.jsonl.
"""

import json
import os
import shutil
import time
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from sgpo_verl import provenance
from sgpo_verl.bench.commands import BenchRun
from sgpo_verl.demo import progress
from sgpo_verl.demo.child import run_child
from sgpo_verl.demo.screen import Screen
from sgpo_verl.demo.stages import commit
from sgpo_verl.errors import SgpoError

TRACKER = "latest_checkpointed_iteration.txt"  # verl's, written when a checkpoint is complete
WORDS = ("sgpo: ",)  # how a line begins that says why one of our runs ended


class State(Enum):
    """NEW: nothing there. BROKEN: begun, not finished. CHANGED: made by another command."""

    NEW = "new"
    BROKEN = "broken"
    CHANGED = "changed"
    FINISHED = "finished"


class Failed(Exception):
    """A run that ended badly; its text says how."""


def state_of(run: BenchRun) -> State:
    """From run.json and done.json."""
    done, begun = (read(run.directory / name).get("digest") for name in ("done.json", "run.json"))
    if done is None and begun is None:
        return State.NEW
    if (done or begun) != run.digest:
        return State.CHANGED
    return State.FINISHED if done else State.BROKEN


def refuse_changed(runs: Iterable[BenchRun]) -> None:
    """Raises SgpoError naming the runs that were made, or begun, by another command than the file now gives."""
    changed = [run for run in runs if state_of(run) is State.CHANGED]
    if changed:
        names = [run.name for run in changed]
        raise SgpoError(
            f"{changed[0].directory}: was made by another command than this file gives now ({', '.join(names)}): make it again "
            f"with {' '.join(f'--fresh {name}' for name in names)}, or use another --dir (its run.json has the command)"
        )


def facts(run: BenchRun) -> dict[str, Any]:
    """run.json, which the report reads too."""
    return {
        "label": run.label,
        "seed": run.seed,
        "commit": commit(),
        "versions": provenance.installed_versions(),
        "digest": run.digest,
    }


def execute(run: BenchRun, number: int, screen: Screen, steps: int | None) -> None:
    """Run it to its end: from its last checkpoint if it broke off after one, else from the beginning. Raises Failed."""
    _make_room(run)
    described = {"command": list(run.command), "environment": run.environment}
    write_whole(run.directory / "run.json", facts(run) | described)
    start, environment = time.monotonic(), {**run.environment, "VERL_FILE_LOGGER_PATH": str(run.metrics)}
    with screen.stage(number, run.name) as tick:
        status = run_child(run.command, run.log, environment, lambda: tick(progress.training(run.metrics, steps)))
        if status or not run.metrics.exists():
            raise Failed(f"exit status {status}" if status else "it wrote no metrics; is trainer.logger overridden?")
        tick(progress.training(run.metrics, steps))
    write_whole(run.directory / "done.json", {"digest": run.digest, "seconds": round(time.monotonic() - start, 1)})


def _make_room(run: BenchRun) -> None:
    """Set logs aside where a checkpoint is to be continued from; else remove what is there, but for a finished profile."""
    folder = run.directory
    if (folder / "checkpoints" / TRACKER).is_file():
        n = 1
        while any((folder / name.format(n)).exists() for name in ("metrics.{}.jsonl", "log.{}")):
            n += 1
        for current, older in ((run.metrics, f"metrics.{n}.jsonl"), (run.log, f"log.{n}")):
            if current.exists():
                os.replace(current, folder / older)
        return
    profile, kept = folder / "checkpoints" / "sgpo", folder.with_name(f".{folder.name}.profile")
    if profile.is_dir() and not kept.exists():
        os.replace(profile, kept)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    if kept.is_dir():
        profile.parent.mkdir()
        os.replace(kept, profile)


def forget(run: BenchRun) -> None:
    """Remove all that is there of a run."""
    if run.directory.exists():
        shutil.rmtree(run.directory)


def last_words(log: Path) -> str:
    """Why a run ended: our own line if its log ends with one somewhere, else the last line."""
    lines = [line for line in progress.last_lines(log, 400) if line.strip()]
    return progress.last_line(log, WORDS, lines[-1].strip()[:200] if lines else "an empty log")


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """JSON that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)
