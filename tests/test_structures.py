"""Files that primecli reads back: whatever they hold, the result is of the type asked for, or one line says why not."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import pytest

from primecli.errors import InputError, MissingFileError
from primecli.structures import parse_json, read_json, read_toml, typed


class Item(TypedDict, total=False):
    name: Required[str]
    size: float | None


@dataclass
class Whole:
    stage: str
    status: Literal["running", "complete"]
    rows: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    free: Any = None
    pair: tuple[int, str] | None = None


def message_of(text: str | bytes, kind: object) -> str:
    with pytest.raises(InputError) as caught:
        parse_json(text, kind, "a.json", "make it again")
    assert caught.value.hint == "make it again"
    assert str(caught.value).isprintable()
    return caught.value.message.removeprefix("a.json: ")


def test_a_dataclass_gets_its_fields_and_defaults_and_ignores_what_a_newer_version_wrote() -> None:
    text = (
        '{"stage": "verify", "status": "complete", "counts": {"groups": 2, "share": 0.5}, "new": [1],'
        '"items": [{"name": "a", "size": null, "more": [true]}], "free": {"a": [1, null]}, "pair": [1, "b"]}'
    )
    assert parse_json(text, Whole, "a.json") == Whole(
        "verify",
        "complete",
        counts={"groups": 2, "share": 0.5},
        items=({"name": "a", "size": None, "more": [True]},),  # type: ignore[typeddict-unknown-key]
        free={"a": [1, None]},
        pair=(1, "b"),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ('"rows": "3"', "rows: expected a whole number, found a text"),
        ('"rows": 3.0', "rows: expected a whole number, found 3.0"),
        ('"rows": true', "rows: expected a whole number, found true"),
        ('"rows": 9223372036854775808', "rows: a number of 19 digits, which is too large"),
        ('"counts": []', "counts: expected an object, found a list"),
        ('"counts": {"a": 1e400}', "counts.a: expected a finite number, found inf"),
        ('"counts": {"a": NaN}', "counts.a: expected a finite number, found nan"),
        ('"counts": {"a": -Infinity}', "counts.a: expected a finite number, found -inf"),
        ('"counts": {"a": null}', "counts.a: expected a number, found null"),
        ('"counts": {"a": false}', "counts.a: expected a number, found false"),
        (f'"counts": {{"a": 9{"0" * 309}}}', "counts.a: expected a finite number, found one of 310 digits"),
        ('"items": {}', "items: expected a list, found an object"),
        ('"items": [{"name": "a"}, {}]', "items[1]: lacks name"),
        ('"items": [{"name": "a"}, {"name": 4}]', "items[1].name: expected a text, found a number"),
        ('"items": [{"name": "a", "size": "b"}]', "items[0].size: expected a number, found a text"),
        ('"items": [{"name": "a\\u0000b"}]', "items[0].name: a text with a NUL in it"),
        ('"items": [{"name": "\\ud800"}]', "items[0].name: a text with half of a surrogate pair in it, which is no"),
        ('"free": [{"a": "\\udfff"}]', "free[0].a: a text with half of a surrogate pair in it"),
        ('"free": {"\\udfff": 1}', "free: a text with half of a surrogate pair in it"),
        ('"free": [1, 1e999]', "free[1]: expected a finite number, found inf"),
        ('"pair": [1]', "pair: expected a list of 2, found a list"),
        ('"pair": [1, 2]', "pair[1]: expected a text, found a number"),
        ('"status": "done"', "status: expected one of running, complete, found a text"),
        ('"status": 1', "status: expected one of running, complete, found a number"),
        ('"stage": ["a"]', "stage: expected a text, found a list"),
        ('"counts": {"\\u001b[31m\\u202e": "a"}', "counts.\ufffd[31m\ufffd: expected a number"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(fields: str, message: str) -> None:
    text = '{"stage": "verify", "status": "complete", ' + fields + "}"
    assert message_of(text, Whole).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("{", "is not JSON: Expecting property name"),
        ("{} {}", "is not JSON: Extra data (line 1, column 4)"),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 0xff at position 7)"),
        ('{"a"\0: 1}', "is not JSON"),
        ("[]", "expected an object, found a list"),
        ("null", "expected an object, found null"),
        ('"text"', "expected an object, found a text"),
        ("{}", "lacks stage, status"),
        ('{"rows": ' + "1" * 5000 + "}", "holds a number of 5,000 digits"),
        ('{"free": ' + "[" * 100_000 + "]" * 100_000 + "}", "is nested too deeply"),
        ('{"free": ' + '{"a": ' * 100_000 + "1" + "}" * 100_000 + "}", "is nested too deeply"),
        ('{"stage": "a", "status": "running", "free": ' + "[" * 70 + "]" * 70 + "}", "free[0][0]: is nested"),
    ],
)
def test_what_is_no_json_or_another_value_altogether_is_one_line(text: str | bytes, message: str) -> None:
    assert message_of(text, Whole).startswith(message)


def test_a_byte_order_mark_is_skipped_and_object_lets_everything_pass() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [NaN, "\\ud800", null]}', dict[str, object], "a.json").keys() == {"a"}
    assert typed([1, "a"], list[int | str], "a.json") == [1, "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a = ", "is not TOML"),
        (b"a = '\xff'", "is not UTF-8"),
        (b"a = " + b"1" * 5000, "is not TOML: a number has too many digits"),
        (b"a = " + b"[" * 100_000, "is nested too deeply"),
        (b"a = '\0'", "is not TOML"),
    ],
)
def test_toml(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=f"{path}: {message}"):
        read_toml(path)
    path.write_bytes(b"\xef\xbb\xbf[filter]\r\na = 1\r\n")
    assert read_toml(path) == {"filter": {"a": 1}}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("pipe")
    places = {
        tmp_path / "pipe": "is a pipe, not a file",
        tmp_path / "link": "is a pipe, not a file",
        tmp_path / "socket": "is a socket, not a file",
        tmp_path: "is a directory, not a file",
        Path("/dev/zero"): "is a device, not a file",
        tmp_path / "loop": "cannot be read: Too many levels",
        tmp_path / ("a" * 256): "cannot be read: File name too long",
        Path("a\0b"): "a path cannot hold a NUL",
    }
    for path, message in places.items():
        with pytest.raises(InputError, match=message):
            read_json(path, Whole)
    with pytest.raises(MissingFileError, match="no such file"):
        read_json(tmp_path / "missing", Whole)
