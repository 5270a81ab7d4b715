"""`primecli watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from primecli.options import Option
from primecli.pipeline.loggers import LoggerName


def watch(
    run: Annotated[Path, Option("Run directory.", argument=True, metavar="RUN")],
    iterations: Annotated[
        int | None,
        Option(
            "Iterations that the loop will make: shows the time left of all of them, and stops after the last.", min=1
        ),
    ] = None,
    interval: Annotated[float, Option("Seconds between two looks.", min=0.2)] = 2.0,
    once: Annotated[bool, Option("Print once and exit; the default where stdout is not a terminal.")] = False,
    log: Annotated[
        tuple[LoggerName, ...],
        Option("Also log the numbers there as they arrive, until the run ends; may be given twice."),
    ] = (),
    log_dir: Annotated[Path | None, Option("Where --log writes.  [default: log in the run]", metavar="DIR")] = None,
) -> None:
    """Reads the _summary.json files below the run, as primecli report does, and counts the rollouts of stages that are
    still running. It starts nothing and, without --log, writes nothing. It also tells when a stage failed or was
    killed.

    --log sends the numbers of each iteration, the same as in the report's curves, to TensorBoard or wandb, each of them
    once. It then follows the run even where stdout is not a terminal, until --iterations are finished or nothing has
    run for a minute; a run that has already ended is logged at once. With --once it logs what there is and exits.

    Ctrl-C stops it, with exit code 0.

    Example:

      primecli watch runs/a --iterations 100
    """
    from primecli.report.live import watch_run

    watch_run(run, iterations=iterations, interval=interval, once=once, loggers=log, log_directory=log_dir)
