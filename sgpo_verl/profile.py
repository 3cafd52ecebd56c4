"""The profile: trials and successes of every prompt under one policy. Evidence that any method can read.

On disk it is one parquet file, a row per prompt:

    prompt_key  data_source  index  trials  successes  reward_mean  prompt_tokens  response_tokens_mean
    gsm8k:17    gsm8k           17       8          3        0.375             93                 211.5

and, in the file's key-value metadata under "sgpo", JSON that says what was profiled and how (``ProfileMetadata``).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sgpo_verl.cost import StepTokens
from sgpo_verl.errors import SgpoError

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
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ProfileMetadata:
    """What was profiled, and how. The fields in ``IDENTITY`` must agree with the training run that uses it.

    model: {"path", "fingerprint"}. data: {file name: sha256}. sampling: temperature, top_p, top_k, lengths.
    reward: {"name", "sha256"}. chat_template: sha256. total_tokens: prompt tokens once per prompt plus all response
    tokens. seconds: wall-clock of the pass, start-up of the servers included.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    reward: dict[str, Any] = field(default_factory=dict)
    chat_template: str = ""
    success_threshold: float = 0.5
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    total_tokens: int = 0
    seconds: float = 0.0
    format_version: int = FORMAT_VERSION

    IDENTITY = ("model", "data", "sampling", "reward", "chat_template", "success_threshold")


@dataclass(frozen=True)
class Profile:
    """Counts per prompt (columns as in ``SCHEMA``) and where they come from."""

    table: pd.DataFrame
    metadata: ProfileMetadata

    def __len__(self) -> int:
        return len(self.table)

    @property
    def samples(self) -> int:
        return int(self.table["trials"].sum())

    def tokens(self) -> StepTokens:
        """What the samples took to generate."""
        table = self.table
        return StepTokens(
            groups=len(table),
            prompt_tokens=float(table["prompt_tokens"].sum()),
            rows=self.samples,
            response_tokens=float((table["trials"] * table["response_tokens_mean"]).sum()),
        )

    def align(self, keys_P: np.ndarray, source: str = "profile") -> "Profile":
        """This profile's rows in the order of ``keys_P``, and only those.

        Raises SgpoError naming the first prompts that it lacks: they cannot be planned for.
        """
        position = pd.Index(self.table["prompt_key"]).get_indexer(pd.Index(keys_P))
        missing = np.flatnonzero(position < 0)
        if missing.size:
            shown = ", ".join(map(str, keys_P[missing[:3]]))
            raise SgpoError(
                f"{source}: has no counts for {missing.size} of {len(keys_P)} prompts of data.train_files "
                f"(first: {shown}): profile the same files again with `sgpo profile`, or unset sgpo.profile.path"
            )
        return replace(self, table=self.table.iloc[position].reset_index(drop=True))


def differences(made: ProfileMetadata, wanted: ProfileMetadata) -> list[str]:
    """One line per identity field on which two metadata disagree; empty if the profile fits the run."""
    lines = []
    for name in ProfileMetadata.IDENTITY:
        a, b = getattr(made, name), getattr(wanted, name)
        if isinstance(a, dict) and isinstance(b, dict):
            keys = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k) and (name, k) != ("model", "path"))
            lines += [f"{name}.{k}: profile {a.get(k)!r}, run {b.get(k)!r}" for k in keys]
        elif a != b:
            lines.append(f"{name}: profile {a!r}, run {b!r}")
    return lines


def save_profile(profile: Profile, path: str | Path) -> Path:
    """Write atomically: the file is whole or not there. Returns the path."""
    path = Path(path)
    table = pa.Table.from_pandas(profile.table, schema=SCHEMA, preserve_index=False)
    payload = json.dumps(asdict(profile.metadata), sort_keys=True).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"sgpo": payload})
    with _temporary_beside(path) as temporary:
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    return path


def check_writable(path: str | Path) -> None:
    """Find out before the samples are paid for that ``save_profile`` can write there. Raises SgpoError."""
    path = Path(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise SgpoError(f"{path}: is a folder or a device; name a file for the profile")
    with _temporary_beside(path) as temporary:
        temporary.touch()


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    """A file to write to in the folder of ``path``, gone afterwards. Raises SgpoError if nothing can be written there."""
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
    """Read and check a profile. Raises SgpoError naming the file, and the column or row that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise SgpoError(f"{path}: no such profile; make it with `sgpo profile <training overrides> -o {path}`")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SgpoError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); profile again") from None
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise SgpoError(f"{path}: lacks the column(s) {', '.join(missing)}; is it a profile written by `sgpo profile`?")
    metadata = _metadata(table.schema.metadata or {}, path)
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError) as error:
        raise SgpoError(f"{path}: a column has the wrong type ({str(error).splitlines()[0]})") from None
    frame = table.to_pandas()
    _check_rows(frame, path)
    return Profile(frame, metadata)


def _metadata(raw: dict[bytes, bytes], path: Path) -> ProfileMetadata:
    try:
        stored = json.loads(raw[b"sgpo"])
    except KeyError:
        raise SgpoError(f"{path}: has no `sgpo` metadata, so what it profiled is unknown; profile again") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise SgpoError(f"{path}: its `sgpo` metadata is not JSON ({error}); profile again") from None
    if not isinstance(stored, dict) or stored.get("format_version") != FORMAT_VERSION:
        found = stored.get("format_version") if isinstance(stored, dict) else stored
        raise SgpoError(f"{path}: profile format {found!r}, this version reads {FORMAT_VERSION}; profile again")
    known = {name: stored[name] for name in ProfileMetadata.__dataclass_fields__ if name in stored}
    for item in fields(ProfileMetadata):
        default = item.default_factory() if item.default is MISSING else item.default
        expected = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(known.get(item.name, default), expected):
            raise SgpoError(
                f"{path}: `sgpo` metadata: {item.name}={known[item.name]!r} has the wrong type; profile again"
            )
    path_of_model = known.get("model", {}).get("path", "")
    if not isinstance(path_of_model, str):
        raise SgpoError(f"{path}: `sgpo` metadata: model.path={path_of_model!r} has the wrong type; profile again")
    return ProfileMetadata(**known)


def _check_rows(frame: pd.DataFrame, path: Path) -> None:
    """Every count must be one that sampling can give, and every prompt appear once."""
    if frame.empty:
        raise SgpoError(f"{path}: holds no prompts; profile again")
    trials, successes = frame["trials"], frame["successes"]
    checks = {
        "prompt_key is missing": frame["prompt_key"].isna(),
        "prompt_key is there twice": frame["prompt_key"].duplicated(),
        "index is missing": frame["index"].isna(),
        "trials is missing or below 1": trials.isna() | (trials < 1),
        "successes is missing or not between 0 and trials": successes.isna() | (successes < 0) | (successes > trials),
        "reward_mean is missing or not finite": ~np.isfinite(frame["reward_mean"]),
        "prompt_tokens is missing or negative": frame["prompt_tokens"].isna() | (frame["prompt_tokens"] < 0),
        "response_tokens_mean is missing or negative": ~frame["response_tokens_mean"].between(
            0, np.inf, inclusive="left"
        ),
    }
    for what, bad in checks.items():
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise SgpoError(f"{path}: row {row} ({frame['prompt_key'].iloc[row]}): {what}; profile again")
