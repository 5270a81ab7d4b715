"""`primecli stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from collections.abc import Mapping


def stats(
    shards: options.Shards = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    partial: options.Partial = False,
) -> None:
    """Say what shards come to: accuracy, pass@k, verdicts, lengths, rewards.

    By data source where there are several. pass@k is the unbiased estimate from the samples of each group. One
    pass, whatever the size; columns that a shard does not have yet are left out.

    Example:

      primecli stats runs/1/verify
    """
    import json

    from primecli.inputs import Inputs
    from primecli.progress import say
    from primecli.statistics import describe, gather

    gathered = gather(Inputs(shards or (), partial=partial, warn=lambda text: say("stats", text)))
    described = {name: describe(found) for name, found in sorted(gathered.items(), key=lambda item: item[0] != "all")}
    if as_json:
        print(json.dumps(described, indent=2))
    else:
        _show(described)


def _show(described: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="primecli stats", title_justify="left")
    table.add_column("")
    for name in described:
        table.add_column(escape(name), justify="right")
    flat = [dict(_flatten(numbers)) for numbers in described.values()]
    for row in dict.fromkeys(name for numbers in flat for name in numbers):
        table.add_row(row, *(numbers.get(row, "") for numbers in flat))
    console = Console(highlight=False)
    console.print(table)
    quantiles = Table(title="quantiles", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    heads = ("mean", "min", "p05", "p25", "p50", "p75", "p95", "max")
    for heading in ("", *heads):
        quantiles.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
    for source, numbers in described.items():
        for name, value in numbers.items():
            if isinstance(value, dict) and name != "verdicts":
                label = name.replace("process_reward", "reward").replace("_", " ")
                label = f"{label} ({source})" if len(described) > 1 else label
                quantiles.add_row(escape(label), *(_number(value[head]) for head in heads))
    console.print(quantiles)


def _flatten(numbers: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in numbers.items():
        if name == "verdicts":
            total = sum(value.values())
            rows += [(f"verdict {verdict}", f"{count:,} ({count / total:.1%})") for verdict, count in value.items()]
        elif not isinstance(value, dict):
            rows.append((name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.4f}"))
    return rows


def _number(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.2e}" if abs(value) < 1e-3 else f"{value:.3f}"
