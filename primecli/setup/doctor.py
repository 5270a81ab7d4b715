"""`primecli doctor`: runs the checks of this installation and shows their results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from primecli.errors import ReaderClosed
from primecli.pipeline.progress import say
from primecli.printable import printable
from primecli.setup import doctor_checks, doctor_iteration
from primecli.setup.doctor_checks import Check

STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


def examine(*, iteration: bool, model: str | None, as_json: bool) -> int:
    """Runs all checks and prints them; returns the exit code: 1 if a check failed.

    iteration: also run a small iteration, which takes longest. model: a model to train, a directory or hub id; None
    for none. as_json: print JSON instead of a table. A failed check is also written to stderr at once.
    """
    if iteration:
        say("doctor", "checking the installation and running a small iteration: this takes about half a minute")
    results = []
    for check in _checks(iteration, model):
        results.append(check)
        if check.status == "failed":
            say("doctor", f"{check.name}: {check.found}{f' ({check.hint})' if check.hint else ''}")
    failed = any(check.status == "failed" for check in results)
    with contextlib.suppress(ReaderClosed):  # the exit code counts even if the reader has seen enough
        if as_json:
            print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in results]}, indent=2))
        else:
            _print_table(results)
    return 1 if failed else 0


def _checks(iteration: bool, model: str | None) -> Iterator[Check]:
    """The results of all checks, each as soon as it is known."""
    steps: list[Callable[[], Iterator[Check]]] = [
        doctor_checks.versions,
        doctor_checks.packages,
        doctor_checks.processor,
        doctor_checks.memory,
        doctor_checks.accelerators,
        doctor_checks.collectives,
        doctor_checks.ray_cluster,
        doctor_checks.disk,
        doctor_checks.sandbox,
        doctor_checks.extras,
    ]
    if model is not None:
        steps.insert(steps.index(doctor_checks.disk) + 1, lambda: doctor_checks.disk_for_training(model))
    for step in [*steps, doctor_iteration.iteration] if iteration else steps:
        yield from step()


def _print_table(results: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="primecli doctor", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in results:
        text = Text(printable(check.found))
        if check.hint:
            text.append(f"\n{check.hint}", style="dim")
        table.add_row(Text(check.name), Text(check.status, style=STYLES[check.status]), text)
    Console(highlight=False).print(table)
