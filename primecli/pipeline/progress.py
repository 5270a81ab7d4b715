"""Progress on stderr: on a terminal a bar with the rate and the time left, otherwise a plain line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from primecli.pipeline.pipe import in_pipeline
from primecli.printable import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

EARLY = 0.05  # of the total; see `Progress.together`
PLAIN_SECONDS = 10.0  # between two plain lines: often enough to see that it works, rarely enough for a log file


def say(stage: str, text: str) -> None:
    """Writes one line to stderr, such as "primecli verify: ..."."""
    print(f"primecli {stage}: {one_line(text)}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A number of seconds as people write it.

    >>> duration(3.21), duration(75), duration(3700)
    ('3.2 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Counts units of work and displays them. Draws a bar only if no other stage writes to the same terminal.

    stage: the name that the lines begin with.
    unit: what is counted, such as "rollouts".
    total: how many there will be; None while that is unknown.
    quiet: displays nothing.
    done: how many there have been so far.
    together: whether many are worked on at the same time, so that most are done soon after the first ones. Plain lines
        then do not say at once how long the rest takes.
    """

    def __init__(self, stage: str, unit: str, *, total: int | None = None, quiet: bool = False) -> None:
        self.stage = stage
        self.unit = unit
        self.total = total
        self.quiet = quiet
        self.done = 0
        self.together = False
        self._started: float | None = None  # at the first `advance`, so that waiting for input does not count
        self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        unit = self.unit

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text("" if speed is None else f"{speed:.1f} {unit}/s", style="progress.data.speed")

        self._bar = RichProgress(
            TextColumn(f"primecli {self.stage}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self.stage, total=self.total)
        self._bar.start()

    def advance(self, units: int, *, total: int | None = None) -> None:
        """Counts `units` more. total: how many there will be, once that is known."""
        if self._started is None:
            self._started = self._last_line = time.monotonic()
            if not self.quiet and sys.stderr.isatty() and not in_pipeline():
                self._start_bar()
        self.done += units
        if total is not None:
            self.total = total
        if self.total is not None:
            self.total = max(self.total, self.done)  # it may be an estimate, and too low
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)
        elif not self.quiet and self.done and time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self._last_line = time.monotonic()
            say(self.stage, self._line())

    def _line(self) -> str:
        rate = self.done / max(time.monotonic() - (self._started or 0.0), 1e-9)
        speed = f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"
        text = f"{self.done}{f' of {self.total}' if self.total else ''} {self.unit}, {speed}/s"
        if self.total and rate > 0 and (not self.together or self.done >= EARLY * self.total):
            text += f", {duration((self.total - self.done) / rate)} left"
        return text
