"""Changes of files: each takes a file's path and draws, changes the file, and returns what it did in words.

Most change one thing in a structure that is otherwise whole, so that they get past the first check.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.values import change, dumps

Mutator = Callable[[Path, random.Random], str]

LITERALS = (
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "true",
    "[]",
    "{}",
    "{a = 1}",
    '""',
    '"\\u0000"',
    '"\\u001b[31m"',
    '"x"',
    "[1, 'a']",
    "[[[]]]",
    "1979-05-27",
    "9" * 5000,
    "[" * 2000 + "]" * 2000,
    "0x10",
    "''",
    "'" + "x" * 5000 + "'",
)


def raw(path: Path, draws: random.Random) -> str:
    """Bytes flipped, cut off, repeated or put in."""
    data = bytearray(path.read_bytes())
    place = draws.randrange(max(len(data), 1))
    kind = draws.choice(("flip", "cut", "insert", "zeros", "empty", "repeat", "surrogate", "bom"))
    if kind == "flip":
        for _ in range(draws.choice((1, 1, 3, 20))):
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        data[place:place] = draws.randbytes(draws.choice((1, 8, 100)))
    elif kind == "zeros":
        data[place : place + 64] = bytes(64)
    elif kind == "empty":
        data.clear()
    elif kind == "repeat":
        data *= 2
    elif kind == "surrogate":
        data[place:place] = b"\xed\xa0\x80"
    else:
        data[:0] = b"\xef\xbb\xbf"
    path.write_bytes(data)
    return f"{kind} at byte {place}"


def structured_json(path: Path, draws: random.Random) -> str:
    """One change in the structure, at times two; one time in eight the text itself is broken."""
    if draws.random() < 0.12:
        return raw(path, draws)
    value, words = change(json.loads(path.read_text()), draws)
    if draws.random() < 0.2 and isinstance(value, dict | list) and value:
        value, more = change(value, draws)
        words = f"{words}, {more}"
    path.write_bytes(dumps(value))
    return words


def structured_lines(path: Path, draws: random.Random) -> str:
    """One change in one line of JSON lines, or of the lines themselves."""
    packed = path.suffix == ".gz"
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    lines = data.splitlines()
    place = draws.randrange(len(lines))
    kind = draws.choice(("change",) * 8 + ("all", "blank", "crlf", "array", "doubled", "raw", "bytes"))
    if kind == "raw":
        return raw(path, draws)
    if kind in ("change", "all"):
        for number in [place] if kind == "change" else range(len(lines)):
            value, words = change(json.loads(lines[number]), draws)
            lines[number] = dumps(value)
            kind = f"row {number}: {words}"
    elif kind == "blank":
        lines[place:place] = [b"", b"  ", b"\t"]
    elif kind == "array":
        lines = [b"[" + b",\n".join(lines) + b"]"]
    elif kind == "doubled":
        lines[place] = lines[place][:-1] + b"," + lines[place][1:]
    elif kind == "bytes":
        lines[place] = lines[place].replace(b"a", b"\xff\xfe")
    data = (b"\r\n" if kind == "crlf" else b"\n").join(lines) + b"\n"
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return kind


def tensor_header(path: Path, draws: random.Random) -> str:
    """One change in the JSON header of a safetensors file, or in its length; or broken bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    kind = draws.choice(("json", "json", "json", "json", "rename", "length", "raw", "values"))
    if kind == "raw":
        return raw(path, draws)
    if kind == "length":
        length = draws.choice((0, 1, length - 1, length + 1, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        return f"the header's length set to {length}"
    if kind == "values":
        place = draws.randrange(8 + length, len(data) - 4) & ~3
        path.write_bytes(
            data[:place] + struct.pack("<f", draws.choice((float("nan"), float("inf"), 1e38))) + data[place + 4 :]
        )
        return f"a value that is not finite near byte {place}"
    header = json.loads(data[8 : 8 + length])
    if kind == "rename":
        name = draws.choice([name for name in header if name != "__metadata__"])
        header[draws.choice(("_orig_mod.", "module.", "x")) + name] = header.pop(name)
        words = f"{name} renamed"
    else:
        header, words = change(header, draws)
    text = dumps(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return words


def template(path: Path, draws: random.Random) -> str:
    """Another chat template."""
    text = path.read_text()
    new = draws.choice(
        (
            "",
            "{% for x in",
            "{{ 1 / 0 }}",
            "{{ raise_exception('never') }}",
            "{{ messages[7]['content'] }}",
            "{% for i in range(99999) %}{{ i }}{% endfor %}",
            "nothing of the question",
            "{{ messages }}",
            "{{ '\\ud800' }}",
            "{{ ''.__class__.__mro__ }}",
            "{% include 'x' %}",
            "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
            "\0" + text,
            text * 2,
            text.replace("content", "contents"),
            text.replace("messages", "message"),
        )
    )
    path.write_text(new)
    return f"the template is {new[:40]!r}"


def toml(path: Path, draws: random.Random) -> str:
    """One line of a TOML file changed, or its bytes."""
    if draws.random() < 0.15:
        return raw(path, draws)
    lines = path.read_text().splitlines()
    values = [number for number, line in enumerate(lines) if "=" in line]
    place = draws.choice(values)
    key = lines[place].split("=")[0].strip()
    kind = draws.choice(("value", "value", "value", "key", "section", "twice", "nested"))
    if kind == "value":
        lines[place] = f"{key} = {draws.choice(LITERALS)}"
    elif kind == "key":
        name = draws.choice(('"\\u001b[31m"', '""', "out-dir", '"' + "k" * 3000 + '"', key.replace("-", "_"), "a.b.c"))
        lines[place] = f"{name} = 1"
    elif kind == "section":
        lines.insert(
            place, draws.choice(("[nothing]", '["\\u001b]0;x\\u0007"]', "[[filter]]", "[]", "[a.b]", "[generate]"))
        )
    elif kind == "twice":
        lines.insert(place, lines[place])
    else:
        lines[place] = f"{key}.{draws.choice(('x', 'y.z'))} = {draws.choice(LITERALS)}"
    path.write_text("\n".join(lines) + "\n")
    return f"line {place + 1}: {lines[place][:60]!r}"
