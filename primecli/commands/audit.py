"""`primecli audit`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from primecli.audit import Disagreement, Metric, Responses


EXPLAINED_WIDTH = 120  # columns of a terminal from which the table says what each metric is


def audit(
    shards: options.Shards = None,
    fail_on: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--fail-on",
            metavar="METRIC<VALUE|METRIC>VALUE",
            help="End with exit code 5 when it holds, such as 'pair-accuracy<0.6'; may be repeated. Quote it.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="Groups of the strongest disagreement to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: options.Seed = 0,
    partial: options.Partial = False,
) -> None:
    """Ask whether the process reward is being gamed.

    Correlates each response's score, the sum of its process rewards, with its outcome, within groups and over
    the batch; with its length; and with repeating itself. Shows the groups where score and outcome disagree
    most. Intervals are 95%, by resampling whole groups.

    Several directories are shown beside each other: overoptimisation is a trend.

    Example:

      \b
      primecli audit runs/*/score-prm \\
        --fail-on 'pair-accuracy<0.6' --fail-on 'group-length-correlation>0.5'
    """
    import json

    from primecli import audit as auditing
    from primecli.errors import GateError, InputError
    from primecli.inputs import Inputs
    from primecli.progress import say

    gates = [_gate(text) for text in fail_on or ()]
    reports = []
    for label, arguments in _sources(shards or []):
        responses = auditing.collect(Inputs(arguments, partial=partial, warn=lambda text: say("audit", text)))
        if not len(responses.scores):
            raise InputError(
                f"{label or 'the input'}: no response has an outcome reward", "grade it with `primecli verify`"
            )
        reports.append(_Report(label, responses, seed, top))
    if as_json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
    else:
        _show(reports)
    _check(gates, reports, GateError)


def _sources(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """The inputs that are audited apart: each directory where several are named, else all together."""
    if len(arguments) > 1 and all(Path(argument).is_dir() for argument in arguments):
        return [(argument, [argument]) for argument in arguments]
    return [(arguments[0] if len(arguments) == 1 else "", arguments)]


def _gate(text: str) -> tuple[str, str, float]:
    from primecli.audit import METRICS
    from primecli.errors import UsageError

    match = re.fullmatch(r"\s*([a-z-]+)\s*([<>])\s*(\S+)\s*", text)
    try:
        if match is None:
            raise ValueError
        name, sign, bound = match[1], match[2], float(match[3])
    except ValueError:
        raise UsageError(f"--fail-on {text!r} is not METRIC<VALUE or METRIC>VALUE") from None
    if name not in METRICS:
        raise UsageError(f"--fail-on {text!r}: there is no metric {name}", f"there are {', '.join(METRICS)}")
    return name, sign, bound


class _Report:
    """What one input comes to."""

    def __init__(self, label: str, responses: Responses, seed: int, top: int) -> None:
        from primecli import audit as auditing

        self.label = label
        self.responses = len(responses.scores)
        self.ungraded = responses.ungraded
        self.groups = len(set(responses.group.tolist()))
        self.metrics: dict[str, Metric] = auditing.metrics(responses, seed=seed)
        self.health = auditing.health(self.metrics)
        self.disagreements: list[Disagreement] = auditing.disagreements(responses, top)
        self.by_length = auditing.by_length(responses)

    def as_json(self) -> dict[str, Any]:
        return {
            "input": self.label,
            "responses": self.responses,
            "ungraded": self.ungraded,
            "groups": self.groups,
            "metrics": {
                name: {"value": metric.value, "low": metric.low, "high": metric.high}
                for name, metric in self.metrics.items()
            },
            "health": self.health,
            "by_length": self.by_length,
            "disagreements": [
                {
                    "group_id": found.group_id,
                    "prompt": found.prompt,
                    "accuracy": found.accuracy,
                    "wrong": {"score": found.wrong_score, "shard": str(found.wrong_row[0]), "row": found.wrong_row[1]},
                    "right": {"score": found.right_score, "shard": str(found.right_row[0]), "row": found.right_row[1]},
                }
                for found in self.disagreements
            ],
        }


def _show(reports: list[_Report]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from primecli.audit import HEALTH, METRICS

    console = Console(highlight=False)
    table = Table(title="primecli audit", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for report in reports:
        table.add_column(escape(report.label or "all"), justify="right", overflow="fold")
    explained = len(reports) == 1 and console.width >= EXPLAINED_WIDTH
    if explained:
        table.add_column("what it is")
    rest = [""] if explained else []
    table.add_row("responses", *(f"{report.responses}" for report in reports), *rest)
    table.add_row("groups", *(f"{report.groups}" for report in reports), *rest)
    for name, meaning in METRICS.items():
        cells = [_cell(report, name, interval=len(reports) == 1) for report in reports]
        table.add_row(name, *cells, *([meaning] if explained else []))
    console.print(table)
    bounds = {
        name: f"watch {'above' if above else 'below'} {watch:g}, bad {'above' if above else 'below'} {bad:g}"
        for name, above, watch, bad in HEALTH
    }
    for report in reports:
        where = f"{report.label}: " if len(reports) > 1 else ""
        if report.ungraded:
            console.print(escape(f"{where}{report.ungraded} responses without an outcome reward were left out"))
        for name, verdict in report.health.items():
            if verdict != "ok":
                value = report.metrics[name].value
                console.print(escape(f"{where}{verdict}: {name} is {value:.3g} ({bounds[name]})"), soft_wrap=True)
    last = reports[-1]
    if len(reports) == 1:
        _show_lengths(console, last)
    if last.disagreements:
        _show_disagreements(console, last)


def _cell(report: _Report, name: str, *, interval: bool) -> str:
    metric = report.metrics[name]
    if metric.value is None:
        return "-"
    verdict = report.health.get(name, "ok")
    colour = {"ok": "", "watch": "yellow", "bad": "bold red"}[verdict]
    mark = "" if verdict == "ok" else " !" if verdict == "watch" else " !!"
    text = f"{metric.value:.3f}{mark}"
    if interval and metric.low is not None:
        text += f"  \\[{metric.low:.3f}, {metric.high:.3f}]"
    return f"[{colour}]{text}[/]" if colour else text


def _show_lengths(console: Any, report: _Report) -> None:
    from rich.table import Table

    table = Table(title="by length", title_justify="left")
    for heading in ("tokens", "accuracy", "mean score", "reward a token"):
        table.add_column(heading, justify="right")
    for row in report.by_length:
        span = f"{row['tokens_from']:.0f}-{row['tokens_to']:.0f}"
        table.add_row(span, f"{row['accuracy']:.3f}", f"{row['score']:.4f}", f"{row['reward_per_token']:.6f}")
    console.print(table)


def _show_disagreements(console: Any, report: _Report) -> None:
    from rich.markup import escape

    console.print("groups where score and outcome disagree most:")
    for found in report.disagreements:
        prompt = "".join(letter if letter.isprintable() else "\ufffd" for letter in found.prompt)
        console.print(
            escape(
                f"  {found.group_id} (accuracy {found.accuracy:.2f}) …{prompt}\n"
                f"    wrong, scored {found.wrong_score:+.4f}: row {found.wrong_row[1]} of {found.wrong_row[0]}\n"
                f"    right, scored {found.right_score:+.4f}: row {found.right_row[1]} of {found.right_row[0]}"
            ),
            soft_wrap=True,
        )


def _check(gates: list[tuple[str, str, float]], reports: list[_Report], failure: type[Exception]) -> None:
    """Raises GateError where a condition of --fail-on holds somewhere, InputError where that cannot be told."""
    from primecli.errors import InputError

    met = []
    for report in reports:
        for name, sign, bound in gates:
            value = report.metrics[name].value
            if value is None:
                raise InputError(
                    f"{report.label or 'the input'}: {name} cannot be computed for --fail-on {name}{sign}{bound:g}",
                    "it needs groups with right and wrong responses, or scores that vary",
                )
            if (value < bound) if sign == "<" else (value > bound):
                where = f"{report.label}: " if len(reports) > 1 else ""
                met.append(f"{where}{name} is {value:.4g}, {'below' if sign == '<' else 'above'} {bound:g}")
    if met:
        raise failure("; ".join(met))
