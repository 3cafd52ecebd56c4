"""A profiling pass on disk, so that a crash costs no more than the requests that were under way.

    profile.parquet.parts/
        pass.json        what is being sampled, and the pass's own id
        00000.parquet    10,000 finished requests; whole or not there
        00001.jsonl      those since: a line each, on disk before the next is counted

The profile is their sum. A shard and its line file have one number, so a crash between writing the one and removing
the other counts nothing twice.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sgpo_verl.counts import SHARD, Counts, Sampled, impossible_rows
from sgpo_verl.errors import SgpoError

SHARD_LINES = 10_000
SYNC_SECONDS = 5.0  # how much a power cut may cost; a killed process loses nothing that was added


def parts_folder(profile: str | Path) -> Path:
    """Where the parts of an unfinished profile are."""
    return Path(f"{profile}.parts")


def pass_id(folder: Path) -> str | None:
    """Of the pass whose parts are in ``folder``; None if there is none that can be read."""
    try:
        identity = json.loads((folder / "pass.json").read_text())["id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return identity if isinstance(identity, str) else None


def discard(folder: Path) -> None:
    """Remove the parts of a pass, ``pass.json`` last; what we did not write stays, and so does the folder then.

    Raises SgpoError if a process is at work there.
    """
    if not folder.is_dir():
        return
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SgpoError(f"{folder}: another process is sampling this profile; wait for it, or end it") from None
    names = ("[0-9]*.parquet", "[0-9]*.jsonl", ".*.tmp", "seconds", "pass.json")
    for path in (path for name in names for path in folder.glob(name)):
        path.unlink()
    lock.release()
    (folder / "lock").unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


class PassFiles:
    """The folder of one pass, held by one process at a time. Use as a context manager."""

    def __init__(self, folder: Path, header: Mapping[str, Any], prompts: int):
        """header: everything that must be the same for samples to be added up (plain JSON). prompts: how many there are.

        Raises SgpoError if the folder cannot be written, another process holds it, or it holds another pass: naming
        every difference.
        """
        self.folder, self.counts = folder, Counts(prompts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(folder / "lock")
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise SgpoError(
                f"{folder}: another process is sampling this profile; wait for it, or use another -o"
            ) from None
        except OSError as error:
            raise SgpoError(f"{folder}: cannot write there ({error.strerror}); name another file with -o") from None
        try:
            self.id = self._header(dict(header))
            self._number, self._lines = self._read()
            self._stream = self._line_file(self._number).open("a")
        except BaseException:
            self._lock.release()
            raise
        self._before = self._read_seconds()
        self._start = self._synced = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall-clock spent on the pass, in this call and in earlier ones."""
        return self._before + time.monotonic() - self._start

    def _read_seconds(self) -> float:
        try:
            seconds = float((self.folder / "seconds").read_text())
        except (OSError, ValueError):  # not there yet, or cut short by a crash: a figure, not a sample
            return 0.0
        return seconds if 0 <= seconds < 1e12 else 0.0

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        (self.folder / "seconds").write_text(f"{self.seconds:.1f}")
        self._synced = time.monotonic()

    def __enter__(self) -> "PassFiles":
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._stream.closed:
            self._sync()
            self._stream.close()
        self._lock.release()

    def _header(self, header: dict[str, Any]) -> str:
        """The pass's id: a new one in an empty folder, else of the pass that is there, if it is this one."""
        path = self.folder / "pass.json"
        header = json.loads(json.dumps(header))  # as it will be read back
        if not path.exists():
            header["id"] = uuid.uuid4().hex
            _write_whole(path, lambda temporary: temporary.write_text(json.dumps(header, indent=1, sort_keys=True)))
            return header["id"]
        try:
            found = json.loads(path.read_text())
            identity = found.pop("id")
            if not isinstance(identity, str):
                raise ValueError(f"id {identity!r:.60}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SgpoError(f"{path}: not readable ({error!r}); --force samples from the start") from None
        differ = sorted(k for k in found.keys() | header.keys() if found.get(k) != header.get(k))
        if differ:
            what = "; ".join(f"{k}: there {found.get(k)!r:.200}, now {header.get(k)!r:.200}" for k in differ)
            raise SgpoError(
                f"{self.folder}: holds samples of an unfinished pass over something else ({what}): restore that, use "
                "another -o, or discard them with --force"
            )
        return identity

    def _line_file(self, number: int) -> Path:
        return self.folder / f"{number:05}.jsonl"

    def _read(self) -> tuple[int, list[Sampled]]:
        """(number of the open shard, its lines): counts everything that is there, and mends what a crash left."""
        number = 0
        while (shard := self.folder / f"{number:05}.parquet").exists():
            self.counts.add_shard(self._read_shard(shard))
            self._line_file(number).unlink(missing_ok=True)
            number += 1
        lines, path = [], self._line_file(number)
        if path.exists():
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            for i, line in enumerate(whole.split(b"\n")[:-1]):
                lines.append(_parse(line, f"{path}: line {i + 1}"))
                self._check(np.array([lines[-1].position]), path)
                self.counts.add(lines[-1])
            os.truncate(path, len(whole))  # a line that a crash cut short
        return number, lines

    def _read_shard(self, path: Path) -> pa.Table:
        try:
            table = pq.read_table(path, page_checksum_verification=True).cast(SHARD)
            if any(table[name].null_count for name in SHARD.names[:-1]):
                raise ValueError("a count is missing")
            if (rows := impossible_rows(table)).size:
                raise ValueError(f"row {rows[0]} cannot be")
        except (pa.ArrowException, ValueError, OSError) as error:
            raise SgpoError(
                f"{path}: not a shard ({str(error).splitlines()[0]}); --force samples from the start"
            ) from None
        self._check(table["position"].to_numpy(), path)
        return table

    def _check(self, positions: np.ndarray, path: Path) -> None:
        wrong = positions[(positions < 0) | (positions >= len(self.counts.trials_P))]
        if wrong.size:
            raise SgpoError(f"{path}: position {wrong[0]} is no prompt of this data; --force samples from the start")

    def add(self, sampled: Sampled) -> None:
        """Count a finished request, after putting it on disk. Raises SgpoError if the disk takes no more."""
        try:
            self._stream.write(json.dumps(astuple(sampled)) + "\n")
            self._stream.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self._sync()
            self._lines.append(sampled)
            self.counts.add(sampled)
            if len(self._lines) >= SHARD_LINES:
                self._close_shard()
        except OSError as error:
            raise SgpoError(
                f"{self.folder}: cannot write ({error.strerror}); what is there is kept: run again to go on"
            ) from None

    def _close_shard(self) -> None:
        columns = zip(*map(astuple, self._lines), strict=True)
        table = pa.table(dict(zip(SHARD.names, map(list, columns), strict=True)), schema=SHARD)
        write = partial(pq.write_table, table, write_page_checksum=True)
        _write_whole(self.folder / f"{self._number:05}.parquet", write)
        self._stream.close()
        self._line_file(self._number).unlink()
        self._number, self._lines = self._number + 1, []
        self._stream = self._line_file(self._number).open("a")

    def remove(self) -> None:
        """The pass is over and its profile written: take the folder away."""
        self._stream.close()
        self._lock.release()
        discard(self.folder)


def _parse(line: bytes, where: str) -> Sampled:
    try:
        sampled = Sampled(*json.loads(line))
        good = sampled.can_be()
    except (ValueError, TypeError, RecursionError):
        good = False
    if not good:
        raise SgpoError(f"{where} is not one that we wrote; --force samples from the start")
    return sampled


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """``write(temporary)``, on disk, then renamed: the file is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, path)
