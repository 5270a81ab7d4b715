"""Whether the texts of a shard are UTF-8: Parquet does not ensure it, and Python cannot read one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from primecli.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa


def check_texts(table: pa.Table, path: Path, *, first_row: int = 0) -> None:
    """Raises InputError for a column with a text that is not UTF-8. first_row: the table's first in the file."""
    for name in table.column_names:
        row = row_of_broken_text(table[name])
        if row is not None:
            raise InputError(
                f"{path}: column {name} holds bytes that are not UTF-8 at row {first_row + row}",
                "write the column again as text",
            )


def row_of_broken_text(column: pa.ChunkedArray) -> int | None:
    """The first row of a column that holds a text which is not UTF-8, however deep inside; None if there is none."""
    import pyarrow as pa

    if not _holds_text(column.type) or _is_valid(column):
        return None
    if pa.types.is_dictionary(column.type):
        return 0  # the text is in the dictionary, which all rows share
    first, last = 0, len(column)  # the row is in [first, last)
    while last - first > 1:
        middle = (first + last) // 2
        part = column.take(pa.array(range(first, middle)))  # a copy: of a slice, Arrow checks all that lists hold
        if _is_valid(part):
            first = middle
        else:
            last = middle
    return first


def _is_valid(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _holds_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or any(_holds_text(kind.field(index).type) for index in range(kind.num_fields))
    )
