"""Tables of counts on disk -> checked pandas frames, about 50 bytes per prompt: our own files, and those of other tools.

A plain table needs trials, successes, and either ``prompt_key`` or ``index`` (verl's extra_info.index), for example

    {"index": 17, "trials": 8, "successes": 3}                                          one JSON object per line
    prompt_key  trials  successes  response_tokens_mean                                 or parquet, more columns if known
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from sgpo_verl.errors import SgpoError
from sgpo_verl.prompts import TEXT

TEXTS = ("prompt_key", "data_source")


def to_frame(table: pa.Table, schema: pa.Schema, path: Path) -> pd.DataFrame:
    """The columns of ``schema``; texts stay in Arrow's memory, data_source is a category.

    Raises SgpoError naming the file and the column that has another type, or is not UTF-8.
    """
    columns = []
    for field in schema:
        try:
            column = table.column(field.name).cast(field.type)
            column.validate(full=True)
        except (pa.ArrowException, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise SgpoError(f"{path}: column {field.name} has the wrong type ({reason})") from None
        columns.append(column)
    table = pa.table(columns, schema=schema)
    place = schema.names.index("data_source")
    table = table.set_column(place, "data_source", table.column(place).dictionary_encode())
    return table.to_pandas(types_mapper={pa.string(): TEXT}.get, split_blocks=True, self_destruct=True)


def read_plain(path: Path, table: pa.Table | None, schema: pa.Schema) -> tuple[pd.DataFrame, bool]:
    """(frame with the columns of ``schema``, whether its prompts are known by index alone) of another tool's table.

    table: what is in ``path``, None to read it as JSON lines. What it does not have is filled in: reward_mean from the
    counts, lengths with 0. Raises SgpoError naming the file, and the column or row that is wrong.
    """
    table = _read_json_lines(path) if table is None else table
    names = table.column_names
    missing = [name for name in ("trials", "successes") if name not in names]
    if missing or not {"prompt_key", "index"} & set(names):
        missing += [] if {"prompt_key", "index"} & set(names) else ["prompt_key or index"]
        raise SgpoError(f"{path}: lacks the column(s) {', '.join(missing)}; there are {', '.join(names) or 'none'}")
    by_index = "prompt_key" not in names and "data_source" not in names
    if "prompt_key" not in names:
        table = table.append_column("prompt_key", _index_keys(table, path))
    rows = table.num_rows
    defaults = {
        "data_source": pa.repeat("", rows),
        "index": pa.repeat(-1, rows),
        "reward_mean": pa.repeat(0.0, rows),
        "prompt_tokens": pa.repeat(0, rows),
        "response_tokens_mean": pa.repeat(0.0, rows),
    }
    for name, column in defaults.items():
        if name not in table.column_names:
            table = table.append_column(name, column)
    frame = to_frame(table, schema, path)
    if "reward_mean" not in names:
        rate_P = frame["successes"] / frame["trials"].clip(lower=1)
        frame["reward_mean"] = rate_P.fillna(0.0).astype(np.float32)
    check_rows(frame, path)
    return frame, by_index


def _read_json_lines(path: Path) -> pa.Table:
    """One object per line. Texts stay what they are: Arrow would take a key such as "2024-01-01" for a time."""
    try:
        with path.open("rb") as stream:
            row = next((row for row, line in enumerate(stream) if line.lstrip().startswith(b"null")), None)
        if row is not None:  # Arrow does not survive a block that begins with one
            raise SgpoError(f"{path}: not readable as JSON lines (row {row} is null, not an object)")
        table = pa.json.read_json(path)
        times = [(f.name, pa.string()) for f in table.schema if f.name in TEXTS and pa.types.is_timestamp(f.type)]
        if not times:
            return table
        return pa.json.read_json(path, parse_options=pa.json.ParseOptions(explicit_schema=pa.schema(times)))
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # the second of a column's name
        raise SgpoError(f"{path}: not readable as JSON lines ({str(error).splitlines()[0]})") from None


def _index_keys(table: pa.Table, path: Path) -> pa.ChunkedArray:
    """Keys "source:index", as ``prompts.identify`` gives them; ":index" where no source is named."""
    try:
        index = pc.cast(pc.cast(table["index"], pa.int64()), pa.string())
        source = table["data_source"].cast(pa.string()) if "data_source" in table.column_names else ""
        return pc.binary_join_element_wise(source, index, ":")
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SgpoError(f"{path}: column index or data_source has the wrong type ({reason})") from None


def check_rows(frame: pd.DataFrame, path: Path) -> None:
    """Every count must be one that sampling can give, and every prompt appear once. Raises SgpoError naming the first row
    that is wrong."""
    if frame.empty:
        raise SgpoError(f"{path}: holds no prompts; profile again")
    trials, successes = frame["trials"], frame["successes"]
    checks: dict[str, Callable[[], pd.Series]] = {
        "prompt_key is missing": lambda: frame["prompt_key"].isna(),
        "prompt_key is there twice": lambda: frame["prompt_key"].duplicated(),
        "index is missing": lambda: frame["index"].isna(),
        "trials is missing or negative": lambda: trials.isna() | (trials < 0),
        "successes is missing or not between 0 and trials": lambda: (
            successes.isna() | (successes < 0) | (successes > trials)
        ),
        "reward_mean is missing or not finite": lambda: ~np.isfinite(frame["reward_mean"]),
        "prompt_tokens is missing or negative": lambda: frame["prompt_tokens"].isna() | (frame["prompt_tokens"] < 0),
        "response_tokens_mean is missing or negative": lambda: (
            ~frame["response_tokens_mean"].between(0, np.inf, inclusive="left")
        ),
    }
    for what, find in checks.items():
        bad = find()
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise SgpoError(f"{path}: row {row} ({frame['prompt_key'].iloc[row]}): {what}; profile again")
    if not (trials > 0).any():
        raise SgpoError(f"{path}: no prompt has any trials; profile again")
