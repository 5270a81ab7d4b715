"""Rollout shards: Parquet files whose footer says what they are and how they were made.

The footer's key `primecli` holds JSON: the schema version, the fingerprint of what the shard is the result
of, the hash of its content, counts (sums over its rows, from which a directory's metrics are made) and the
provenance chain, one record a stage, which is only ever appended to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.files import Json, file_hash, write_atomically
from primecli.shards import parquet, schema

if TYPE_CHECKING:
    import pyarrow as pa

FOOTER_KEY = b"primecli"
NAME_PATTERN = re.compile(r"rollouts-(\d{5})-of-(\d{5})\.parquet")
ROW_GROUP_ROWS = 512
HASHED_BYTES = 1 << 20  # read at a time


def shard_name(index: int, total: int) -> str:
    """The name of shard `index` (from 0) of `total`.

    >>> shard_name(0, 4)
    'rollouts-00000-of-00004.parquet'
    """
    return f"rollouts-{index:05d}-of-{total:05d}.parquet"


@dataclass(frozen=True, slots=True)
class Footer:
    """What a shard's footer says.

    rows: number of rollouts.
    columns: names of the columns, in the file's order.
    content: hash of the rows, 32 hex digits; of the whole file where another tool wrote it.
    fingerprint: hash of everything that decides the content, 32 hex digits; None where another tool wrote it.
    recipe: what the fingerprint is a hash of; None where another tool wrote it.
    counts: sums over the rows, such as {"groups": 64}; None where another tool wrote it.
    provenance: one record for each stage so far, oldest first; empty where another tool wrote it.
    """

    rows: int
    columns: tuple[str, ...]
    content: str
    fingerprint: str | None = None
    recipe: Mapping[str, Any] | None = None
    counts: Mapping[str, float] | None = None
    provenance: tuple[Mapping[str, Any], ...] = ()


def read_footer(path: Path) -> Footer:
    """Reads a shard's footer; a file of another tool is hashed instead.

    Raises InputError where the file is missing, is not Parquet, is cut short, or is of a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    columns = tuple(metadata.schema.to_arrow_schema().names)
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise InputError(f"{path}: the column {twice} is there twice")
    raw = (metadata.metadata or {}).get(FOOTER_KEY)
    if raw is None:
        return Footer(metadata.num_rows, columns, content=file_hash(path))
    try:
        fields = json.loads(raw)
        version = int(fields["schema_version"])
        footer = Footer(
            rows=metadata.num_rows,
            columns=columns,
            content=fields["content"],
            fingerprint=fields["fingerprint"],
            recipe=fields["recipe"],
            counts=fields["counts"],
            provenance=tuple(fields["provenance"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: the primecli footer cannot be read: {error}", "make the shard again") from error
    if version > schema.SCHEMA_VERSION:
        raise InputError(
            f"{path}: written with schema version {version}; this primecli knows up to {schema.SCHEMA_VERSION}",
            "upgrade primecli",
        )
    return footer


def unreadable(path: Path, error: BaseException) -> InputError:
    """What is wrong with a file that Arrow cannot read, as an error to raise."""
    if path.is_dir():
        return InputError(f"{path}: is a directory, not a shard")
    try:
        with open(path, "rb") as file:
            head = file.read(4)
            file.seek(0, 2)
            size = file.tell()
    except OSError as failure:
        return InputError(f"{path}: cannot be read: {failure.strerror}")
    if size == 0:
        return InputError(f"{path}: is empty (0 bytes)", "make the shard again")
    if head == b"PAR1":
        return InputError(f"{path}: a truncated or damaged Parquet file", "make the shard again")
    return InputError(f"{path}: not a Parquet file", "stages read Parquet rollout shards")


def require_columns(path: Path, present: Sequence[str], needed: Iterable[str]) -> None:
    """Raises InputError, naming the stages that make them, where columns are missing."""
    missing = [name for name in needed if name not in present]
    if missing:
        known = sorted({schema.BY_NAME[name].stage for name in missing if name in schema.BY_NAME})
        hint = f"made by `primecli {'` and `primecli '.join(known)}`" if known else None
        plural = "s" if len(missing) > 1 else ""
        raise InputError(f"{path}: lacks the column{plural} {', '.join(missing)}", hint)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A shard's rows: the named columns, cast to their schema types; all columns when None.

    Raises InputError for a missing column, a type that does not fit, nulls where the schema has none,
    a file without rows, or a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    footer = read_footer(path)
    if footer.rows == 0:
        raise InputError(f"{path}: the shard has no rows", "an empty shard is never written by primecli")
    if columns is not None:
        require_columns(path, footer.columns, columns)
    try:
        table = pq.ParquetFile(path).read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    return conform(table.select(columns) if columns is not None else table, path)


def read_batches(path: Path, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """As `read_table`, some rows at a time: memory does not grow with the shard. A file without rows gives none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        row = 0
        for number in range(file.metadata.num_row_groups):  # asked for all at once, Arrow would hold them all
            for batch in file.iter_batches(rows, row_groups=[number], columns=list(columns), use_threads=False):
                yield conform(pa.Table.from_batches([batch]).select(columns), path, first_row=row)
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def conform(table: pa.Table, path: Path, *, first_row: int = 0) -> pa.Table:
    """Casts the columns that the schema knows to their types, and checks nulls; raises InputError.

    first_row: where in the shard the table starts, for the message.
    """
    import pyarrow as pa

    fields = []
    for name, field in zip(table.column_names, table.schema, strict=True):
        column = schema.BY_NAME.get(name)
        if column is None:
            fields.append(field)
            continue
        if not column.nullable and table[name].null_count:
            row = first_row + table[name].is_null().to_pylist().index(True)
            raise InputError(f"{path}: column {name} is null at row {row}", "the schema allows no null there")
        fields.append(column.field())
    try:
        return table.replace_schema_metadata(None).cast(pa.schema(fields))
    except (pa.ArrowException, ValueError) as error:
        wrong = [
            f"{field.name} is {table.schema.field(field.name).type} instead of {field.type}"
            for field in fields
            if table.schema.field(field.name).type != field.type
        ]
        raise InputError(f"{path}: {'; '.join(wrong) or error}", "see the table of columns in the README") from error


def with_columns(table: pa.Table, columns: Mapping[str, Any]) -> pa.Table:
    """The table with these columns set (Arrow arrays or lists), in the schema's types."""
    import pyarrow as pa

    for name, values in columns.items():
        field = schema.BY_NAME[name].field()
        array = values if isinstance(values, pa.Array) else pa.array(values, type=field.type)
        place = table.schema.get_field_index(name)
        table = table.append_column(field, array) if place < 0 else table.set_column(place, field, array)
    return table


def list_column(values: Any, lengths: Any, name: str) -> pa.Array:
    """Flat values and row lengths (NumPy arrays) to the list column `name`, without a Python loop."""
    import numpy as np
    import pyarrow as pa

    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    kind = schema.BY_NAME[name].arrow_type()
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, type=kind.value_type)).cast(kind)


def flat_column(table: pa.Table, name: str) -> tuple[Any, Any]:
    """A list column as flat values and row lengths, NumPy arrays, without a Python loop."""
    import numpy as np

    array = table[name].combine_chunks()
    offsets = array.offsets.to_numpy()
    return array.flatten().to_numpy(zero_copy_only=False), np.diff(offsets)


class _HashingFile:
    """Passes bytes on to a file and hashes them. Parquet writes forward only."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        return self.file.write(view)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


def _schema_text(schema_of: pa.Schema) -> str:
    """Names, types and nullability, a line each. Parquet renames what is inside a list; that is not part of it."""
    import pyarrow as pa

    def name(kind: pa.DataType) -> str:
        return f"list<{name(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)

    return "".join(f"{field.name}: {name(field.type)}{'' if field.nullable else ' not null'}\n" for field in schema_of)


def write_shard(
    path: Path,
    table: pa.Table,
    *,
    fingerprint: str,
    recipe: Json,
    counts: Mapping[str, float],
    provenance: Sequence[Mapping[str, Any]],
) -> None:
    """Writes a shard whole or not at all: zstd Parquet with the `primecli` footer.

    `content`, the hash by which the next stage knows this shard, is taken over the columns' names and types and
    the data pages as they are written: the same rows give the same hash, whatever the provenance says.
    """
    import pyarrow.parquet as pq

    def write(file: IO[bytes]) -> None:
        hashing = _HashingFile(file)
        hashing.digest.update(_schema_text(table.schema).encode())
        with pq.ParquetWriter(hashing, table.schema, compression="zstd", store_schema=True) as writer:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            footer: Json = {
                "schema_version": schema.SCHEMA_VERSION,
                "fingerprint": fingerprint,
                "content": hashing.digest.hexdigest()[:32],
                "recipe": recipe,
                "counts": dict(counts),
                "provenance": list(provenance),
            }
            text = json.dumps(footer, ensure_ascii=False, allow_nan=False)
            writer.add_key_value_metadata({FOOTER_KEY.decode(): text})

    write_atomically(path, write)


def content_of(path: Path) -> str:
    """The hash that `write_shard` took of a shard, taken again of the file's own bytes: schema and data pages."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    chunks = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    starts = [
        chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
        for chunk in chunks
    ]
    end = max(start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True))
    digest = hashlib.sha256(_schema_text(metadata.schema.to_arrow_schema()).encode())
    with open(path, "rb") as file:
        while end and (data := file.read(min(end, HASHED_BYTES))):
            digest.update(data)
            end -= len(data)
    return digest.hexdigest()[:32]


def check_groups(table: pa.Table, path: Path) -> int:
    """Checks that the groups of a shard are whole; returns how many there are.

    A group is whole when its `sample_index` values are 0 … n-1, each once, with n its `group_size` where
    the shard has that column. Raises InputError, naming the group, where one is not.
    """
    samples: dict[str, list[int]] = {}
    indices = table[schema.SAMPLE_INDEX].to_pylist()
    groups = table[schema.GROUP_ID].to_pylist()
    for group, index in zip(groups, indices, strict=True):
        samples.setdefault(group, []).append(index)
    sizes: dict[str, int] = {}
    if schema.GROUP_SIZE in table.column_names:
        sizes = dict(zip(groups, table[schema.GROUP_SIZE].to_pylist(), strict=True))
    for group, found in samples.items():
        expected = sizes.get(group, len(found))
        if sorted(found) != list(range(expected)):
            raise InputError(
                f"{path}: group {group} is incomplete: it has {len(found)} of {expected} samples"
                if len(found) < expected
                else f"{path}: group {group} has the sample_index values {sorted(found)}",
                "all samples of a prompt stand in one shard; make the shard again",
            )
    return len(samples)


@dataclass(frozen=True, slots=True)
class Shard:
    """An input shard.

    path: the file.
    footer: what its footer says.
    """

    path: Path
    footer: parquet.Footer

    @property
    def name(self) -> str:
        """The file's name, which the output keeps."""
        return self.path.name
