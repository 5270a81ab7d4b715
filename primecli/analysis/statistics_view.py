"""What `primecli stats` prints: the statistics as tables, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from primecli.analysis.statistics import ALL, describe, gather
from primecli.analysis.terminal import plain_table, print_in_full, printable_text

if TYPE_CHECKING:
    from rich.table import Table

LENGTH_AND_REWARD = {
    "length": "tokens",
    "process_reward": "reward",
    "process_reward_right": "  of right",
    "process_reward_wrong": "  of wrong",
}
"""Labels of the rows of quantiles, by their key in a description."""

Described = Mapping[str, Mapping[str, Any]]
"""By data source, what `describe` says of it; ALL comes first."""


def show_statistics(shards: Sequence[str], *, partial: bool, as_json: bool) -> None:
    """Prints the statistics of shards, of each data source too where there are several.

    shards, partial: as on the command line.
    """
    import json

    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    inputs = Inputs(shards, partial=partial, together=True, warn=lambda text: say("stats", text))
    gathered = gather(inputs)
    described = {ALL: describe(gathered)}
    if len(gathered.source_names) > 1:
        described |= {name: describe(gathered.of_source(name)) for name in sorted(gathered.source_names)}
    if as_json:
        print(json.dumps(described, indent=2))
    else:
        _print_tables(described)


def _print_tables(described: Described) -> None:
    from rich.console import Console

    whole = described[ALL]
    groups = f"{whole['groups']:,} group{'' if whole['groups'] == 1 else 's'}"
    print(f"{whole['rollouts']:,} rollouts in {groups}, {whole['tokens']:,} tokens")
    if whole.get("ungraded"):
        print(f"{whole['ungraded']:,} without an outcome reward: not in accuracy and pass@k")
    tables = [_accuracy(described)] if "accuracy" in whole else []
    tables += [_verdicts(described)] if "verdicts" in whole else []
    console = Console(highlight=False)
    for table in (*tables, _quantiles(described)):
        print()
        print_in_full(console, table)


def _table(heads: Sequence[str]) -> Table:
    """An empty table with a column of labels, then one of numbers for each head."""
    table = plain_table()
    table.add_column("", overflow="fold", min_width=10)
    for head in heads:
        table.add_column(printable_text(head), justify="right", no_wrap=True)
    return table


def _accuracy(described: Described) -> Table:
    names = [name for name in described[ALL] if name.startswith("pass@")]
    table = _table(["accuracy", *names, "none right", "some", "all"])
    for source, numbers in described.items():
        if "accuracy" not in numbers:
            continue
        errors = numbers["standard_errors"]
        accuracy = f"{numbers['accuracy']:.3f}" + (f" ± {errors['accuracy']:.3f}" if errors else "")
        chances = [f"{numbers[name]:.3f}" if name in numbers else "" for name in names]
        shares = [f"{numbers['groups_right'][name]:.1%}" for name in ("none", "some", "all")]
        table.add_row(printable_text(source), accuracy, *chances, *shares)
    return table


def _verdicts(described: Described) -> Table:
    names = list(described[ALL]["verdicts"])
    table = _table([*names, "truncated"])
    for source, numbers in described.items():
        counts = numbers.get("verdicts", {})
        total = sum(counts.values())
        cells = [f"{counts.get(name, 0):,} ({counts.get(name, 0) / total:.1%})" if total else "" for name in names]
        truncated = numbers.get("truncated")
        label = source if len(described) > 1 else "verdicts"
        table.add_row(printable_text(label), *cells, "" if truncated is None else f"{truncated:.1%}")
    return table


def _quantiles(described: Described) -> Table:
    table = _table(["mean", "min", "5%", "25%", "50%", "75%", "95%", "max"])
    for index, (source, numbers) in enumerate(described.items()):
        if len(described) > 1:
            if index:
                table.add_row("")
            table.add_row(printable_text(source))
        for name, label in LENGTH_AND_REWARD.items():
            if name in numbers:
                table.add_row(printable_text(label), *(_number(value) for value in numbers[name].values()))
    return table


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 1e-2 else f"{value:.1e}"
