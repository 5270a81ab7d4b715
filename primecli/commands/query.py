"""`primecli query`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from primecli.options import Option, Partial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"


TABLE_ROWS = 200  # rows of a table; the other formats have no limit
FETCHED = 2048  # rows held at a time


def query(
    shards: Annotated[
        tuple[str, ...],
        Option(
            "Shards, directories or globs, or none where paths come from stdin; then SQL.",
            argument=True,
            metavar="[SHARDS]... SQL",
        ),
    ],
    output: Annotated[Format, Option("A table, CSV with a header, or JSON lines.", flags="--format")] = Format.table,
    partial: Partial = False,
) -> None:
    """DuckDB runs it; the shards are the table `rollouts`, with the columns `filename` and `file_row_number` (from 0)
    beside their own; a column that some shards do not have is NULL there. Needs the package duckdb. Nothing is written,
    unless the SQL itself says COPY ... TO, and no extension is loaded, so that nothing goes over the network.

    Lists are 1-based: process_rewards[1] is the first token's, list_sum(process_rewards) a response's.

    Example:

      \b
      primecli query runs/1/score-prm \\
        "SELECT verdict, count(*), avg(list_sum(process_rewards)) FROM rollouts GROUP BY 1"
      primecli query 'runs/*/verify' --format csv "SELECT filename, avg(outcome_reward) FROM rollouts GROUP BY 1"
    """
    from primecli.errors import InputError, PrimecliError, UsageError
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    *places, sql = shards
    if not any(letter.isspace() for letter in sql.strip()):
        raise UsageError(
            f"{sql} is no SQL", "shards come first, the SQL last: primecli query runs/1/verify 'SELECT ...'"
        )
    inputs = Inputs(places, partial=partial, together=True, warn=lambda text: say("query", text))
    try:
        import duckdb
    except ImportError:
        raise PrimecliError("query needs the package duckdb", "pip install duckdb") from None
    names = ", ".join("'" + _literal(str(path)) + "'" for path in inputs.paths())
    settings: dict[str, Any] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    with duckdb.connect(config=settings) as connection:
        try:
            connection.execute(
                f"CREATE VIEW rollouts AS SELECT * FROM read_parquet([{names}], filename=true, file_row_number=true, "
                "union_by_name=true, hive_partitioning=false)"
            )
        except duckdb.Error as error:
            raise InputError(f"the shards cannot be read: {_line(error)}") from error
        try:
            result = connection.execute(sql)
            heads = [column[0] for column in result.description or ()]
            _print(output, heads, _rows(result) if heads else iter(()))
        except duckdb.Error as error:
            raise UsageError(f"the SQL does not work: {_line(error)}") from error


def _literal(path: str) -> str:
    """A path within quotes of SQL, its marks those of no glob."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path).replace("'", "''")


def _line(error: BaseException) -> str:
    """What is wrong, without the picture of where that DuckDB draws below."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split())


def _rows(result: Any) -> Iterator[tuple[Any, ...]]:
    while rows := result.fetchmany(FETCHED):
        yield from rows


def _print(output: Format, heads: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import csv
    import json

    from primecli.models.token_text import printable, safe_json

    if output is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        shown = printable if sys.stdout.isatty() else str  # as they are into a file, harmless on a terminal
        writer.writerow([shown(head) for head in heads])
        writer.writerows([shown(_csv(value)) for value in row] for row in rows)
    elif output is Format.json:
        for row in rows:
            values = dict(zip(heads, map(_plain, row), strict=True))
            print(safe_json(json.dumps(values, ensure_ascii=False, allow_nan=False)))
    elif heads:
        _print_table(heads, rows)


def _print_table(heads: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import itertools

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from primecli.models.token_text import printable
    from primecli.pipeline.progress import say

    kept = list(itertools.islice(rows, TABLE_ROWS))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        numeric = any(isinstance(row[place], int | float) and not isinstance(row[place], bool) for row in kept)
        table.add_column(Text(printable(head)), justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*(Text("NULL", style="dim") if value is None else Text(printable(_cell(value))) for value in row))
    Console(highlight=False).print(table)
    if next(rows, None) is not None:
        say("query", f"there are more than these {TABLE_ROWS} rows: --format csv or json has all of them")


def _plain(value: Any) -> Any:
    """A value as JSON has it; what JSON has no number for (NaN, infinity) is null."""
    import math
    from decimal import Decimal

    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def _csv(value: Any) -> str:
    """A value as CSV has it: NULL is empty, lists are JSON."""
    import json

    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(_plain(value), ensure_ascii=False)
    return repr(value) if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    """A value as the table has it: six digits of a number."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join("NULL" if item is None else _cell(item) for item in value) + "]"
    return str(value)
