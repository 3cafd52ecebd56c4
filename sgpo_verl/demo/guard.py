"""One at a time in a folder, and an orderly end whatever ends it."""

import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from sgpo_verl.errors import SgpoError


@contextmanager
def only_one(directory: Path, what: str = "demo") -> Iterator[None]:
    """Raises SgpoError if another demo, or whatever this is, is running in this directory."""
    with (directory / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SgpoError(f"{directory}: another {what} is running there; use another --dir") from None
        yield


@contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM and a closed terminal end us as an exception would, so that the child is stopped on the way out."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
