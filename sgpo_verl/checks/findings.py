"""One check, one finding: fine, doubtful, refused, or not looked at because of another."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sgpo_verl.errors import SgpoError

Check = tuple[str, Callable[[Any], str]]  # its name; what says that all is well, and raises SgpoError if it is not


class Doubt(SgpoError):
    """Said, and not refused: it holds for this machine, or may never matter."""


class Unseen(SgpoError):
    """Cannot be looked at as things are."""


@dataclass(frozen=True)
class Finding:
    """text: what was seen. fix: what to do about it, where ``text`` does not say so itself."""

    name: str
    status: Literal["ok", "warn", "fail", "skip"]
    text: str
    fix: str = ""

    @property
    def line(self) -> str:
        return f"{self.text}; {self.fix}" if self.fix else self.text


def examine(checks: Iterable[Check], subject: Any) -> Iterator[Finding]:
    """Every check's finding, as it is made. What one has refused the others do not refuse again.

    A check that breaks off is refused by what it raised: the other findings are not lost with it.
    """
    refused: dict[str, str] = {}
    for name, check in checks:
        try:
            yield Finding(name, "ok", check(subject))
        except Doubt as doubt:
            yield Finding(name, "warn", doubt.problem, doubt.way_out)
        except Unseen as reason:
            yield Finding(name, "skip", reason.problem)
        except SgpoError as error:
            if (first := refused.setdefault(str(error), name)) is name:
                yield Finding(name, "fail", error.problem, error.way_out)
            else:
                yield Finding(name, "skip", f"see {first}")
        except Exception as error:
            yield Finding(name, "fail", f"cannot be checked: {raised(error)}")


def raised(error: Exception) -> str:
    """An exception nobody foresaw, on one line: its type, its words, and the place that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({'/'.join(Path(frames[-1].filename).parts[-3:])}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
