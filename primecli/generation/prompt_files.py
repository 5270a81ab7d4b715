"""The rows of a prompt file: Parquet, JSON lines or one JSON array, as they are or gzipped.

The content tells the format, not the file's name, so .PARQUET, a byte order mark and UTF-16 are no obstacle. Values
come out as JSON would have them: what Arrow marks as JSON text is decoded, and a float32 is the shortest decimal
number that stands for it.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from primecli.errors import InputError, first_line, is_out_of_memory
from primecli.files import require_regular_file

if TYPE_CHECKING:
    import pyarrow as pa

FORMS = "prompt files are Parquet, or have one JSON object per line, or are one JSON array of objects"
MAX_DIGITS = 4300  # of a number: Python refuses to convert more
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a prompt file.

    values: by column.
    where: the file and the row's number, for messages, such as "train.parquet: row 3".
    padded: whether a null inside a value may only stand for a field that the row does not have, as in Parquet.
    decoded: whether a value of it was decoded by its Arrow type, so that it is not what Arrow itself returns.
    """

    values: Mapping[str, Any]
    where: str
    padded: bool = False
    decoded: bool = False


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, in order.

    columns: those that are read from a Parquet file, so that images or odd types beside them do no harm. Where one of
    them is missing, every column's name is still in the rows, with None in place of its values.

    Raises InputError, naming the file and the row or line, for what cannot be read.
    """
    require_regular_file(file)
    try:
        with open(file, "rb") as stream:
            start = stream.read(4)
        if start == b"PAR1" or file.suffix.lower() == ".parquet":
            yield from _parquet_rows(file, columns)
        else:
            with _open_text(file, zipped=start[:2] == b"\x1f\x8b") as lines:
                yield from _json_rows(file, lines)
    except (OSError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from error


@contextlib.contextmanager
def _open_text(file: Path, *, zipped: bool) -> Iterator[IO[str]]:
    opener = gzip.open if zipped else open
    with opener(file, "rb") as stream:
        start = stream.read(4)
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
    with opener(file, "rt", encoding=encoding) as lines:
        yield lines


def _json_rows(file: Path, lines: Iterable[str]) -> Iterator[Row]:
    rows = 0
    numbered = enumerate(lines, start=1)
    for number, line in numbered:
        if not line.strip():
            continue
        if rows == 0 and line.lstrip().startswith("["):
            yield from _array_rows(file, "\n" * (number - 1) + line + "".join(rest for _, rest in numbered))
            return
        rows += 1
        yield Row(_object(line, f"{file}: line {number}"), f"{file}: row {rows}")


def _array_rows(file: Path, text: str) -> Iterator[Row]:
    try:
        items = _json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # lines, of which the first is an array
            raise InputError(f"{file}: line 1 is not a JSON object", FORMS) from error
        raise InputError(f"{file}: line {error.lineno} is not JSON: {error.msg}", FORMS) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: {_reason(error)}", FORMS) from error
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise InputError(f"{file}: row {number} is not a JSON object", FORMS)
        yield Row(item, f"{file}: row {number}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = _json(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg}", FORMS) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {_reason(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a JSON object", FORMS)
    return value


def _json(text: str) -> Any:
    return json.loads(text, parse_int=_integer, parse_float=_number)


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits, which can only be read as a text: put it in quotes")
    return int(digits)


def _number(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large for a float: put it in quotes")
    return number


def _reason(error: Exception) -> str:
    return "its JSON is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def unreadable(error: Exception) -> NoReturn:
        if is_out_of_memory(error):
            raise MemoryError(f"{file}: {first_line(error)}") from error
        raise InputError(f"{file}: not a readable Parquet file") from error

    try:
        source = pq.ParquetFile(file)
        names = source.schema_arrow.names
        wanted = [name for name in dict.fromkeys(names) if name in columns]
        for name in wanted:
            if names.count(name) > 1:
                raise InputError(f"{file}: {names.count(name)} columns are named {name!r}", "rename all but one")
        batches = source.iter_batches(columns=wanted)
        others = dict.fromkeys(names)
        done = 0
        for batch in batches:
            yield from _batch_rows(file, batch, wanted, others, done)
            done += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        unreadable(error)


def _batch_rows(
    file: Path, batch: pa.RecordBatch, wanted: Sequence[str], others: Mapping[str, None], done: int
) -> Iterator[Row]:
    """The rows of a batch. others: None for each column of the file. done: rows before the batch."""
    arrays = {name: batch.column(name) for name in wanted}
    converts = {name: _converter(array.type) for name, array in arrays.items()}
    decoded = any(converts.values())
    for index in range(batch.num_rows):
        where = f"{file}: row {done + index + 1}"
        values = {**others}
        for name, array in arrays.items():
            convert = converts[name]
            try:
                value = array[index].as_py()
                values[name] = convert(value) if convert and value is not None else value
            except (ValueError, OverflowError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                raise InputError(f"{where}: {name} cannot be read: {_reason(error)}") from error
        yield Row(values, where, padded=True, decoded=decoded)


def _converter(kind: pa.DataType) -> Convert | None:
    """What turns a value of an Arrow type, as Arrow returns it, into what JSON would have; None where it is that."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return _json
    if isinstance(kind, pa.BaseExtensionType):
        return _converter(kind.storage_type)
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return _shortest(kind)
    if pa.types.is_dictionary(kind):
        return _converter(kind.value_type)
    if pa.types.is_map(kind):
        item = _converter(kind.item_type) or _same
        return lambda pairs: {key: None if value is None else item(value) for key, value in pairs}
    if pa.types.is_struct(kind):
        fields = {field.name: convert for field in kind.fields if (convert := _converter(field.type))}
        return (lambda value: _fields(value, fields)) if fields else None
    if pa.types.is_nested(kind) and hasattr(kind, "value_type"):
        convert = _converter(kind.value_type)
        return (lambda value: [None if item is None else convert(item) for item in value]) if convert else None
    return None


def _same(value: Any) -> Any:
    return value


def _fields(value: Mapping[str, Any], converts: Mapping[str, Convert]) -> dict[str, Any]:
    return {
        name: converts[name](item) if name in converts and item is not None else item for name, item in value.items()
    }


def _shortest(kind: pa.DataType) -> Convert:
    """Turns a float32 or float16 into the float with the shortest text that stands for it: 0.1, not 0.10000000149."""
    import numpy as np

    narrow = np.dtype(kind.to_pandas_dtype()).type
    return lambda value: float(str(narrow(value)))
