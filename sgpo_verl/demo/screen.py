"""What the demo shows: a line per stage, and signs of life while one runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_PLAIN_SECONDS = 10.0


class Screen:
    """On a terminal a live last line; elsewhere a plain line every ten seconds."""

    def __init__(self, stages: int, console: Console | None = None):
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.stages = stages
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        """A line, or several, that stay."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, number: int, title: str) -> Iterator[Callable[[str], None]]:
        """Yields ``tick(text)``, to be called often with what is going on; at the end, the last text stays."""
        head, start, last = f"[{number}/{self.stages}] {title:<28}", time.monotonic(), ""

        def line(text: str) -> str:
            return f"{head}{_clock(time.monotonic() - start)}  {text}"

        if self.console.is_terminal:
            with self.console.status("") as status:

                def tick(text: str) -> None:
                    nonlocal last
                    last = text
                    status.update(line(text).replace("[", r"\["))

                tick("starting")
                yield tick
        else:
            said = start
            self.say(line("starting"))

            def tick(text: str) -> None:
                nonlocal last, said
                last = text
                if time.monotonic() - said >= _PLAIN_SECONDS - 0.5:
                    said = time.monotonic()
                    self.say(line(text))

            yield tick
        self.say(line(f"done  {last}"))

    def reused(self, number: int, title: str, seconds: float) -> None:
        """A stage that was finished in an earlier run of the demo."""
        self.say(f"[{number}/{self.stages}] {title:<28}      done before, in {_clock(seconds).strip()}")

    def elapsed(self) -> str:
        return _clock(time.monotonic() - self.start).strip()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"
