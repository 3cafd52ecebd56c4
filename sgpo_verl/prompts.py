"""A prompt's identity: the same key at profiling and at training, whatever order or subset of the data is read.

verl gives a prompt a fresh uuid at every draw, so the key must come from the data:

    every row has an index, and (data_source, extra_info.index) pairs differ    ->  "gsm8k:17"
    else (missing, null or repeated indices)                                    ->  "gsm8k#9f86d081884c7d65"  (content)

The content key hashes data source, prompt and ground truth, so it survives shuffling and re-indexing of the file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sgpo_verl.errors import SgpoError

NO_INDEX = -1
TEXT = pd.StringDtype("pyarrow", na_value=np.nan)
KeyArray = np.ndarray | pd.api.extensions.ExtensionArray
Keys = Sequence[str] | KeyArray


@dataclass(frozen=True)
class Prompts:
    """Identities of the P rows of a data set, in its order.

    keys_P: str, unique, in Arrow's memory. sources_P: str, a category. index_P: int64, NO_INDEX where the data has no
    integer index. rows_P: int32, the row of the data set that each prompt is read from. About 40 bytes per prompt.
    """

    keys_P: pd.api.extensions.ExtensionArray
    sources_P: pd.Categorical
    index_P: np.ndarray
    rows_P: np.ndarray

    def __len__(self) -> int:
        return len(self.keys_P)


def identify(
    sources: Sequence[str], indices: Sequence[Any], contents: Sequence[Any], duplicates: str = "error"
) -> Prompts:
    """Give every row of a data set its key.

    sources: data_source per row. indices: extra_info.index per row, None where missing. contents: per row, anything
    that json can encode and that tells two prompts apart (messages and ground truth).
    duplicates: what to do with rows that are the same prompt by content: "error", or "first" to keep the first.

    Raises SgpoError if there are no rows, or naming the first pair of duplicate rows.
    """
    if len(sources) == 0:
        raise SgpoError(
            "data.train_files: no prompts left to train on (empty file, or all longer than max_prompt_length)"
        )
    rows = _all_rows(len(sources))
    keys = _index_keys(sources, indices)
    if keys is None:
        keys = [f"{s}#{_digest(s, c)}" for s, c in zip(sources, contents, strict=True)]
        rows = _unique_rows(keys, duplicates)
    index_P = np.fromiter((i if _is_int64(i) else NO_INDEX for i in indices), np.int64, len(indices))
    prompts = Prompts(_texts(keys), pd.Categorical(sources), index_P, _all_rows(len(keys)))
    if len(rows) == len(keys):
        return prompts
    return Prompts(prompts.keys_P[rows], prompts.sources_P[rows], index_P[rows], rows)


def identify_indexed(sources: pa.ChunkedArray, index_P: np.ndarray) -> Prompts | None:
    """``identify`` for millions of rows in seconds, where every row has an index; None if two rows share a key.

    sources: string, without nulls. index_P: int64.
    """
    sources_P = pd.Categorical(sources.dictionary_encode().to_pandas())
    # A key's last colon tells source and index apart: keys differ where the pairs do, and numbers are compared faster.
    if pd.DataFrame({"source": sources_P.codes, "index": index_P}).duplicated().any():
        return None
    text, colon = pa.large_string(), pa.scalar(":", pa.large_string())
    keys = pc.binary_join_element_wise(pc.cast(sources, text), pc.cast(pa.array(index_P), text), colon)
    return Prompts(pd.array(keys.combine_chunks(), dtype=TEXT), sources_P, index_P, _all_rows(len(keys)))


def _all_rows(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


def _is_int64(index: Any) -> bool:
    return isinstance(index, int | np.integer) and not isinstance(index, bool) and -(2**63) <= int(index) < 2**63


def _index_keys(sources: Sequence[str], indices: Sequence[Any]) -> list[str] | None:
    """Keys "source:index", or None if any index is missing or two rows would share a key."""
    if any(index is None or (isinstance(index, float) and index != index) for index in indices):  # NaN: pandas' null
        return None
    keys = [f"{s}:{i}" for s, i in zip(sources, indices, strict=True)]
    return keys if len(set(keys)) == len(keys) else None


def _texts(keys: list[str]) -> pd.api.extensions.ExtensionArray:
    try:
        return pd.array(keys, dtype=TEXT)
    except UnicodeEncodeError as error:
        row = keys.index(error.object)
        raise SgpoError(f"data.train_files: row {row}: {error.object!r:.60} holds what is no character") from None


def _digest(source: str, content: Any) -> str:
    text = json.dumps([source, content], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, as parquet readers hand them out, become what json knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return repr(value)


def _unique_rows(keys: list[str], duplicates: str) -> np.ndarray:
    first: dict[str, int] = {}
    repeated = []
    for row, key in enumerate(keys):
        if first.setdefault(key, row) != row:
            repeated.append(row)
    if repeated and duplicates == "error":
        row = repeated[0]
        raise SgpoError(
            f"data.train_files: row {row} is the same prompt as row {first[keys[row]]} ({len(repeated)} duplicate "
            "rows in all): remove them, give every row its own extra_info.index, or set sgpo.duplicates=first"
        )
    return np.array(sorted(first.values()), dtype=np.int32)
