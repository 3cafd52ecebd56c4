"""`sgpo demo`: run the stages in order, re-use those that are finished, show what happens, leave a report.

    demo_run/  base/ data/ profile.parquet plan.png grpo/ sgpo/ report.html, logs/<stage>.log, done/<stage>.json

A stage is finished when its marker in done/ holds the key of its command, its settings and the stages before it, and
its outputs are there. Anything else, a half-written output included, is removed and made again.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from sgpo_verl import provenance
from sgpo_verl.demo import progress
from sgpo_verl.demo.child import run_child
from sgpo_verl.demo.guard import ends_on_sigterm
from sgpo_verl.demo.guard import only_one as _only_one
from sgpo_verl.demo.screen import Screen
from sgpo_verl.demo.stages import CHILD_ENVIRONMENT, Stage, log_of, stages
from sgpo_verl.errors import SgpoError

_SHOWN_LINES = 15


def main(directory: Path, seed: int = 0, fresh: bool = False) -> None:
    """Run the demo in ``directory``. fresh: forget what earlier runs finished.

    Raises SgpoError naming the stage and its log if one fails, SystemExit(130) on Ctrl-C and SystemExit(143) on
    SIGTERM; no child outlives any of them.
    """
    directory = directory.resolve()
    todo = stages(directory, seed)
    try:
        for folder in (directory / "logs", directory / "done"):
            folder.mkdir(parents=True, exist_ok=True)
        (directory / "lock").touch()
    except OSError as error:
        raise SgpoError(f"--dir {directory}: cannot be written to ({error.strerror}); name another folder") from None
    screen = Screen(len(todo))
    with _only_one(directory), ends_on_sigterm():
        try:
            _run_all(todo, directory, fresh, screen)
        except (KeyboardInterrupt, SystemExit) as stop:
            screen.say("stopped; the same command goes on after the last finished stage")
            sys.exit(stop.code if isinstance(stop, SystemExit) else 130)
    screen.say(f"\n{screen.elapsed()} in all. Open the report: {directory / 'report.html'}")


def _run_all(todo: list[Stage], directory: Path, fresh: bool, screen: Screen) -> None:
    finished: dict[str, float] = {}  # by stage: when; a stage done again is another one to those that read its outputs
    for number, stage in enumerate(todo, 1):
        marker = directory / "done" / f"{stage.name}.json"
        key = _key(stage, [finished[name] for name in stage.after])
        done = None if fresh or stage.again else _finished(stage, marker, key)
        if done is None:
            marker.unlink(missing_ok=True)
            seconds = _run_stage(stage, number, directory, screen)
            done = {"key": key, "seconds": round(seconds, 1), "finished": time.time()}
            _write_marker(marker, done)
        else:
            screen.reused(number, stage.title, done["seconds"])
        if stage.show:
            screen.say("\n" + log_of(directory, stage.name).read_text())
        finished[stage.name] = done["finished"]


def _run_stage(stage: Stage, number: int, directory: Path, screen: Screen) -> float:
    """Run one stage; its seconds. Raises SgpoError, after the end of its log is on the screen, if it fails."""
    _remove(stage.outputs)
    stage.prepare()
    log, start = log_of(directory, stage.name), time.monotonic()
    with screen.stage(number, stage.title) as tick:
        status = run_child(stage.command, log, CHILD_ENVIRONMENT | stage.environment, lambda: tick(stage.progress()))
        missing = [path for path in stage.outputs if not path.exists()]
        if status or missing:
            screen.say("\n".join(["", *progress.last_lines(log, _SHOWN_LINES), ""]))
            why = f"exit status {status}" if status else f"it did not write {missing[0]}"
            raise SgpoError(f"demo stage {number}, {stage.title}, failed ({why}); its log: {log}")
        tick(stage.progress())
    return time.monotonic() - start


def _key(stage: Stage, before: list[float]) -> str:
    """Changes whenever the stage would have to run again."""
    sources = {path.name: path.read_text() for path in stage.sources}
    parts = [stage.command, sources, before, provenance.installed_versions()]
    return hashlib.sha256(provenance.canonical(parts).encode()).hexdigest()[:16]


def _finished(stage: Stage, marker: Path, key: str) -> dict[str, Any] | None:
    """What the marker holds, if the stage was finished with this key and its outputs are still there."""
    try:
        done = json.loads(marker.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return done if done.get("key") == key and all(path.exists() for path in stage.outputs) else None


def _write_marker(marker: Path, done: dict[str, Any]) -> None:
    temporary = marker.with_suffix(".tmp")
    temporary.write_text(json.dumps(done) + "\n")
    os.replace(temporary, marker)


def _remove(outputs: tuple[Path, ...]) -> None:
    for path in outputs:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
