"""What `primecli audit` prints: the audits of one or several inputs as tables, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from primecli.analysis.audit import HEALTH, METRICS, SECTIONS, Bound, audit_responses
from primecli.analysis.audit_gates import check_gates, parse_gate
from primecli.analysis.labels import inputs_by_label, shortened
from primecli.analysis.responses import collect
from primecli.analysis.terminal import print_in_full
from primecli.errors import ReaderClosed
from primecli.printable import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXPLAINED_WIDTH = 150  # columns from which the table of metrics says what each is
MARKS = {"ok": "", "watch": " !", "bad": " !!"}
COLOURS = {"ok": "", "watch": "yellow", "bad": "bold red"}

Report = Mapping[str, Any]
"""What `audit_responses` gives."""


def show_audit(
    shards: Sequence[str],
    *,
    fail_on: Sequence[str],
    top: int,
    separator: str | None,
    tokenizer: str | None,
    seed: int,
    as_json: bool,
    partial: bool,
) -> None:
    """Audits shards, prints the audit, and raises GateError or InputError where a condition of `fail_on` asks for it.

    shards, partial: as on the command line; several directories are audited apart.
    top: how many groups of the strongest disagreement to show.
    separator: the text between two steps, for shards that do not say where steps end; None to look for none there.
    tokenizer: finds the separators; None for that of the model that sampled.
    """
    import contextlib

    from primecli.models.steps import StepFinder
    from primecli.models.token_text import Spellers
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    gates = [parse_gate(text) for text in fail_on]
    finder = None if separator is None else StepFinder(separator, Spellers(tokenizer), "--step-separator")
    reports: dict[str, Report] = {}
    for label, paths in inputs_by_label(shards).items():
        inputs = Inputs(paths, partial=partial, together=True, warn=lambda text: say("audit", text))
        reports[label] = audit_responses(collect(inputs, finder), seed=seed, top=top)
    with contextlib.suppress(ReaderClosed):  # a reader that closed the pipe still gets the exit code
        if as_json:
            _print_json(reports)
        else:
            labels = map(one_line, shortened(list(reports)))
            _print_tables(dict(zip(labels, reports.values(), strict=True)))
    check_gates(gates, reports)


def _print_json(reports: Mapping[str, Report]) -> None:
    import json

    print(json.dumps([{"input": label, **report} for label, report in reports.items()], indent=2, allow_nan=False))


def _print_tables(reports: Mapping[str, Report]) -> None:
    """One report whole, or several beside each other with the last one's disagreements; by label."""
    from rich.console import Console

    console = Console(highlight=False)
    last = list(reports.values())[-1]
    if len(reports) == 1:
        _print_one(console, last)
    else:
        for table in _trend_tables(reports, console.width):
            print_in_full(console, table)
        _print_trend_health(console, reports)
    if last["disagreements"]:
        _print_disagreements(console, last)


def _print_one(console: Console, report: Report) -> None:
    console.print(f"primecli audit: {_counts(report)}\n", soft_wrap=True)
    if console.width >= EXPLAINED_WIDTH:
        console.print(_metrics_table(report, explained=True))
    else:
        print_in_full(console, _metrics_table(report, explained=False))
    _print_health(console, report)
    print_in_full(console, _length_table(report["by_length"]))
    _print_kinds(console, report["by_kind"])


def _table(title: str | None = None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)


def _metrics_table(report: Report, *, explained: bool) -> Table:
    table = _table()
    table.add_column("metric", no_wrap=True)
    for heading in ("value", "95% interval", "of", "groups"):
        table.add_column(heading, justify="right", no_wrap=True)
    if explained:
        table.add_column("what it is")
    for name, meaning in METRICS.items():
        if name in SECTIONS.values() and table.row_count:
            table.add_section()
        metric = report["metrics"][name]
        interval = "" if metric["low"] is None else f"{metric['low']:.3f} … {metric['high']:.3f}"
        items = "" if metric["value"] is None else f"{metric['items']:,} {metric['unit']}"
        groups = "" if metric["value"] is None else f"{metric['groups']:,}"
        table.add_row(name, _value(report, name), interval, items, groups, *([meaning] if explained else []))
    return table


def _counts(report: Report) -> str:
    ungraded = f" ({report['ungraded']:,} without an outcome reward left out)" if report["ungraded"] else ""
    return f"{report['responses']:,} responses in {report['groups']:,} groups{ungraded}"


def _value(report: Report, name: str) -> str:
    """A metric's value, in rich's markup, marked and coloured by its verdict."""
    value = report["metrics"][name]["value"]
    if value is None:
        return "-"
    verdict = report["health"].get(name, {}).get("verdict", "ok")
    return _coloured(f"{value:.3f}{MARKS[verdict]}", verdict)


def _coloured(text: str, verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{text}[/]" if COLOURS[verdict] else text


def _bounds(bound: Bound) -> str:
    beyond = "beyond ±" if bound.side == "beyond" else f"{bound.side} "
    return f"watch {beyond}{bound.watch:g}, bad {beyond}{bound.bad:g}"


def _uncertainty(report: Report, name: str) -> str:
    """What its interval leaves open of a verdict; nothing where it is sure."""
    verdict = report["health"][name]
    if report["metrics"][name]["low"] is None:
        return "; it rests on too few groups for an interval"
    others = [level for level in verdict["possible"] if level != verdict["verdict"]]
    return f"; its interval also holds {' and '.join(others)}" if others else ""


def _print_health(console: Console, report: Report) -> None:
    for name, bound in HEALTH.items():
        if name in report["health"]:
            _print_verdict(console, report, name)
        else:
            console.print(f"  -      {name} cannot be computed ({_bounds(bound)})", soft_wrap=True)
    console.print()


def _print_verdict(console: Console, report: Report, name: str, label: str = "") -> None:
    """A metric's verdict, value and bounds in one line. label: of the report, where there are several."""
    from rich.markup import escape

    verdict = report["health"][name]["verdict"]
    value = report["metrics"][name]["value"]
    text = escape(f"{label}{name} is {value:.3f} ({_bounds(HEALTH[name])}){_uncertainty(report, name)}")
    console.print(f"  {_coloured(f'{verdict:<6}', verdict)} {text}", soft_wrap=True)


def _trend_tables(reports: Mapping[str, Report], width: int) -> Iterator[Table]:
    """A column for each input, in as many tables as fit the terminal; the last table also has the change over all."""
    labels = list(reports)
    name_width = max(map(len, METRICS))
    column_width = max(*map(len, labels), len("-0.000 !!")) + 2
    fitting = max((width - name_width) // column_width - 1, 1)
    for start in range(0, len(labels), fitting):
        title = "primecli audit" if start == 0 else None
        yield _trend_table(reports, labels[start : start + fitting], title, last=start + fitting >= len(labels))


def _trend_table(reports: Mapping[str, Report], labels: Sequence[str], title: str | None, *, last: bool) -> Table:
    """The metrics of some of the inputs. last: with a column of the change from the first input to the last."""
    from rich.markup import escape

    table = _table(title)
    table.add_column("metric", no_wrap=True)
    for heading in (*map(escape, labels), *(["change"] if last else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for count in ("responses", "groups", "ungraded"):
        table.add_row(count, *(f"{reports[label][count]:,}" for label in labels), *([""] if last else []))
    for name in METRICS:
        if name in SECTIONS.values():
            table.add_section()
        values = [_value(reports[label], name) for label in labels]
        table.add_row(name, *values, *([_change(list(reports.values()), name)] if last else []))
    return table


def _change(reports: Sequence[Report], name: str) -> str:
    """The last value less the first; with a star where their intervals do not overlap."""
    first, last = (report["metrics"][name] for report in (reports[0], reports[-1]))
    if first["value"] is None or last["value"] is None:
        return "-"
    text = f"{last['value'] - first['value']:+.3f}"
    if first["low"] is None or last["low"] is None:
        return text
    return f"{text} *" if first["high"] < last["low"] or last["high"] < first["low"] else text


def _print_trend_health(console: Console, reports: Mapping[str, Report]) -> None:
    console.print("change: last less first; * where their 95% intervals do not overlap", soft_wrap=True)
    concerns = [
        (label, name)
        for label, report in reports.items()
        for name, health in report["health"].items()
        if health["verdict"] != "ok"
    ]
    for label, name in concerns:
        _print_verdict(console, reports[label], name, f"{label}: ")
    if not concerns:
        console.print("  ok     every metric that has a bound, in every column")
    console.print()


def _length_table(quarters: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("reward by length, in quarters of the responses")
    for heading in ("tokens", "responses", "accuracy", "score", "reward/token", "of right", "of wrong"):
        table.add_column(heading, justify="right", no_wrap=True)
    for quarter in quarters:
        rewards = [part["reward_per_token"] for part in (quarter, quarter["right"], quarter["wrong"])]
        table.add_row(
            f"{quarter['tokens_from']}-{quarter['tokens_to']}",
            f"{quarter['responses']:,}",
            _number(quarter["accuracy"], 3),
            _number(quarter["score"], 4),
            *(_number(reward, 5) for reward in rewards),
        )
    return table


def _print_kinds(console: Console, kinds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Degenerate, truncated and duplicate responses beside the others; kinds without a response are only named."""
    present = {name: parts for name, parts in kinds.items() if parts["these"]["responses"]}
    table = _table("responses that are odd, and the others")
    table.add_column("responses", no_wrap=True)
    for heading in ("number", "accuracy", "score", "reward/token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, parts in present.items():
        for label, part in ((name, parts["these"]), (f"not {name}", parts["others"])):
            numbers = (_number(part["accuracy"], 3), _number(part["score"], 4), _number(part["reward_per_token"], 5))
            table.add_row(label, f"{part['responses']:,}", *numbers)
    if present:
        print_in_full(console, table)
    if len(present) < len(kinds):
        console.print(f"no response is {' or '.join(name for name in kinds if name not in present)}\n")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _print_disagreements(console: Console, report: Report) -> None:
    from rich.markup import escape

    console.print("groups where score and outcome disagree most:")
    for group in report["disagreements"]:
        lines = [("  ", f"{group['group_id']} (accuracy {group['accuracy']:.2f}) {group['prompt']}")]
        for which in ("wrong", "right"):
            response = group[which]
            place = f"row {response['row']} of {response['shard']}"
            lines.append(("    ", f"{which}, scored {response['score']:+.4f}: {place}"))
        console.print(escape("\n".join(f"{indent}{one_line(line)}" for indent, line in lines)), soft_wrap=True)
