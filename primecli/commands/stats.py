"""`primecli stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from primecli.options import Option, Partial, Shards

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table


def stats(
    shards: Shards = (),
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
    partial: Partial = False,
) -> None:
    """By data source where there are several. Accuracy is the mean outcome reward. pass@k is the unbiased estimate from
    the samples of each group, right being an outcome reward of 1; --json has its standard errors too. A response's
    reward is the sum of its process rewards. One pass, whatever the size; what no shard has yet is left out.

    Example:

      \b
      primecli stats runs/1/verify
      primecli stats 'runs/*/score-prm' --json
    """
    import json

    from primecli.analysis.statistics import ALL, describe, gather
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    gathered = gather(Inputs(shards or (), partial=partial, together=True, warn=lambda text: say("stats", text)))
    described = {ALL: describe(gathered)}
    if len(gathered.source_names) > 1:
        described |= {name: describe(gathered.of_source(name)) for name in sorted(gathered.source_names)}
    if as_json:
        print(json.dumps(described, indent=2))
    else:
        _show(described)


def _show(described: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console

    from primecli.analysis.statistics import ALL

    whole = described[ALL]
    console = Console(highlight=False)
    several = len(described) > 1
    groups = f"{whole['groups']:,} group{'' if whole['groups'] == 1 else 's'}"
    print(f"{whole['rollouts']:,} rollouts in {groups}, {whole['tokens']:,} tokens")
    if whole.get("ungraded"):
        print(f"{whole['ungraded']:,} without an outcome reward: not in accuracy and pass@k")
    if "accuracy" in whole:
        _print(console, _accuracy(described))
    if "verdicts" in whole:
        _print(console, _verdicts(described, several))
    _print(console, _quantiles(described, several))


def _print(console: Console, table: Table) -> None:
    """A table at its full width: a terminal that is narrower folds its lines, and no number is cut."""
    print()
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    before, console.width = console.width, max(console.width, needed)
    console.print(table)
    console.width = before


def _table(first: str, heads: list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold", min_width=10)
    for head in heads:
        table.add_column(_label(head), justify="right", no_wrap=True)
    return table


def _accuracy(described: Mapping[str, Mapping[str, Any]]) -> Table:
    names = [name for name in next(iter(described.values())) if name.startswith("pass@")]
    right = ["none", "some", "all"]
    table = _table("", ["accuracy", *names, "none right", "some", "all"])
    for source, numbers in described.items():
        if "accuracy" not in numbers:
            continue
        errors = numbers["standard_errors"]
        accuracy = f"{numbers['accuracy']:.3f}" + (f" ± {errors['accuracy']:.3f}" if errors else "")
        chances = [f"{numbers[name]:.3f}" if name in numbers else "" for name in names]
        shares = [f"{numbers['groups_right'][name]:.1%}" for name in right]
        table.add_row(_label(source), accuracy, *chances, *shares)
    return table


def _verdicts(described: Mapping[str, Mapping[str, Any]], several: bool) -> Table:
    names = list(next(iter(described.values()))["verdicts"])
    table = _table("", [*names, "truncated"])
    for source, numbers in described.items():
        counts = numbers.get("verdicts", {})
        total = sum(counts.values())
        cells = [f"{counts.get(name, 0):,} ({counts.get(name, 0) / total:.1%})" if total else "" for name in names]
        cut = numbers.get("truncated")
        table.add_row(_label(source) if several else "verdicts", *cells, "" if cut is None else f"{cut:.1%}")
    return table


def _quantiles(described: Mapping[str, Mapping[str, Any]], several: bool) -> Table:
    labels = {
        "length": "tokens",
        "process_reward": "reward",
        "process_reward_right": "  of right",
        "process_reward_wrong": "  of wrong",
    }
    table = _table("", ["mean", "min", "5%", "25%", "50%", "75%", "95%", "max"])
    for number, (source, numbers) in enumerate(described.items()):
        if several:
            if number:
                table.add_row("")
            table.add_row(_label(source))
        for name, label in labels.items():
            if name in numbers:
                table.add_row(label, *(_number(value) for value in numbers[name].values()))
    return table


def _label(text: str) -> Any:
    from rich.text import Text

    from primecli.models.token_text import printable

    return Text(printable(text))


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}" if abs(value) >= 1e-2 else f"{value:.1e}"
