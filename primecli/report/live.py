"""`primecli watch`: a run drawn in the terminal, looked at again and again until it is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.pipeline.progress import duration, say
from primecli.printable import one_line
from primecli.report.activity import activities, has_ended, is_over, seconds_left
from primecli.report.runs import TRAINING, Run, find_run

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from primecli.report.iteration_log import IterationLog

PLAIN_WIDTH = 120  # columns where stdout is not a terminal
UNLIMITED_HEIGHT = 10**6  # lines, where stdout is not a terminal
LEAST_ROWS = 3  # of the table, however small the terminal
OTHER_LINES = 8  # around the table: title, blank lines, heading, caption, prompt
STATE_STYLES = {"failed": "bold red", "killed": "bold red", "running": "green"}

COLUMNS = (
    ("training", "verify", "accuracy"),
    ("PRM pairs", "update-prm", "pair_accuracy_before"),
    ("trust", "compute-advantages", "process_trust"),
    ("process share", "compute-advantages", "process_share"),
    ("entropy", "update-policy", "entropy"),
    ("KL", "update-policy", "kl_update"),
    ("tokens", "generate", "response_tokens"),
    ("truncated", "generate", "truncated"),
    ("grad norm", "update-policy", "grad_norm"),
    ("lr", "update-policy", "lr"),
)
"""Of the table: heading, stage and metric, the most important first."""


def watch_run(
    directory: Path,
    *,
    iterations: int | None,
    interval: float,
    once: bool,
    loggers: Sequence[str],
    log_directory: Path | None,
) -> None:
    """Draws a run until it is over, or once where stdout is not a terminal; Ctrl-C ends it normally.

    iterations: how many the loop will make, None if unknown. interval: seconds between two looks. once: look a single
    time. loggers: also log the run's numbers with these. log_directory: where they write; None for `log` in the run.
    Raises InputError for a directory that cannot be a run, UsageError for a logger that cannot work here.
    """
    import signal
    import sys

    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console() if terminal else Console(width=PLAIN_WIDTH, height=UNLIMITED_HEIGHT)
    log = _open_log(loggers, log_directory or directory / "log")
    try:
        if once or not (terminal or log):
            _print(console, _look(directory, log), iterations)
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if terminal:
            _draw_until_over(console, directory, iterations, interval, log)
        else:
            _print(console, _look_until_over(directory, iterations, interval, log), iterations)
    except KeyboardInterrupt:
        return
    finally:
        if log is not None:
            log.close()


def _open_log(names: Sequence[str], directory: Path) -> IterationLog | None:
    if not names:
        return None
    from primecli.report.iteration_log import IterationLog

    def tell(text: str) -> None:
        say("watch", text)

    return IterationLog(names, directory, warn=tell, note=tell)


def _look(directory: Path, log: IterationLog | None) -> Run:
    """The run as it is now; its numbers are logged."""
    run = find_run(directory, may_be_empty=True)
    if log is not None:
        log.update(run)
    return run


def _look_until_over(
    directory: Path,
    total: int | None,
    interval: float,
    log: IterationLog | None,
    show: Callable[[Run], None] = lambda run: None,
) -> Run:
    """Looks at the run every `interval` seconds and shows it; returns it as it was last."""
    while True:
        run = _look(directory, log)
        show(run)
        if is_over(run, total) or (log is not None and total is None and has_ended(run, time.time())):
            return run
        time.sleep(interval)


def _draw_until_over(
    console: Console, directory: Path, total: int | None, interval: float, log: IterationLog | None
) -> None:
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:

        def show(run: Run) -> None:
            live.update(render(run, total, time.time(), height=console.height, width=console.width), refresh=True)

        _look_until_over(directory, total, interval, log, show)


def _print(console: Console, run: Run, total: int | None) -> None:
    console.print(render(run, total, time.time(), height=console.height, width=console.width))


def render(run: Run, total: int | None, now: float, *, height: int, width: int) -> RenderableType:
    """The run for a terminal of this size: what is running, then one row for each of the last iterations.

    total: how many iterations the loop will make, None if unknown. now: seconds since 1970. height, width: in cells.
    """
    from rich.console import Group
    from rich.text import Text

    current = activities(run, now)
    lines = [
        Text(one_line(activity.text()), style=STATE_STYLES.get(activity.state, "dim"), overflow="ellipsis")
        for activity in current
    ]
    if not current:
        lines.append(Text("nothing is running", style="dim"))
    lines += [Text(one_line(problem), style="bold red") for problem in run.problems]
    of_iteration, of_run = seconds_left(run, current, total, now)
    left = [f"about {duration(of_iteration)} left of this iteration"] if of_iteration is not None else []
    left += [f"about {duration(of_run)} left of {total} iterations"] if of_run is not None else []
    if left:
        lines.append(Text("; ".join(left)))
    title = Text.assemble(
        (f"{one_line(run.name)}  ", "bold"), (one_line(str(run.path)), "dim"), no_wrap=True, overflow="ellipsis"
    )
    rows = max(LEAST_ROWS, height - len(lines) - OTHER_LINES)
    return Group(title, *lines, Text(""), _table(run, rows, width))


def _table(run: Run, rows: int, width: int) -> Table:
    """The last `rows` iterations, with as many columns as fit into `width`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    iterations = run.iterations()
    earlier = len(iterations) - rows
    table = Table(box=SIMPLE_HEAD, caption=f"and {earlier} earlier iterations" if earlier > 0 else None)
    columns = _columns(run)
    shown = iterations[-rows:]
    used = 1
    for heading, cells in columns:
        used += 3 + max(len(heading), *(len(cells.get(iteration, "")) for iteration in shown), 0)
        if used > width:
            break
        table.add_column(heading, justify="right", no_wrap=True)
    for iteration in shown:
        table.add_row(*(cells.get(iteration, "") for _, cells in columns[: len(table.columns)]))
    return table


def _columns(run: Run) -> list[tuple[str, dict[int, str]]]:
    """The headings, each with its cells by iteration, the most important first."""
    columns = [
        ("iteration", {iteration: str(iteration) for iteration in run.iterations()}),
        ("rollouts", {iteration: f"{count:,}" for iteration, count in run.total_rollouts().items()}),
    ]
    metrics = [(name, "verify", "accuracy", name) for name in run.evaluations()]
    metrics += [
        (f"{name} {metric}", "evaluate", metric, name) for name in run.evaluations() for metric in ("pass@n", "maj@n")
    ]
    metrics += [(*column, TRAINING) for column in COLUMNS]
    for heading, stage, metric, purpose in metrics:
        values = run.series(stage, metric, purpose)
        if values:
            columns.append((heading, {iteration: f"{value:.3g}" for iteration, value in values.items()}))
    busy = {iteration: duration(seconds) for iteration, seconds in run.seconds_by_iteration().items()}
    columns.insert(len(columns) - 3, ("busy", busy))
    return columns
