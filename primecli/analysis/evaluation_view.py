"""What `primecli evaluate` prints and writes: tables, JSON, a row of a CSV file, and `_evaluation.json`."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.analysis.at_k import powers_up_to
from primecli.analysis.evaluated_samples import read_samples, tell_answers_apart
from primecli.analysis.evaluation import ALL, Samples, evaluate
from primecli.analysis.labels import inputs_by_label, shortened
from primecli.analysis.select import Select
from primecli.analysis.terminal import plain_table, print_in_full, printable_text, safe_json
from primecli.errors import InputError, PrimecliError, ReaderClosed
from primecli.files import lock, make_directory, write_text_atomically
from primecli.pipeline.evaluation import write_evaluation
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.progress import say
from primecli.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

Report = Mapping[str, Any]
"""What `evaluate` returns."""


def show_evaluation(
    shards: Sequence[str],
    *,
    ks: Sequence[int],
    select: Select | None,
    separator: str,
    tokenizer: str | None,
    baseline: str | None,
    seed: int,
    as_json: bool,
    csv_file: Path | None,
    partial: bool,
) -> None:
    """Evaluates shards, prints the result, and leaves `_evaluation.json` in each directory that is evaluated whole.

    shards, partial: as on the command line; several directories are evaluated apart. ks: the k to show; empty for the
    powers of two up to n. select, separator, tokenizer: as in `read_samples`. baseline: shards of another run on the
    same prompts; None for no comparison. seed: of the resampling. csv_file: gets a row for each input.
    """

    def read(arguments: Sequence[str]) -> tuple[Samples, list[Path]]:
        inputs = Inputs(arguments, partial=partial, together=True, warn=lambda text: say("evaluate", text))
        paths: list[Path] = []

        def remembered() -> Iterator[Any]:
            for shard in inputs:
                paths.append(shard.path)
                yield shard

        samples = read_samples(remembered(), select=select, separator=separator, tokenizer=tokenizer)
        tell_answers_apart(samples)
        return samples, paths

    other = None if baseline is None else read([baseline])[0]
    reports: dict[str, Report] = {}
    for label, arguments in inputs_by_label(shards).items():
        samples, paths = read(arguments)
        report = evaluate(samples, ks or range(1, samples.most() + 1), baseline=other, seed=seed)
        reports[label or _common_directory(paths)] = report
        _leave(paths, report)
    if csv_file is not None:
        write_rows(csv_file, reports, ks)
    with contextlib.suppress(ReaderClosed):
        if as_json:
            _print_json(reports)
        else:
            _print_tables(reports, ks, baseline)


def _common_directory(paths: Sequence[Path]) -> str:
    """What an input from stdin is called: the directory of its shards."""
    parents = list(dict.fromkeys(map(str, (path.parent for path in paths))))
    return parents[0] if len(parents) == 1 else f"{parents[0]} and {len(parents) - 1} more"


def _leave(paths: Sequence[Path], report: Report) -> None:
    """Writes `_evaluation.json` if the shards are all those of one directory."""
    directory = paths[0].parent
    if {path.resolve() for path in paths} != {path.resolve() for path in directory.glob("*.parquet")}:
        return
    try:
        write_evaluation(directory, {**report, "shards": [path.name for path in paths]})
    except PrimecliError as error:  # the directory may be somebody else's
        say("evaluate", f"{error}; the report and `watch` will not show this evaluation")


def _print_json(reports: Mapping[str, Report]) -> None:
    import json

    document = [{"input": label, **report} for label, report in reports.items()]
    print(safe_json(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)))


def _print_tables(reports: Mapping[str, Report], ks: Sequence[int], baseline: str | None) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    labels = shortened(list(reports))
    for label, report in zip(labels, reports.values(), strict=True):
        title = f"{printable(label)}: " if len(reports) > 1 else "primecli evaluate: "
        console.print(title + _counts(report), markup=False, soft_wrap=True)
    if all(report["select"] is None for report in reports.values()):
        console.print("no process rewards, so no best@k (score the shards with score-prm)", soft_wrap=True)
    console.print()
    if len(reports) > 1:
        columns = {label: report[ALL] for label, report in zip(labels, reports.values(), strict=True)}
    else:
        (report,) = reports.values()
        several = len(report["sources"]) > 1
        columns = {ALL: report[ALL], **(report["sources"] if several else {})}
    print_in_full(console, _table(columns, "metrics", ks))
    if baseline is not None:
        shared = ", ".join(str(column["baseline"]["prompts"]) for column in columns.values())
        console.print(f"\ndifference from {printable(baseline)}, by prompt ({shared} in common)", markup=False)
        differences = {label: column["baseline"] for label, column in columns.items()}
        print_in_full(console, _table(differences, "differences", ks))


def _counts(report: Report) -> str:
    whole = report[ALL]
    fewest, most = whole["samples_per_prompt"]
    each = f"{most} sample{'' if most == 1 else 's'} each" if fewest == most else f"{fewest} to {most} samples each"
    ungraded = f"; {report['ungraded']:,} samples without an outcome reward left out" if report["ungraded"] else ""
    select = "" if report["select"] is None else f"; best@k by the {report['select']} of process rewards"
    return f"{whole['prompts']:,} prompt{'' if whole['prompts'] == 1 else 's'}, {each}{ungraded}{select}"


def _table(columns: Mapping[str, Report], key: str, ks: Sequence[int]) -> Table:
    """A row for each metric, a column for each input or data source. key: `metrics` or `differences`."""
    table = plain_table()
    table.add_column("", no_wrap=True)
    for label in columns:
        table.add_column(printable_text(label), justify="right", no_wrap=True)
    for name in _shown(dict.fromkeys(name for column in columns.values() for name in column[key]), ks):
        cells = [_cell(column[key].get(name), signed=key == "differences") for column in columns.values()]
        table.add_row(name, *cells)
    return table


def _shown(names: Iterable[str], ks: Sequence[int]) -> list[str]:
    """The metrics to show: of those at each k, the powers of two and the largest k, if no k are asked for.

    maj@1 and best@1 are left out: with one sample there is nothing to choose, so they are pass@1.
    """
    at = {name: int(name.partition("@")[2]) for name in names if name.startswith(("pass@", "maj@", "best@"))}
    wanted = set(ks or powers_up_to(max(at.values())))
    return [name for name in names if name not in at or (at[name] in wanted and (at[name] > 1 or name == "pass@1"))]


def _cell(metric: Mapping[str, Any] | None, *, signed: bool) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    sign = "+" if signed else ""
    interval = "" if metric["low"] is None else f" [{metric['low']:{sign}.3f}, {metric['high']:{sign}.3f}]"
    return f"{metric['value']:{sign}.3f}{interval}".replace("[", "\\[")


def write_rows(path: Path, reports: Mapping[str, Report], ks: Sequence[int]) -> None:
    """Adds a row for each input to a CSV file, or replaces the row that the input has there; with a header.

    ks: the k to write; empty for the powers of two up to n.

    Raises InputError if the file has other columns, such as those of another n.
    """
    rows = [_row(label, report, ks) for label, report in reports.items()]
    header = list(dict.fromkeys(name for row in rows for name in row))
    make_directory(path.parent)
    with lock(path.with_name(f".{path.name}.lock"), str(path)):
        kept: list[dict[str, str]] = []
        if path.exists():
            reader = csv.DictReader(io.StringIO(_text(path)))
            if list(reader.fieldnames or ()) != header:
                raise InputError(
                    f"{path}: has other columns than this evaluation",
                    "write evaluations with another n, other data sources or another --k to another file",
                )
            replaced = {row["input"] for row in rows}
            kept = [row for row in reader if row["input"] not in replaced]
        text = io.StringIO()
        writer = csv.DictWriter(text, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
        write_text_atomically(path, text.getvalue())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _row(label: str, report: Report, ks: Sequence[int]) -> dict[str, str]:
    """The numbers over all prompts with their intervals, then those of each data source without."""
    row = {"input": label, "prompts": str(report[ALL]["prompts"]), "samples": str(report[ALL]["samples"])}
    metrics = report[ALL]["metrics"]
    shown = _shown(metrics, ks)
    for name in shown:
        row[name] = _number(metrics[name]["value"])
        row |= {f"{name}_{end}": _number(metrics[name][end]) for end in ("low", "high")}
    differences = report[ALL].get("baseline", {}).get("differences", {})
    row |= {f"{name}_difference": _number(differences[name]["value"]) for name in shown if name in differences}
    if len(report["sources"]) > 1:
        for source, described in report["sources"].items():
            found = described["metrics"]
            row |= {f"{source}:{name}": _number(found[name]["value"]) for name in shown if name in found}
    return row


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)
