"""One stage as a child process: output to a log file, the caller called back while it runs, nothing left behind.

The child gets a session of its own. Ray's daemons and workers stay in it, so everything that a stage started can be
found and stopped by that session's id, whatever process groups they made.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # Linux: the signal a process gets when its parent dies
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0


def run_child(command: Sequence[str], log: Path, environment: Mapping[str, str], tick: Callable[[], None]) -> int:
    """Run ``command`` to its end, its output in ``log``; ``tick()`` is called twice a second. Returns the exit status.

    Whatever ends this call, a KeyboardInterrupt included, ends every process of the child's session.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        while process.poll() is None:
            tick()
            time.sleep(_POLL_SECONDS)
    finally:
        stop_session(process)
    return process.returncode


def stop_session(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the session that ``process`` leads: first asked to, after ten seconds made to.

    Signals to us wait meanwhile: a second, impatient Ctrl-C must not leave half of Ray behind.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        _stop(process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    wanted = signal.SIGTERM
    while members := _members(process):
        for pid in members:
            _signal(pid, wanted)
        pause = time.monotonic() + 1.0  # a second for goodbyes before the next signal
        while time.monotonic() < pause and _members(process):
            time.sleep(0.1)
        if time.monotonic() > deadline:
            wanted = signal.SIGKILL
    process.wait()


def _members(process: subprocess.Popen[bytes]) -> list[int]:
    """Living processes of the session that ``process`` leads; its leader first, so that it can end the others itself."""
    process.poll()  # reaps it, so that a dead leader doesn't count
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else [process.pid]
    return sorted((pid for pid in pids if _session(pid) == process.pid), key=lambda pid: pid != process.pid)


def _session(pid: int) -> int | None:
    """The session that a living process is in; None for one that is gone or waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return None if state == "Z" else os.getsid(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it may end between the look and the signal
        os.kill(pid, number)


def _die_with_parent() -> None:
    """In the child, before it starts: should the demo be killed outright, the kernel asks its child to stop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
