"""verl's file logger, read back: the JSON-lines logs of one run directory, merged into one table.

One line of such a log is one step (``trainer.logger=[file]`` writes it):

    {"step": 12, "data": {"timing_s/step": 6.1, "val-core/gsm8k/acc/mean@1": 0.41, "training/global_step": 12}}

verl starts the file afresh when a run is resumed, so a run may own several logs, each beginning where a checkpoint
was, and any log may end in half a line if the run is still going or was killed.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from sgpo_verl.errors import SgpoError

Steps = dict[int, dict[str, float]]


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line; empty lines and a last line cut short are skipped.

    Raises SgpoError naming file and line for any other line that is not a JSON object.
    """
    try:
        lines = [(n, line) for n, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]
    except OSError as error:
        raise SgpoError(f"{path}: cannot be read ({error.strerror})") from None
    rows = []
    for n, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if n == lines[-1][0]:
                break
            raise SgpoError(f"{path}, line {n}: not JSON - the file is damaged; repair or remove that line") from None
        if not isinstance(row, dict):
            raise SgpoError(f"{path}, line {n}: expected an object, got {type(row).__name__} - not a log of verl's")
        rows.append((n, row))
    return rows


def find_logs(directory: Path) -> list[Path]:
    """The logs in a run directory, directly in it or one level below, oldest first by modification time.

    Known by content, not by name: rollout dumps are .jsonl files too. Raises SgpoError if there is none.
    """
    if not os.path.isdir(directory):
        raise SgpoError(f"{directory}: no such directory - give the directory of a training run")
    candidates = sorted([*directory.glob("*.jsonl"), *directory.glob("*/*.jsonl")])
    candidates = [path for path in candidates if path.is_file()]  # not a folder, a broken link or a pipe
    logs = [path for path in candidates if _looks_like_a_log(path)]
    if not logs:
        empty = [path for path in candidates if path.stat().st_size == 0]
        if empty:
            raise SgpoError(f"{empty[0]}: empty log - the run has not logged a step yet; wait for its first one")
        raise SgpoError(
            f"{directory}: no log of verl's in it or one level below - train with trainer.logger=[console,file] and "
            f"VERL_FILE_LOGGER_PATH={directory}/metrics.jsonl"
        )
    return sorted(logs, key=lambda path: path.stat().st_mtime_ns)


def _looks_like_a_log(path: Path) -> bool:
    """Whether one of the first lines is a log record; three, so that a single bad line is reported, not overlooked."""
    with path.open("rb") as file:
        head = [file.readline() for _ in range(3)]
    # verl writes without spaces; a run killed inside its first line leaves just this.
    if head[0].replace(b" ", b"").startswith(b'{"step":') and b'"data"' in head[0]:
        return True
    return any(_is_record(line) for line in head)


def _is_record(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("data"), dict)


def read_log(directory: Path) -> tuple[pd.DataFrame, list[str]]:
    """The merged log, one row per step (index ``step``) and one float column per metric, and remarks on the merge.

    Where logs overlap, the later file replaces all that earlier ones say from its first training step on: those steps
    were thrown away by the resume. Raises SgpoError if there is no log, if it is empty or if a line is bad.
    """
    directory = Path(directory)
    logs = find_logs(directory)
    merged: Steps = {}
    remarks = []
    for path in logs:
        newer = _read_steps(path)
        first = min((step for step, data in newer.items() if _is_training(data)), default=None)
        if first is not None:
            lost = [step for step in merged if step > max(newer)]
            if lost:
                remarks.append(
                    f"steps {min(lost)} to {max(lost)} of an earlier log are left out: {path.name}, a newer file, "
                    f"starts again at step {first}"
                )
            merged = {step: data for step, data in merged.items() if step < first}
        for step, data in newer.items():
            merged[step] = {**merged.get(step, {}), **data}
    if not merged:
        raise SgpoError(f"{logs[-1]}: empty log - the run has not logged a step yet; wait for its first one")
    if not any(_is_training(data) for data in merged.values()):
        raise SgpoError(f"{logs[-1]}: no training step in it yet - wait until the first one is logged")
    table = pd.DataFrame.from_dict(merged, orient="index", dtype=float).sort_index()
    table.index.name = "step"
    return table, remarks


def _read_steps(path: Path) -> Steps:
    steps: Steps = {}
    for n, row in read_json_lines(path):
        step, data = row.get("step"), row.get("data")
        if type(step) is not int or not 0 <= step < 2**31 or not isinstance(data, dict):
            raise SgpoError(f'{path}, line {n}: expected {{"step": number, "data": {{...}}}} - not a log of verl\'s')
        steps[step] = {**steps.get(step, {}), **_numbers(data)}
    return steps


def _numbers(data: dict[str, Any]) -> dict[str, float]:
    """The metrics that are numbers; JSON null is how the logger writes NaN, and no number is near infinity."""
    return {
        key: float("nan") if value is None or not abs(value) < 1e100 else float(value)
        for key, value in data.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }


def _is_training(data: dict[str, float]) -> bool:
    """A training step logs more than validation; the line before training, or after a resume, holds nothing else."""
    return any(not key.startswith("val-") and not math.isnan(value) for key, value in data.items())


def training_rows(log: pd.DataFrame) -> pd.Series:
    """Per step, whether it trained (bool)."""
    return log[[column for column in log.columns if not column.startswith("val-")]].notna().any(axis=1)
