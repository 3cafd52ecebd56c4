"""How far a stage is, read from the files that it writes."""

import json
from pathlib import Path

STEP, REWARD, ACCURACY = "step", "critic/rewards/mean", "val-core/"


def last_line(log: Path, starts: tuple[str, ...], otherwise: str) -> str:
    """The last line of a log that starts with one of ``starts``, shortened; ``otherwise`` while there is none.

    A library's warnings say nothing of how far a stage is. Progress bars redraw their line with \\r.
    """
    lines = [line.strip() for line in _tail(log).replace("\r", "\n").splitlines()]
    return next((line[:90] for line in reversed(lines) if line.startswith(starts)), otherwise)


def last_lines(log: Path, count: int) -> list[str]:
    """The last ``count`` lines of a log."""
    return _tail(log).splitlines()[-count:]


def training(metrics: Path, steps: int | None) -> str:
    """Step, latest training reward and validation accuracy, from verl's file log; the last line may be half written."""
    seen: dict[str, float] = {}
    for line in _text(metrics).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        seen[STEP] = row["step"]
        for key, value in row["data"].items():
            if key == REWARD:
                seen[REWARD] = value
            elif key.startswith(ACCURACY) and "/mean@" in key:
                seen[ACCURACY] = value
                seen.setdefault("first", value)
    if STEP not in seen:
        return "starting Ray and vLLM (about a minute)"
    parts = [f"step {seen[STEP]:.0f}" + (f"/{steps}" if steps else "")]
    if REWARD in seen:
        parts.append(f"reward {seen[REWARD]:.2f}")
    if ACCURACY in seen:
        parts.append(f"accuracy {seen['first']:.2f} -> {seen[ACCURACY]:.2f}")
    return "  ".join(parts)


def _tail(path: Path, size: int = 20_000) -> str:
    return _text(path)[-size:]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
