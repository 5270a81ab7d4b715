"""SQL over shards, by DuckDB, and the rows of its answer as a table, CSV or JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from primecli.analysis.terminal import plain_table, printable_text, safe_json
from primecli.errors import InputError, PrimecliError, UsageError
from primecli.files import require_regular_file
from primecli.printable import printable

TABLE_ROWS = 200  # of a table, which is held whole to fit its columns; the other formats have no limit
FETCHED_ROWS = 2048  # held in memory at once

READING = frozenset({"SELECT", "EXPLAIN"})  # DuckDB's types of statements that --read-only accepts

Row = tuple[Any, ...]


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"


def print_query(arguments: Sequence[str], *, format: Format, partial: bool, read_only: bool = False) -> None:
    """Runs a SQL query over shards, which are its table `rollouts`, and prints the rows of the answer.

    arguments: shards, directories or globs, then the query. read_only: refuse a query that writes anything, or reads
    anything else. Raises UsageError for a query that DuckDB refuses,
    InputError for shards that it cannot read, PrimecliError where it is not installed.
    """
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    *shards, sql = arguments
    if not any(letter.isspace() for letter in sql.strip()):
        raise UsageError(
            f"{sql} is not a SQL query",
            "shards come first, the query last: primecli query runs/1/verify 'SELECT ...'",
        )
    inputs = Inputs(shards, partial=partial, together=True, warn=lambda text: say("query", text))
    try:
        import duckdb
    except ImportError:
        raise PrimecliError("query needs the package duckdb", "pip install duckdb") from None
    paths = list(inputs.paths())
    for path in paths:
        require_regular_file(path)
    settings: dict[str, Any] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    with duckdb.connect(config=settings) as connection:
        try:
            connection.execute(_view(paths))
            if read_only:
                _confine(connection, paths)
        except duckdb.Error as error:
            raise InputError(f"the shards cannot be read: {_first_part(error)}") from error
        try:
            if read_only:
                _refuse_writing(connection, sql)
            result = connection.execute(sql)
            heads = [column[0] for column in result.description or ()]
            _print_rows(heads, _fetch(result) if heads else iter(()), format)
        except duckdb.Error as error:
            raise UsageError(f"the query failed: {_first_part(error)}") from error


def _confine(connection: Any, paths: Sequence[Path]) -> None:
    """Lets the connection open these files only, for good."""
    # DuckDB asks for a name as it is written in the view, and for the file that it finds by it
    names = {name for path in paths for name in (str(path), _without_globs(str(path)))}
    connection.execute("SET allowed_paths = $1", [sorted(names)])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _refuse_writing(connection: Any, sql: str) -> None:
    """Raises UsageError for a statement that is no query: one could write over a shard, which may be opened."""
    for statement in connection.extract_statements(sql):
        if statement.type.name not in READING:
            raise UsageError(f"--read-only refuses {statement.type.name}", "only SELECT and EXPLAIN are left")


def _view(paths: Iterable[Path]) -> str:
    """The statement that makes shards the view `rollouts`."""
    names = ", ".join("'" + _literal(str(path)) + "'" for path in paths)
    return (
        f"CREATE VIEW rollouts AS SELECT * FROM read_parquet([{names}], filename=true, file_row_number=true, "
        "union_by_name=true, hive_partitioning=false)"
    )


def _literal(path: str) -> str:
    """A path for between the quotes of SQL, where DuckDB would read it as a glob."""
    return _without_globs(path).replace("'", "''")


def _without_globs(path: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _first_part(error: BaseException) -> str:
    """An error of DuckDB in one line, without its picture of where in the query it is."""
    return " ".join(str(error).partition("\n\nLINE ")[0].split())


def _fetch(result: Any) -> Iterator[Row]:
    while rows := result.fetchmany(FETCHED_ROWS):
        yield from rows


def _print_rows(heads: Sequence[str], rows: Iterator[Row], format: Format) -> None:
    import csv
    import json

    if format is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        shown = printable if sys.stdout.isatty() else str  # unchanged in a file, harmless on a terminal
        writer.writerow([shown(head) for head in heads])
        writer.writerows([shown(_csv_field(value)) for value in row] for row in rows)
    elif format is Format.json:
        for row in rows:
            values = dict(zip(heads, map(_json_value, row), strict=True))
            print(safe_json(json.dumps(values, ensure_ascii=False, allow_nan=False)))
    elif heads:
        _print_table(heads, rows)


def _print_table(heads: Sequence[str], rows: Iterator[Row]) -> None:
    import itertools

    from rich.console import Console
    from rich.text import Text

    from primecli.pipeline.progress import say

    shown = list(itertools.islice(rows, TABLE_ROWS))
    table = plain_table()
    for index, head in enumerate(heads):
        numeric = any(isinstance(row[index], int | float) and not isinstance(row[index], bool) for row in shown)
        table.add_column(printable_text(head), justify="right" if numeric else "left", overflow="fold")
    null = Text("NULL", style="dim")
    for row in shown:
        table.add_row(*(null if value is None else printable_text(_cell(value)) for value in row))
    Console(highlight=False).print(table)
    if next(rows, None) is not None:
        say("query", f"the table ends after {TABLE_ROWS} rows: --format csv or json prints all of them")


def _json_value(value: Any) -> Any:
    """A value as JSON has it; what JSON has no number for (NaN, infinity) becomes null."""
    import math
    from decimal import Decimal

    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def _csv_field(value: Any) -> str:
    """A value as CSV has it: NULL is empty, lists are JSON."""
    import json

    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(_json_value(value), ensure_ascii=False)
    return repr(value) if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    """A value as the table has it: six digits of a number."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join("NULL" if item is None else _cell(item) for item in value) + "]"
    return str(value)
