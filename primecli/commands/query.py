"""`primecli query`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from collections.abc import Sequence


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"


def query(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARDS... SQL", help="Shards, directories or globs, and last the SQL over them."),
    ],
    output: Annotated[
        Format, typer.Option("--format", help="A table, CSV with a header, or JSON lines.")
    ] = Format.table,
    partial: options.Partial = False,
) -> None:
    """Ask shards with SQL.

    DuckDB runs it; the shards are the table `rollouts`, with the columns `filename` and `file_row_number` beside
    their own. Needs the package duckdb. Lists are 1-based, list_sum and list_min work on token columns.

    Example:

      \b
      primecli query runs/1/score-prm \\
        "SELECT verdict, count(*), avg(list_sum(process_rewards)) FROM rollouts GROUP BY 1"
      primecli query 'runs/*/verify' --format csv "SELECT filename, avg(outcome_reward) FROM rollouts GROUP BY 1"
    """
    from primecli.errors import InputError, PrimecliError, UsageError

    if len(shards) < 2:
        raise UsageError("primecli query takes shards and, last, the SQL", "primecli query runs/1/verify 'SELECT ...'")
    *places, sql = shards
    try:
        import duckdb
    except ImportError:
        raise PrimecliError("query needs the package duckdb", "pip install 'primecli[duckdb]'") from None
    paths = _paths(places, partial)
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    names = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    try:
        connection.execute(
            "CREATE VIEW rollouts AS SELECT * FROM "
            f"read_parquet([{names}], filename=true, file_row_number=true, union_by_name=true)"
        )
    except duckdb.Error as error:
        raise InputError(f"the shards cannot be read: {_first_line(error)}") from error
    try:
        result = connection.execute(sql)
        heads = [column[0] for column in result.description or ()]
        rows = result.fetchall() if heads else []
    except duckdb.Error as error:
        raise UsageError(f"the SQL does not work: {_first_line(error)}") from error
    _print(output, heads, rows)


def _paths(places: list[str], partial: bool) -> list[str]:
    """The shards that are meant, each directory's summary looked at; a glob may name directories."""
    import glob
    from pathlib import Path

    from primecli.errors import InputError
    from primecli.inputs import directory_shards
    from primecli.progress import say
    from primecli.summary import check_producer

    found: list[str] = []
    for place in places:
        matches = [place] if Path(place).exists() else sorted(glob.glob(place))
        if not matches:
            raise InputError(f"{place}: no such file or directory")
        for match in map(Path, matches):
            if match.is_dir():
                if not partial:
                    check_producer(match, None)
                found += [str(path) for path in directory_shards(match, lambda text: say("query", text))]
            else:
                found.append(str(match))
    return found


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _print(output: Format, heads: list[str], rows: Sequence[Sequence[Any]]) -> None:
    import csv
    import json

    if output is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows([["" if value is None else _text(value) for value in row] for row in rows])
    elif output is Format.json:
        for row in rows:
            print(json.dumps(dict(zip(heads, row, strict=True)), ensure_ascii=False, default=str))
    elif heads:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for place, head in enumerate(heads):
            numeric = any(isinstance(row[place], (int, float)) for row in rows)
            table.add_column(Text(head), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text("NULL", style="dim") if value is None else Text(_shown(value)) for value in row))
        console = Console(highlight=False)
        console.print(table)
        print(f"{len(rows)} row{'' if len(rows) == 1 else 's'}", file=sys.stderr)


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)
