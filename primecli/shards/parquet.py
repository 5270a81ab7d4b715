"""Rollout shards: Parquet files whose footer says what they are and how they were made.

The footer's key `primecli` holds JSON: the schema version; the fingerprint of everything that decides what is in the
shard; the hash of its content; counts, which are sums over its rows, from which a directory's metrics are computed; and
the provenance chain, which has one record per stage and is only ever appended to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError, first_line, is_out_of_memory
from primecli.files import Json, file_hash, require_regular_file, write_atomically
from primecli.shards import schema
from primecli.shards.provenance import StoredFooter
from primecli.shards.texts import check_texts
from primecli.structures import parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FOOTER_KEY = b"primecli"
MAKE_AGAIN = "make the shard again"
NAME_PATTERN = re.compile(r"rollouts-(\d{5})-of-(\d{5})\.parquet")
ROW_GROUP_ROWS = 512  # small enough that reading a single row reads little else, large enough to compress well
HASHED_BYTES = 1 << 20  # read at once when a file is hashed


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
    stamp: the file's inode, size and time of modification in nanoseconds, to notice that it was replaced.
    """

    rows: int
    columns: tuple[str, ...]
    content: str
    fingerprint: str | None = None
    recipe: Mapping[str, Any] | None = None
    counts: Mapping[str, float] | None = None
    provenance: tuple[Mapping[str, Any], ...] = ()
    stamp: tuple[int, int, int] = (0, 0, 0)


def read_footer(path: Path) -> Footer:
    """What a shard's footer says. A file that another tool wrote is hashed instead.

    Raises InputError where the file is missing, is not Parquet, is truncated, or has a newer schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_regular_file(path)
    try:
        with open(path, "rb") as file:  # once, so that footer and stamp are of the same file
            stamp = _stamp(file)
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    columns = tuple(metadata.schema.to_arrow_schema().names)
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise InputError(f"{path}: has two columns named {twice}")
    raw = (metadata.metadata or {}).get(FOOTER_KEY)
    if raw is None:
        return Footer(metadata.num_rows, columns, content=file_hash(path), stamp=stamp)
    stored = parse_json(raw, StoredFooter, f"{path}: the primecli footer", MAKE_AGAIN)
    version = stored.schema_version
    if version > schema.SCHEMA_VERSION:
        raise InputError(
            f"{path}: written with schema version {version}; this primecli knows up to {schema.SCHEMA_VERSION}",
            "upgrade primecli",
        )
    return Footer(
        rows=metadata.num_rows,
        columns=columns,
        content=stored.content,
        fingerprint=stored.fingerprint,
        recipe=stored.recipe,
        counts=stored.counts,
        provenance=stored.provenance,
        stamp=stamp,
    )


def _stamp(file: IO[bytes]) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def unreadable(path: Path, error: BaseException) -> PrimecliError:
    """The error to raise for a file that Arrow cannot read: it says what is wrong with the file, or that memory is."""
    if is_out_of_memory(error):
        hint = "free some memory, or raise the limit that `ulimit -v` shows; a damaged file can ask for too much, too"
        return PrimecliError(f"{path}: takes more memory than there is: {first_line(error)}", hint)
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
        return InputError(f"{path}: is empty (0 bytes)", MAKE_AGAIN)
    if head == b"PAR1":
        return InputError(f"{path}: a truncated or damaged Parquet file", MAKE_AGAIN)
    return InputError(f"{path}: not a Parquet file", "stages read Parquet rollout shards")


def require_columns(path: Path, present: Sequence[str], needed: Iterable[str]) -> None:
    """Raises InputError where columns are missing, and names the stages that make them."""
    missing = [name for name in needed if name not in present]
    if missing:
        known = sorted({schema.BY_NAME[name].stage for name in missing if name in schema.BY_NAME})
        hint = f"made by `primecli {'` and `primecli '.join(known)}`" if known else None
        plural = "s" if len(missing) > 1 else ""
        raise InputError(f"{path}: lacks the column{plural} {', '.join(missing)}", hint)


def check_readable(path: Path, columns: Sequence[str] | None, footer: Footer | None = None) -> None:
    """Raises InputError where the shard has no rows, or lacks one of these columns. footer: its own, if it is known."""
    footer = footer or read_footer(path)
    if footer.rows == 0:
        raise InputError(f"{path}: the shard has no rows", "an empty shard is never written by primecli")
    if columns is not None:
        require_columns(path, footer.columns, columns)


def read_table(
    path: Path, columns: Sequence[str] | None = None, *, expected: Footer | None = None, verify: bool = False
) -> pa.Table:
    """A shard's rows: the named columns (all when None), cast to the types of the schema.

    expected: what the footer said before; where the file has been replaced since by one with other rows, that is an
    error. verify: compare the rows with the content hash in the footer, which reads the file once more.

    Raises InputError for a missing column, a type that does not fit, nulls where the schema allows none, a number that
    is NaN, a file without rows, one that has changed, or a damaged one.
    """
    import pyarrow as pa

    check_readable(path, columns, expected)
    try:
        with open(path, "rb") as file:  # whatever takes its place meanwhile, this is the file that is read
            if expected is not None:
                _check_unchanged(path, file, expected)
            parquet_file = open_parquet(file)
            table = _read(parquet_file, columns)
            if verify and FOOTER_KEY in (parquet_file.metadata.metadata or {}):
                _verify(path, file, parquet_file.metadata)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error
    return conform(table.select(columns) if columns is not None else table, path)


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """A Parquet file whose pages are compared with their checksums, where they have any. source: a path or a file."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, page_checksum_verification=True, **options)


def _read(file: pq.ParquetFile, columns: Sequence[str] | None) -> pa.Table:
    import pyarrow as pa

    names = None if columns is None else list(columns)
    try:
        return file.read(columns=names)
    except pa.ArrowNotImplementedError:  # a row group with more than 2 GiB in a nested column can be read in pieces
        batches = list(file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=names))
        return pa.Table.from_batches(batches)


def _check_unchanged(path: Path, file: IO[bytes], expected: Footer) -> None:
    """Raises InputError where the file holds other rows than when its footer was read."""
    if _stamp(file) != expected.stamp and read_footer(path).content != expected.content:
        raise InputError(
            f"{path}: has been replaced by other rows since this stage began to read it",
            "wait until the stage that writes it has ended, then run this command again",
        )


def _verify(path: Path, file: IO[bytes], metadata: pq.FileMetaData) -> None:
    """Raises InputError where the pages are not those that were written: a checksum covers a page, this all of them."""
    stored = json.loads(metadata.metadata[FOOTER_KEY]).get("content")
    if _content(file, metadata) != stored:
        raise InputError(f"{path}: damaged: its rows are not those that were written", MAKE_AGAIN)


def conform(table: pa.Table, path: Path, *, first_row: int = 0) -> pa.Table:
    """The table, with the columns that the schema knows cast to their types.

    first_row: the table's first row in the shard, for the message. Raises InputError where a column cannot be cast, or
    has nulls that the schema does not allow.
    """
    import pyarrow as pa

    check_texts(table, path, first_row=first_row)
    fields = []
    for name, field in zip(table.column_names, table.schema, strict=True):
        column = schema.BY_NAME.get(name)
        if column is None:
            fields.append(field)
            continue
        if not column.nullable and table[name].null_count:
            row = first_row + table[name].is_null().to_pylist().index(True)
            raise InputError(f"{path}: column {name} is null at row {row}", "the schema allows no nulls in it")
        fields.append(column.field())
        _check_numbers(table[name], column, path, first_row)
    try:
        return table.replace_schema_metadata(None).cast(pa.schema(fields))
    except (pa.ArrowException, ValueError) as error:
        wrong = [
            f"{field.name} is {table.schema.field(field.name).type} instead of {field.type}"
            for field in fields
            if table.schema.field(field.name).type != field.type
        ]
        raise InputError(
            f"{path}: {'; '.join(wrong) or error}", "see docs/columns.md for the type of each column"
        ) from error


def _check_numbers(values: pa.ChunkedArray, column: schema.Column, path: Path, first_row: int) -> None:
    """Raises InputError for a number that is not finite, in a column that has one a row (lists: `check_lists`)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type == "float32" and pa.types.is_floating(values.type):
        wrong = pc.invert(pc.is_finite(values)).to_pylist()  # null for null
        if True in wrong:
            row = wrong.index(True)
            null = "; unknown is null" if column.nullable else ""
            raise InputError(
                f"{path}: {column.name} is {values[row].as_py()} at row {first_row + row}",
                f"it must be a finite number{null}: correct it with the tool that wrote it",
            )


class _HashingFile:
    """A file that hashes what is written to it. It cannot seek, which Parquet's writer never does."""

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
    """One line per column: its name, type and nullability.

    Parquet renames the field inside a list, so that name is left out.
    """
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

    `content`, the hash by which the next stage identifies this shard, covers the columns' names and types and the data
    pages as they are written. So the same rows give the same hash, whatever the provenance says.

    fingerprint, recipe, counts, provenance: as in `Footer`.
    """
    import pyarrow.parquet as pq

    def write(file: IO[bytes]) -> None:
        hashing = _HashingFile(file)
        hashing.digest.update(_schema_text(table.schema).encode())
        options = {"compression": "zstd", "store_schema": True, "write_page_checksum": True}
        with pq.ParquetWriter(hashing, table.schema, **options) as writer:
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
    """The `content` hash that `write_shard` wrote, computed again from the file's bytes: its schema and data pages."""
    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        return _content(file, pq.read_metadata(file))


def _content(file: IO[bytes], metadata: pq.FileMetaData) -> str:
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
    file.seek(0)
    while end and (data := file.read(min(end, HASHED_BYTES))):
        digest.update(data)
        end -= len(data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Shard:
    """An input shard.

    path: the file.
    footer: what its footer says.
    """

    path: Path
    footer: Footer

    @property
    def name(self) -> str:
        """The file's name, which a stage's output keeps."""
        return self.path.name
