"""`primecli watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from primecli.options import Option
from primecli.pipeline.loggers import LoggerName

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from primecli.report.iteration_log import IterationLog
    from primecli.report.runs import Run

PLAIN_WIDTH = 120  # columns where stdout is no terminal


def watch(
    run: Annotated[Path, Option("The directory of a run.", argument=True, metavar="RUN")],
    iterations: Annotated[
        int | None,
        Option(
            "How many the loop is to make: then the time left of all is told, and watching ends with the last.", min=1
        ),
    ] = None,
    interval: Annotated[float, Option("Seconds between two looks.", min=0.2)] = 2.0,
    once: Annotated[bool, Option("Print once and end, as where stdout is no terminal.")] = False,
    log: Annotated[
        tuple[LoggerName, ...],
        Option("Log the numbers there too, as they come, until the run has ended; may be given twice."),
    ] = (),
    log_dir: Annotated[Path | None, Option("What --log writes.  [default: log in the run]", metavar="DIR")] = None,
) -> None:
    """Reads the _summary.json files below the run, as primecli report does, and counts the rollouts of stages that are
    not done. Starts nothing and, without --log, writes nothing. A run that was killed or has failed says so.

    --log gives the numbers of each iteration, those of the report's curves, to TensorBoard or wandb, once each. It
    follows the run where stdout is no terminal too, until --iterations are done or nothing has been at work for a
    minute; of a run that has ended it logs all at once. With --once it logs what there is.

    Ctrl-C ends it, with exit code 0.

    Example:

      primecli watch runs/a --iterations 100
    """
    import signal
    import sys

    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console() if terminal else Console(width=PLAIN_WIDTH)
    numbers = _iteration_log(log, log_dir or run / "log")
    try:
        if once or not (terminal or log):
            _print(console, _look(run, numbers), iterations, terminal)
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if terminal:
            _follow(console, run, iterations, interval, numbers)
        else:
            _print(console, _until_ended(run, iterations, interval, numbers), iterations, terminal)
    except KeyboardInterrupt:
        return
    finally:
        if numbers is not None:
            numbers.close()


def _iteration_log(names: tuple[LoggerName, ...], directory: Path) -> IterationLog | None:
    if not names:
        return None
    from primecli.pipeline.progress import say
    from primecli.report.iteration_log import IterationLog

    def tell(text: str) -> None:
        say("watch", text)

    return IterationLog(names, directory, warn=tell, note=tell)


def _look(directory: Path, numbers: IterationLog | None) -> Run:
    """The run as it is now, its numbers logged."""
    from primecli.report.runs import find_run

    run = find_run(directory, may_be_empty=True)
    if numbers is not None:
        numbers.update(run)
    return run


def _print(console: Console, run: Run, total: int | None, terminal: bool) -> None:
    import time

    from primecli.report.live import render

    height = console.height if terminal else 10**6
    console.print(render(run, total, time.time(), height=height, width=console.width))


def _follow(
    console: Console, directory: Path, total: int | None, interval: float, numbers: IterationLog | None
) -> None:
    import time

    from rich.live import Live

    from primecli.report.live import render

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:

        def show(run: Run) -> None:
            live.update(render(run, total, time.time(), height=console.height, width=console.width), refresh=True)

        _until_ended(directory, total, interval, numbers, show)


def _until_ended(
    directory: Path,
    total: int | None,
    interval: float,
    numbers: IterationLog | None,
    show: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Looks again and again; returns the run as it was last."""
    import time

    from primecli.report.live import has_ended, is_over

    while True:
        run = _look(directory, numbers)
        show(run)
        if is_over(run, total) or (numbers is not None and total is None and has_ended(run, time.time())):
            return run
        time.sleep(interval)
