"""Changes of Parquet files: of a column's type, its values, its lists' lengths, and of the footer's JSON."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from primecli.shards import parquet
from tests.fuzz.mutators import raw
from tests.fuzz.values import change, dumps

TYPES: tuple[pa.DataType, ...] = (
    pa.int8(),
    pa.int64(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.null(),
    pa.timestamp("us"),
    pa.decimal128(20, 3),
    pa.dictionary(pa.int32(), pa.string()),
    pa.list_(pa.int64()),
    pa.list_(pa.float64()),
    pa.large_list(pa.int32()),
    pa.list_(pa.string()),
    pa.list_(pa.list_(pa.float32())),
    pa.struct([("a", pa.int64())]),
    pa.map_(pa.string(), pa.int64()),
)

NUMBERS = (math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, -0.0, 1e-45, 5.0)
INTEGERS = (-1, 0, 257, 258, 2**31 - 1, -(2**31), 100_000)
TEXTS = ("", "\0", "\x1b[31m\x1b]0;x\x07", "x" * 100_000, "\u202e", "nan", "[1]", "𝒳" * 50, "\r\n", "((30!)!)!", "p0@0")


def write(path: Path, table: pa.Table, footer: bytes | None) -> None:
    """The table as a Parquet file, as `write_shard` would write it, with any bytes as its footer."""
    with pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=True) as writer:
        writer.write_table(table, row_group_size=parquet.ROW_GROUP_ROWS)
        if footer is not None:
            writer.add_key_value_metadata({parquet.FOOTER_KEY.decode(): footer})


def footer(path: Path, draws: random.Random) -> str:
    """One change in the JSON of a shard's footer; one time in eight its text is broken."""
    file = pq.ParquetFile(path, pre_buffer=False)
    text: bytes = file.metadata.metadata[parquet.FOOTER_KEY]
    if draws.random() < 0.12:
        text, words = text[: draws.randrange(len(text))], "the footer cut off"
    else:
        value, words = change(json.loads(text), draws)
        text = dumps(value)
    write(path, file.read(use_threads=False).replace_schema_metadata(None), text)
    return words


def columns(path: Path, draws: random.Random) -> str:
    """One change of a column. In half of the cases the footer's hash is that of the changed rows."""
    file = pq.ParquetFile(path, pre_buffer=False)
    text = (file.metadata.metadata or {}).get(parquet.FOOTER_KEY)
    table, words = change_table(file.read(use_threads=False).replace_schema_metadata(None), draws)
    write(path, table, text)
    if text is not None and table.num_rows and draws.random() < 0.5:
        write(path, table, json.dumps({**json.loads(text), "content": parquet.content_of(path)}).encode())
        words += ", hashed again"
    return words


def table_bytes(path: Path, draws: random.Random) -> str:
    """Broken bytes."""
    return raw(path, draws)


def change_table(table: pa.Table, draws: random.Random) -> tuple[pa.Table, str]:
    """The table with one change, and the change in words."""
    place = draws.randrange(table.num_columns)
    name = table.column_names[place]
    kind = draws.choice(
        ("values", "values", "values", "values", "type", "type", "null", "drop", "twice", "rows", "other")
    )
    if kind == "drop":
        return table.drop_columns([name]), f"column {name} dropped"
    if kind == "twice":
        return table.append_column(name, table[name]), f"column {name} twice"
    if kind == "rows":
        return _rows(table, draws)
    if kind == "other":
        new = draws.choice(("", "\x1b[31m", "x" * 3000, "filename", "file_row_number", "\0", name.upper()))
        return table.append_column(new, table[name]), f"a column {new[:20]!r} more"
    if kind == "type":
        new_type = draws.choice(TYPES)
        return table.set_column(place, name, _cast(table[name], new_type)), f"column {name} is {new_type}"
    rows = table[name].to_pylist()
    row = draws.randrange(len(rows))
    change_value = (lambda value: None) if kind == "null" else _changed(rows[row], draws)
    touched = range(len(rows)) if draws.random() < 0.2 else [row]
    for number in touched:
        rows[number] = change_value(rows[number])
    field_type = table.schema.field(place).type
    words = f"column {name}: row {row if len(touched) == 1 else 'all'} is now {repr(rows[row])[:60]}"
    try:
        column = pa.array(rows, field_type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        column = pa.nulls(len(rows), field_type)
        words = f"column {name} is all null"
    return table.set_column(place, name, column), words


def _rows(table: pa.Table, draws: random.Random) -> tuple[pa.Table, str]:
    order = list(range(table.num_rows))
    kind = draws.choice(("none", "first", "twice", "shuffled", "last gone"))
    if kind == "none":
        order = []
    elif kind == "first":
        order = order[:1]
    elif kind == "twice":
        order = order * 2
    elif kind == "shuffled":
        draws.shuffle(order)
    else:
        order = order[:-1]
    return table.take(pa.array(order, pa.int64())), f"rows: {kind}"


def _cast(column: Any, new_type: pa.DataType) -> Any:
    try:
        return column.cast(new_type)
    except (pa.ArrowException, ValueError):
        return pa.nulls(len(column), new_type) if draws_null(new_type) else _filled(len(column), new_type)


def draws_null(new_type: pa.DataType) -> bool:
    """Whether a column of this type is made of nulls."""
    return bool(pa.types.is_null(new_type) or pa.types.is_dictionary(new_type) or pa.types.is_map(new_type))


def _filled(count: int, new_type: pa.DataType) -> Any:
    samples: tuple[Any, ...] = (7, 0.5, "7", b"7", [7], [0.5], ["7"], [[0.5]], {"a": 7}, True)
    for value in samples:
        try:
            return pa.array([value] * count, new_type)
        except (pa.ArrowException, TypeError, ValueError):
            continue
    return pa.nulls(count, new_type)


def _changed(value: Any, draws: random.Random) -> Callable[[Any], Any]:
    """A change that suits a value like this one."""
    if isinstance(value, bool):
        return lambda old: None
    if isinstance(value, int):
        number = draws.choice(INTEGERS)
        return lambda old: number
    if isinstance(value, float):
        real = draws.choice(NUMBERS)
        return lambda old: real
    if isinstance(value, str) or value is None:
        text = draws.choice(TEXTS)
        return lambda old: text
    if isinstance(value, list):
        return _changed_list(value, draws)
    return lambda old: None


def _changed_list(value: list[Any], draws: random.Random) -> Callable[[Any], Any]:
    kind = draws.choice(("empty", "shorter", "longer", "value", "value", "value", "null inside", "long"))
    if kind == "empty" or not value:
        return lambda old: []
    if kind == "shorter":
        return lambda old: (old or [])[:-1]
    if kind == "longer":
        return lambda old: [*(old or []), *(old or [])[:1]]
    if kind == "long":
        return lambda old: (old or []) * 400
    if kind == "null inside":
        return lambda old: [None, *(old or [])[1:]]
    inner = _changed(value[0], draws)
    place = draws.randrange(len(value))
    return lambda old: [inner(item) if number == place else item for number, item in enumerate(old or [])]
