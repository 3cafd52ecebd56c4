"""The data files: there, readable, not empty, and with the columns that verl and its reward managers read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpo_verl.checks.batch import rehearse
from sgpo_verl.errors import SgpoError
from sgpo_verl.plan import as_stock
from sgpo_verl.provenance import files_at, is_remote
from sgpo_verl.run_config import group_at, is_count, numbers_of, settings_of

TRAIN, VALIDATION = "data.train_files", "data.val_files"
FORMATS = (".parquet", ".json", ".jsonl")
GROUND_TRUTH = ("naive", "dapo", "gdpo", "rate_limited", "remote")  # managers that read reward_model.ground_truth


@dataclass(frozen=True)
class Peek:
    """What a data file shows at a glance. rows: None if they have not been counted. first: its first row."""

    rows: int | None
    columns: list[str]
    first: dict[str, Any]


def check_data(config: Mapping[str, Any]) -> str:
    """Rows of training and validation, in words. Raises SgpoError naming the first file that cannot be used, and why."""
    train, validation = (_rows(check_files(config, key)) for key in (TRAIN, VALIDATION))
    if train is not None:
        _check_enough(config, train)
    return f"{_many(train)} to train on, {_many(validation)} to validate with"


def check_training_data(config: Mapping[str, Any]) -> str:
    """The same of the training files alone, however many rows a step needs."""
    return f"{_many(_rows(check_files(config, TRAIN)))} to train on"


def _many(rows: int | None) -> str:
    return "rows that are not counted here" if rows is None else f"{rows} rows"


def check_files(config: Mapping[str, Any], key: str) -> list[Peek | None]:
    """A look into every file of ``key``. Raises SgpoError naming the first that cannot be used."""
    files = files_at(config, key)
    if not files:
        raise SgpoError(f"{key}: names no file")
    return [check_file(config, key, path) for path in files]


def _rows(peeks: Sequence[Peek | None]) -> int | None:
    counts = [peek.rows if peek else None for peek in peeks]
    return None if None in counts else sum(count for count in counts if count is not None)


def _check_enough(config: Mapping[str, Any], rows: int) -> None:
    """Stock GRPO, and a method that draws as it does, needs a whole batch; of the method the plan says so."""
    settings, numbers = settings_of(config), numbers_of(config)
    most: Any = group_at(config, "data").get("train_max_samples")
    prompts = min(rows, most) if is_count(most) else rows
    if "sgpo" in config:
        if as_stock(settings):
            rehearse(settings, numbers, prompts)
    elif prompts < numbers.train_batch_size:
        kept = f" (data.train_max_samples={most})" if prompts < rows else ""
        raise SgpoError(
            f"data.train_files: its {prompts} prompts{kept} do not fill one step of {numbers.train_batch_size}",
            "lower data.train_batch_size",
        )


def check_file(config: Mapping[str, Any], key: str, path: str) -> Peek | None:
    """A look into one file, None where only verl can take it. Raises SgpoError naming ``key`` and the file."""
    if is_remote(path):
        return None  # verl fetches it where it trains
    file = Path(path).expanduser()
    if not file.is_file():
        reason = "a folder; name its files" if file.is_dir() else "no such file"
        raise SgpoError(f"{key}: cannot read {path} ({reason})")
    own = bool(group_at(config, "data.custom_cls").get("path"))
    if own and file.suffix != ".parquet":
        return None
    purpose = "there is nothing to train on" if key == TRAIN else "there is nothing to validate with"
    if file.suffix not in FORMATS:
        raise SgpoError(f"{key}: {path} is none of {', '.join(FORMATS)}, which is what verl reads")
    if file.stat().st_size == 0:
        raise SgpoError(f"{key}: {path} is empty; {purpose}")
    peek = _parquet(key, path, file) if file.suffix == ".parquet" else _json(key, path, file)
    if peek.rows == 0:
        raise SgpoError(f"{key}: {path} has no rows; {purpose}")
    if not own:
        _check_columns(config, key, peek)
    return peek


def _parquet(key: str, path: str, file: Path) -> Peek:
    try:
        with pq.ParquetFile(file) as opened:
            first = next(opened.iter_batches(batch_size=1), None)
            rows = [] if first is None else first.to_pylist()
            return Peek(opened.metadata.num_rows, list(opened.schema_arrow.names), rows[0] if rows else {})
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SgpoError(f"{key}: {path} is not a readable parquet file ({reason})") from None


def _json(key: str, path: str, file: Path) -> Peek:
    """JSON lines, or one list. Of a long file the rows are not counted."""
    try:
        with file.open(encoding="utf-8") as stream:
            start = "".join(islice(stream, 1)).strip()
            if start.startswith("["):
                rows = json.loads(start + stream.read())
                first, count = (rows[0] if rows else {}), len(rows)
            else:
                first, count = json.loads(start), None
    except (ValueError, OSError) as error:
        raise SgpoError(f"{key}: {path} is neither JSON lines nor a list of objects ({error})") from None
    if not isinstance(first, dict):
        raise SgpoError(f"{key}: {path}: its first row is {first!r:.60}, not an object")
    return Peek(count, list(first), first)


def _check_columns(config: Mapping[str, Any], key: str, peek: Peek) -> None:
    data = group_at(config, "data")
    prompt = str(data.get("prompt_key") or "prompt")
    check_names(key, prompt, peek.columns)
    first = peek.first
    check_row(key, 0, first.get("data_source"), first.get("extra_info"), first.get(prompt), first.get("reward_model"))
    manager = group_at(config, "reward.reward_manager")
    reads = manager.get("source", "register") == "register" and manager.get("name") in GROUND_TRUTH
    truth = first.get("reward_model")
    if reads and not (isinstance(truth, Mapping) and "ground_truth" in truth):
        there = f"there are {', '.join(peek.columns)}" if "reward_model" not in peek.columns else f"it is {truth!r:.60}"
        raise SgpoError(
            f"{key}: no ground_truth in a column reward_model; {there}; reward.reward_manager.name={manager.get('name')} "
            "scores against it"
        )


def check_names(key: str, prompt: str, names: Sequence[str]) -> None:
    """Raises SgpoError naming the columns that verl cannot do without."""
    if missing := [name for name in ("data_source", prompt) if name not in names]:
        raise SgpoError(
            f"{key}: no column {' and no column '.join(missing)}; there are {', '.join(names)} "
            "(data.prompt_key names the column of the prompt)"
        )


def check_row(key: str, row: int, source: Any, extra_info: Any, messages: Any, reward_model: Any) -> None:
    """Raises SgpoError naming the row and the column that is not as verl's data format has it."""
    for name, value in (("extra_info", extra_info), ("reward_model", reward_model)):
        if value is not None and not isinstance(value, Mapping):
            raise SgpoError(f"{key}: row {row}: {name} is {value!r:.60}, not a mapping")
    if not isinstance(source, str):
        raise SgpoError(f"{key}: row {row}: data_source is {source!r:.60}, not a text")
    if not isinstance(messages, Sequence | np.ndarray) or not all(isinstance(m, Mapping) for m in messages):
        raise SgpoError(
            f"{key}: row {row}: the prompt is {messages!r:.60}, not a list of messages such as "
            '[{"role": "user", "content": ...}]'
        )
