"""The profile: trials and successes of every prompt under one policy. Evidence that any method can read.

On disk it is one parquet file, a row per prompt:

    prompt_key  data_source  index  trials  successes  reward_mean  prompt_tokens  response_tokens_mean
    gsm8k:17    gsm8k           17       8          3        0.375             93                 211.5

and, in the file's key-value metadata under "sgpo", JSON that says what was profiled and how (``ProfileMetadata``). A prompt
that could not be sampled has 0 trials; a file with such prompts has one column more, ``failure``, with the reason.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpo_verl.cost import StepTokens
from sgpo_verl.errors import SgpoError
from sgpo_verl.prompts import KeyArray
from sgpo_verl.tables import check_rows, read_plain, to_frame

SCHEMA = pa.schema(
    [
        ("prompt_key", pa.string()),
        ("data_source", pa.string()),
        ("index", pa.int64()),
        ("trials", pa.int32()),
        ("successes", pa.int32()),
        ("reward_mean", pa.float32()),
        ("prompt_tokens", pa.int32()),
        ("response_tokens_mean", pa.float32()),
    ]
)
FAILURE = pa.field("failure", pa.string())
JSON_LINES = (".jsonl", ".json")  # read as another tool's; what we write is parquet
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ProfileMetadata:
    """What was profiled, and how. The fields in ``IDENTITY`` must agree with the training run that uses it.

    model: {"path", "fingerprint"}, for a model of a hub also "revision". data: {file name: sha256}. sampling: temperature,
    top_p, top_k, lengths. reward: {"name", "sha256"}. chat_template, tokenizer: sha256. passes: of which it is the sum,
    each {"id", "seed", "sampler", ...}. total_tokens: prompt tokens once per prompt plus all response tokens. flops: to
    generate them. seconds: wall-clock of the passes, start-up of the servers included.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    chat_template: str = ""
    tokenizer: str = ""
    success_threshold: float | None = 0.5
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    passes: list[dict[str, Any]] = field(default_factory=list)
    total_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    format_version: int = FORMAT_VERSION

    IDENTITY = ("model", "data", "sampling", "reward", "chat_template", "tokenizer", "success_threshold")

    def unstated(self) -> list[str]:
        """The identity fields that say nothing: all of them where another tool made the profile."""
        return [name for name in self.IDENTITY if getattr(self, name) in ({}, "", None)]


@dataclass(frozen=True)
class Profile:
    """Counts per prompt (columns as in ``SCHEMA``) and where they come from.

    by_index: the prompts are known by ``extra_info.index`` alone; their keys are filled in when a data set is at hand.
    """

    table: pd.DataFrame
    metadata: ProfileMetadata
    by_index: bool = False

    def __len__(self) -> int:
        return len(self.table)

    @property
    def samples(self) -> int:
        return int(self.table["trials"].sum())

    @property
    def has_lengths(self) -> bool:
        """Whether it counted tokens; another tool's may not have."""
        return bool(self.table["response_tokens_mean"].any() and self.table["prompt_tokens"].any())

    def tokens(self) -> StepTokens:
        """What the samples took to generate."""
        table = self.table
        return StepTokens(
            groups=int((table["trials"] > 0).sum()),
            prompt_tokens=float(table["prompt_tokens"].sum()),
            rows=self.samples,
            response_tokens=float((table["trials"] * table["response_tokens_mean"]).sum()),
        )

    def align(self, keys_P: KeyArray, source: str = "profile", index_P: np.ndarray | None = None) -> "Profile":
        """This profile's rows in the order of ``keys_P``, and only those. index_P: int64, for a profile ``by_index``.

        Raises SgpoError naming the first prompts that it lacks: they cannot be planned for.
        """
        if not self.by_index and len(keys_P) == len(self) and self.table["prompt_key"].equals(pd.Series(keys_P)):
            return self  # the usual case: the same files
        position = self._positions(keys_P, source, index_P)
        missing = np.flatnonzero(position < 0)
        if missing.size:
            shown = ", ".join(map(str, keys_P[missing[:3]]))
            raise SgpoError(
                f"{source}: has no counts for {missing.size} of {len(keys_P)} prompts of data.train_files "
                f"(first: {shown}): profile the same files again with `sgpo profile`, or unset sgpo.profile.path"
            )
        table = self.table.iloc[position].reset_index(drop=True)
        return Profile(table.assign(prompt_key=pd.Series(keys_P).array) if self.by_index else table, self.metadata)

    def _positions(self, keys_P: KeyArray, source: str, index_P: np.ndarray | None) -> np.ndarray:
        """Row of each prompt in this table, -1 where it has none."""
        if not self.by_index:
            text = pa.large_string()  # in Arrow: pandas' index would make a Python string of every key
            found = pc.index_in(pa.array(keys_P, text), value_set=pa.array(self.table["prompt_key"], text))
            return found.fill_null(-1).to_numpy()
        if index_P is None or len(np.unique(index_P)) < len(index_P):
            raise SgpoError(
                f"{source}: has indices for prompts, and in data.train_files extra_info.index is not one number per prompt: "
                "add a column data_source, or prompt_key"
            )
        return pd.Index(self.table["index"]).get_indexer(index_P)


def differences(
    made: ProfileMetadata, wanted: ProfileMetadata, names: tuple[str, str] = ("profile", "run")
) -> list[str]:
    """One line per identity field on which two metadata disagree; empty if the profile fits the run.

    A field that one of them does not state at all is no disagreement. names: what to call the two.
    """
    lines = []
    unstated = {*made.unstated(), *wanted.unstated()}
    for name in ProfileMetadata.IDENTITY:
        a, b = getattr(made, name), getattr(wanted, name)
        if name in unstated or a == b:
            continue
        if not isinstance(a, dict):
            lines.append(f"{name}: {names[0]} {a!r}, {names[1]} {b!r}")
            continue
        keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k) and (name, k) != ("model", "path"))
        if "revision" in keys and name == "model" and not (a.get("revision") and b.get("revision")):
            keys.remove("revision")  # a hub's model whose files are not here yet
        lines += [f"{name}.{k}: {names[0]} {a.get(k)!r}, {names[1]} {b.get(k)!r}" for k in keys]
    return lines


def save_profile(profile: Profile, path: str | Path) -> Path:
    """Write atomically: the file is whole or not there. Returns the path."""
    path = Path(path)
    schema = SCHEMA.append(FAILURE) if "failure" in profile.table else SCHEMA
    table = pa.Table.from_pandas(profile.table, schema=schema, preserve_index=False)
    payload = json.dumps(asdict(profile.metadata), sort_keys=True).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"sgpo": payload})
    with _temporary_beside(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
        os.replace(temporary, path)
    return path


def check_writable(path: str | Path) -> None:
    """Find out before the samples are paid for that ``save_profile`` can write there. Raises SgpoError."""
    with _temporary_beside(Path(path)) as temporary:
        temporary.touch()


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A file to write to in the folder of ``path``, gone afterwards. Raises SgpoError if no profile can be written there."""
    if not path.name or (os.path.exists(path) and not os.path.isfile(path)):
        raise SgpoError(f"{path}: is a folder or a device; name a file for the profile")
    if path.suffix in JSON_LINES:
        raise SgpoError(f"{path}: a profile is written as parquet; name it {path.with_suffix('.parquet')}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SgpoError(f"{path}: cannot write the profile ({error.strerror}); name another file") from None


def load_profile(path: str | Path) -> Profile:
    """Read and check a profile: ours, or a plain parquet or JSON-lines table that another tool made (``tables.read_plain``).

    Raises SgpoError naming the file, and the column or row that is wrong.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise SgpoError(f"{path}: is a folder; name the profile's file")
    if not os.path.isfile(path):
        raise SgpoError(f"{path}: no such profile; make it with `sgpo profile <training overrides> -o {path}`")
    if path.suffix in JSON_LINES:
        return _plain(path, None)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        names = table.column_names  # raises where one is not UTF-8
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise SgpoError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); profile again") from None
    if b"sgpo" not in (table.schema.metadata or {}):
        return _plain(path, table)
    missing = [name for name in SCHEMA.names if name not in names]
    if missing:
        raise SgpoError(f"{path}: lacks the column(s) {', '.join(missing)}; is it a profile written by `sgpo profile`?")
    metadata = _metadata(table.schema.metadata, path)
    schema = SCHEMA.append(FAILURE) if "failure" in names else SCHEMA
    frame = to_frame(table, schema, path)
    check_rows(frame, path)
    return Profile(frame, metadata)


def _plain(path: Path, table: pa.Table | None) -> Profile:
    """Nothing says what it was made of, not even the threshold of a success: its metadata state nothing."""
    frame, by_index = read_plain(path, table, SCHEMA)
    return Profile(frame, ProfileMetadata(success_threshold=None), by_index)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _is_pass(stated: dict[str, Any]) -> bool:
    return isinstance(stated.get("id"), str) and type(stated.get("seed")) is int


def _metadata(raw: dict[bytes, bytes], path: Path) -> ProfileMetadata:
    try:
        stored = json.loads(raw[b"sgpo"], parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise SgpoError(f"{path}: its `sgpo` metadata is not JSON ({error}); profile again") from None
    if not isinstance(stored, dict) or stored.get("format_version") != FORMAT_VERSION:
        found = stored.get("format_version") if isinstance(stored, dict) else stored
        raise SgpoError(f"{path}: profile format {found!r}, this version reads {FORMAT_VERSION}; profile again")
    known = {name: stored[name] for name in ProfileMetadata.__dataclass_fields__ if name in stored}
    for item in fields(ProfileMetadata):
        default: Any = item.default if item.default_factory is MISSING else item.default_factory()
        value, expected = known.get(item.name, default), (int, float) if isinstance(default, float) else type(default)
        if item.name == "success_threshold" and value is None:
            continue  # the sum of other tools' tables
        if not isinstance(value, expected) or isinstance(value, bool):
            raise SgpoError(f"{path}: `sgpo` metadata: {item.name}={value!r:.100} has the wrong type; profile again")
        least = 0 if item.name in ("total_tokens", "flops", "seconds") else -math.inf
        if isinstance(default, int | float) and not (least <= value and abs(value) < 1e300):
            raise SgpoError(f"{path}: `sgpo` metadata: {item.name}={value!r:.100} cannot be; profile again")
    if not all(isinstance(p, dict) and _is_pass(p) for p in known.get("passes", [])):
        raise SgpoError(f"{path}: `sgpo` metadata: passes={known['passes']!r:.100} are not ours; profile again")
    path_of_model = known.get("model", {}).get("path", "")
    if not isinstance(path_of_model, str):
        raise SgpoError(f"{path}: `sgpo` metadata: model.path={path_of_model!r} has the wrong type; profile again")
    return ProfileMetadata(**known)
