"""`primecli watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 120  # columns where stdout is no terminal


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run.", show_default=False)],
    iterations: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--iterations",
            min=1,
            help="How many the loop is to make: then the time left of all is told, and watching ends with the last.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and end, as where stdout is no terminal.")] = False,
) -> None:
    """Follow a loop in the terminal: its numbers, the stages at work, the time left.

    Reads the _summary.json files below the run, as primecli report does, and counts the rollouts of stages that are
    not done. Starts nothing and writes nothing. A run that was killed or has failed says so.

    Ctrl-C ends it, with exit code 0.

    Example:

      primecli watch runs/a --iterations 100
    """
    import signal
    import sys

    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console() if terminal else Console(width=PLAIN_WIDTH)
    if once or not terminal:
        _print_once(console, run, iterations, terminal)
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _follow(console, run, iterations, interval)
    except KeyboardInterrupt:
        return


def _print_once(console: Console, directory: Path, total: int | None, terminal: bool) -> None:
    import time

    from primecli.live import render
    from primecli.runs import find_run

    height = console.height if terminal else 10**6
    run = find_run(directory, may_be_empty=True)
    console.print(render(run, total, time.time(), height=height, width=console.width))


def _follow(console: Console, directory: Path, total: int | None, interval: float) -> None:
    import time

    from rich.live import Live

    from primecli.live import is_over, render
    from primecli.runs import find_run

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            run = find_run(directory, may_be_empty=True)
            live.update(render(run, total, time.time(), height=console.height, width=console.width), refresh=True)
            if is_over(run, total):
                return
            time.sleep(interval)
