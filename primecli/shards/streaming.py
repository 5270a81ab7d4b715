"""Reading shards piece by piece: columns as a stream of small tables, and single rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.shards import parquet

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 2048  # read at once
BUFFER_BYTES = 1 << 20  # per column: no row group is read as a whole, however large another tool has made it


def stream(path: Path, columns: Sequence[str] | None, *, rows: int = BATCH_ROWS) -> Iterator[tuple[int, pa.Table]]:
    """Yields some columns of a shard (all when None) in tables of at most `rows` rows, each with its first row's
    number.

    The memory needed is that of `rows` rows, whatever the size of the shard. Raises InputError as `parquet.read_table`.
    """
    import pyarrow as pa

    parquet.check_readable(path, columns)
    first = 0
    try:
        for table in _batches(_open(path), columns, None, rows):
            yield first, parquet.conform(table, path, first_row=first)
            first += table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise parquet.unreadable(path, error) from error


def raw_stream(path: Path, *, rows: int = BATCH_ROWS) -> Iterator[tuple[int, pa.Table]]:
    """Like `stream` for all columns, but as they are in the file, whatever the schema says.

    Raises Arrow's own errors where the file cannot be read.
    """
    first = 0
    for table in _batches(_open(path), None, None, rows):
        yield first, table
        first += table.num_rows


def read_row(path: Path, row: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """Some columns (all when None) of one row; reads no row group but its own.

    Raises InputError where the shard has no such row.
    """
    import pyarrow as pa

    try:
        file = _open(path)
        first = 0
        for number in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(number).num_rows
            if first <= row < first + size:
                for table in _batches(file, columns, [number], BATCH_ROWS):
                    if row < first + table.num_rows:
                        picked = parquet.conform(table.slice(row - first, 1), path, first_row=row)
                        return dict(picked.to_pylist()[0])
                    first += table.num_rows
            first += size
    except (pa.ArrowException, OSError) as error:
        raise parquet.unreadable(path, error) from error
    raise InputError(f"{path}: has {first} rows; there is no row {row}", "rows are counted from 0")


def _open(path: Path) -> pq.ParquetFile:
    return parquet.open_parquet(path, buffer_size=BUFFER_BYTES, pre_buffer=False)


def _batches(
    file: pq.ParquetFile, columns: Sequence[str] | None, row_groups: list[int] | None, rows: int
) -> Iterator[pa.Table]:
    import pyarrow as pa

    names = None if columns is None else list(dict.fromkeys(columns))
    for batch in file.iter_batches(batch_size=rows, columns=names, row_groups=row_groups):
        table = pa.Table.from_batches([batch])
        yield table if names is None else table.select(names)
