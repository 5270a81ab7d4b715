"""What `primecli evaluate --step-labels` prints: a table, or JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from primecli.analysis.evaluation import ALL
from primecli.analysis.labels import inputs_by_label
from primecli.analysis.step_label_report import OUTCOME, evaluate_step_labels, read_labelled_steps
from primecli.analysis.step_scores import By
from primecli.analysis.terminal import plain_table, print_in_full, printable_text, safe_json
from primecli.errors import InputError, ReaderClosed
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.progress import say
from primecli.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Report = Mapping[str, Any]
"""What `evaluate_step_labels` returns."""

DEFAULT_BY = (By.prefix, By.step)
PARTS = {"f1": "F1", "wrong-found": "  first wrong step found", "right-passed": "  right responses passed"}
MEAN = "mean"  # of the data sources


def show_step_labels(
    shards: Sequence[str],
    *,
    by: Sequence[By],
    threshold: float | None,
    threshold_from: str | None,
    seed: int,
    as_json: bool,
    partial: bool,
) -> None:
    """Evaluates scored shards with step labels, and prints the result; several directories one after the other.

    The arguments are the options of `primecli evaluate`; by: empty for those that are shown unasked.
    """
    reports: dict[str, Report] = {}
    inputs_apart = inputs_by_label(shards)
    for label, arguments in inputs_apart.items():
        inputs = Inputs(arguments, partial=partial, together=True, warn=lambda text: say("evaluate", text))
        responses, others = read_labelled_steps(inputs)
        sources = sorted({one.source for one in responses})
        if threshold_from is not None and threshold_from not in sources:
            together = "; name DIR/*.parquet to take directories together" if len(inputs_apart) > 1 else ""
            raise InputError(
                f"--threshold-from {threshold_from}: there is no such data source among the labelled responses"
                + (f" of {label}" if len(inputs_apart) > 1 else ""),
                f"there {'is' if len(sources) == 1 else 'are'} {', '.join(sources)}{together}",
            )
        report = evaluate_step_labels(
            responses,
            by=tuple(dict.fromkeys(by)) or DEFAULT_BY,
            threshold=threshold,
            threshold_from=threshold_from,
            seed=seed,
        )
        reports[label] = {**report, "unlabelled": others}
    with contextlib.suppress(ReaderClosed):
        if as_json:
            document = [{"input": label, **report} for label, report in reports.items()]
            print(safe_json(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)))
        else:
            _print_tables(reports)


def _print_tables(reports: Mapping[str, Report]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for number, (label, report) in enumerate(reports.items()):
        if number:
            console.print()
        _print_one(console, printable(label) if len(reports) > 1 else "primecli evaluate", report)


def _print_one(console: Console, title: str, report: Report) -> None:
    whole = report[ALL]
    others = f"; {report['unlabelled']:,} without step labels left out" if report["unlabelled"] else ""
    console.print(
        f"{title}: {whole['responses']:,} responses, {whole['wrong']:,} of them with a wrong step; "
        f"{whole['steps']:.1f} steps each on average{others}",
        markup=False,
        soft_wrap=True,
    )
    console.print(_where_from(report), markup=False, soft_wrap=True)
    console.print()
    print_in_full(console, _table(report))


def _where_from(report: Report) -> str:
    source = report["threshold_from"]
    if source is None:
        return "the threshold is the one that you gave; that of the outcome baseline has the best F1 on all responses"
    if source == ALL:
        return "thresholds have the best F1 on these same responses, so F1 is optimistic: see --threshold-from"
    return f"thresholds have the best F1 on {printable(source)}, where F1 is optimistic, and are used everywhere"


def _table(report: Report) -> Table:
    """A row for each number, a column for all responses and one for each data source, if there are several."""
    several = len(report["sources"]) > 1
    names = [ALL, *([MEAN, *report["sources"]] if several else [])]
    table = plain_table()
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(printable_text(name), justify="right", no_wrap=True)

    def parts(described: Report) -> dict[str, Report]:
        return {ALL: described[ALL], **described["sources"]}

    for method, described in report["methods"].items():
        title = "outcome alone, at the last step" if method == OUTCOME else f"by {method}"
        table.add_row(f"{title} (threshold {described['threshold']:.4g})")
        for key, shown in PARTS.items():
            cells = {name: _cell(part[key]) for name, part in parts(described).items()}
            cells[MEAN] = _number(described["mean_f1"]) if key == "f1" else ""
            table.add_row(f"  {shown}", *(cells[name] for name in names))
    whole = parts(report)
    table.add_row("by chance, at best")
    table.add_row("  F1", *("" if name == MEAN else _number(whole[name]["chance_f1"]) for name in names))
    table.add_row("lowest step is the last")
    table.add_row("  share", *("" if name == MEAN else _cell(whole[name]["last-lowest"]) for name in names))
    table.add_row(
        "  by chance", *("" if name == MEAN else _number(whole[name]["last-lowest-chance"]) for name in names)
    )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _cell(metric: Report) -> str:
    interval = "" if metric["low"] is None else f" \\[{metric['low']:.3f}, {metric['high']:.3f}]"
    return _number(metric["value"]) + interval
