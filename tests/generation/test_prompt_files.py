from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.errors import InputError
from primecli.generation.prompt_files import read_rows

LINES = '{"prompt": "a", "answer": 1}\n\n{"prompt": "b\u2028ä", "answer": 2.5}\n'
ARRAY = '\n[\n  {"prompt": "a", "answer": 1},\n  {"prompt": "b\u2028ä", "answer": 2.5}\n]\n'
ROWS = [{"prompt": "a", "answer": 1}, {"prompt": "b\u2028ä", "answer": 2.5}]


def rows(path: Path, *columns: str) -> list[Any]:
    return [row.values for row in read_rows(path, columns)]


@pytest.mark.parametrize("text", [LINES, ARRAY], ids=["lines", "array"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_content_tells_the_format(text: str, encoding: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    content = text.encode(encoding)
    path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    assert rows(path) == ROWS
    assert [row.where for row in read_rows(path, [])] == [f"{path}: row 1", f"{path}: row 2"]


@pytest.mark.parametrize("name", ["p.parquet", "p.PARQUET", "p"])
def test_parquet_whatever_its_name(name: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    assert [row["prompt"] for row in rows(tmp_path / name, "prompt")] == ["a", "b\u2028ä"]
    assert rows(tmp_path / name, "prompt")[0] == {"prompt": "a", "answer": None}, "only what is asked for is read"


JSON = pa.json_(pa.string())


def as_json(*texts: str | None) -> pa.Array:
    return pa.ExtensionArray.from_storage(JSON, pa.array(texts, pa.string()))


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array([0.1, None], pa.float32()), 0.1),
        (pa.array([0.1, None], pa.float16()), 0.1),
        (pa.array([[0.1, None], None], pa.list_(pa.float32())), [0.1, None]),
        (pa.array([{"a": 0.1}, {"a": None}], pa.struct([("a", pa.float32())])), {"a": 0.1}),
        (pa.array([[("a", 0.1)], None], pa.map_(pa.string(), pa.float32())), {"a": 0.1}),
        (pa.array(["x", "y"]).dictionary_encode(), "x"),
        (as_json('{"ground_truth": [2.50]}', None), {"ground_truth": [2.5]}),
        (pa.StructArray.from_arrays([as_json("[1]", "2")], ["a"]), {"a": [1]}),
    ],
)
def test_values_are_decoded_by_their_arrow_type(array: pa.Array, value: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"answer": array}), tmp_path / "p.parquet")
    assert rows(tmp_path / "p.parquet", "answer")[0]["answer"] == value


def invalid_text() -> pa.Array:
    """A text with a byte that is not UTF-8: Arrow does not check what it reads."""
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0])),
                                                 pa.py_buffer(b"aa\xff")])  # fmt: skip


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (invalid_text(), "row 2: prompt cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (pa.array([0, 2**62], pa.timestamp("ms")), "row 2: prompt cannot be read"),
        (as_json("1", "{1"), "row 2: prompt cannot be read: Expecting property name"),
        (as_json("1", "9" * 5000), "row 2: prompt cannot be read: a number of 5,000 digits"),
    ],
    ids=["bytes", "time", "json", "digits"],
)
def test_a_value_that_cannot_be_read_is_named(array: pa.Array, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"other": array, "prompt": array}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=message):
        rows(tmp_path / "p.parquet", "prompt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ' + b"9" * 5000 + b"}", "line 1: a number of 5,000 digits, which can only be read as a text"),
        (b'{"a": 1e400}', "line 1: the number 1e400 is too large"),
        (b'{"a": ' + b"[" * 100_000, "line 1: its JSON is nested too deeply"),
        (b"[" * 100_000, "its JSON is nested too deeply"),
        (b'[\n{"a": 1},\n{"a" }]', "line 3 is not JSON"),
        (b'[1]\n{"a": 1}', "line 1 is not a JSON object"),
        (b'[{"a": 1}, 2]', "row 2 is not a JSON object"),
        (b'{"a": "\xff"}', "cannot be read as text"),
        (gzip.compress(b'{"a": 1}' * 99, mtime=0)[:30], "cannot be read as text: Compressed file ended"),
        (b"PAR1 and no more", "not a readable Parquet file"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)
def test_bad_files_end_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        rows(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["prompt", "prompt"]), tmp_path / "p.parquet"
    )
    with pytest.raises(InputError, match="2 columns are named 'prompt'"):
        rows(tmp_path / "p.parquet", "prompt")
