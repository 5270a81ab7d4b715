"""Hostile values, and changes of typed structures: JSON that still parses, with one thing in it that is wrong."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

RAW = "\0raw:"
"""Begins a string that stands for JSON text which `json.dumps` would not write, such as 1e400."""

DIGITS = RAW + "9" * 5000
DEEP = RAW + "[" * 3000 + "]" * 3000
DEEPER = RAW + '{"a":' * 200_000 + "1" + "}" * 200_000

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**63,
    -(2**63) - 1,
    2**31,
    0.5,
    -0.0,
    "",
    "x",
    "0",
    "\0",
    "a\0b",
    "\x1b]0;title\x07\x1b[31m",
    "\ud800",
    "x" * 5000,
    "x/" * 3000,
    "../../../../etc/passwd",
    "{% for x in y %}",
    "{{ messages[9].content.nothing }}",
    "{{ raise_exception('no') }}",
    "\n\r\u2028",
    "\u202eabc",
    [],
    {},
    [None],
    [[]],
    {"": None},
    {"type": "nothing"},
    [1, "a", None, {}],
    ["\ud800"],
    list(range(2000)),
    RAW + "NaN",
    RAW + "Infinity",
    RAW + "-Infinity",
    RAW + "1e400",
    RAW + "-1e400",
    RAW + "1e-400",
    DIGITS,
    DEEP,
    DEEPER,
)


def dumps(value: Any) -> bytes:
    """JSON text, with the `RAW` values as they stand. Lone surrogates are written as escapes."""
    text = json.dumps(value)
    pieces = text.split('"\\u0000raw:')
    joined = pieces[0]
    for piece in pieces[1:]:
        raw, rest = _string_end(piece)
        joined += raw + rest
    return joined.encode()


def _string_end(piece: str) -> tuple[str, str]:
    """A raw value and what follows its closing quote. Raw values hold no escapes but \\" ."""
    place = 0
    while piece[place] != '"':
        place += 2 if piece[place] == "\\" else 1
    return piece[:place].replace('\\"', '"'), piece[place + 1 :]


Place = tuple[Any, Any]  # a container and the key or index in it


def places(value: Any) -> list[Place]:
    """Every place in a structure that holds a value."""
    found: list[Place] = []
    left = [value]
    while left:
        here = left.pop()
        keys: Any = here if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        for key in keys:
            found.append((here, key))
            left.append(here[key])
    return found


def change(value: Any, draws: random.Random, *, depth_first: bool = False) -> tuple[Any, str]:
    """A copy of the structure with one change, and the change in words.

    Places near the root are likelier, since most are deep in lists where one is like another.
    """
    changed = copy.deepcopy(value)
    found = places(changed)
    if not found:
        return draws.choice(HOSTILE), "replaced whole"
    # by a random level of the first keys, so that a vocabulary of 50,000 entries does not draw everything
    container, key = _draw(changed, draws) if not depth_first else draws.choice(found)
    before = container[key]
    kind = draws.choice(("hostile", "hostile", "hostile", "hostile", "delete", "retype", "number", "double", "add"))
    if kind == "delete":
        del container[key]
        return changed, f"{key!r} deleted"
    if kind == "retype":
        container[key] = draws.choice(RETYPED)(before)
        return changed, f"{key!r} retyped to {type(container[key]).__name__}"
    if kind == "number" and isinstance(before, int | float) and not isinstance(before, bool):
        container[key] = draws.choice((-before, before * 1000, before + 1, float(before), str(before), before + 0.5))
        return changed, f"{key!r} set to {container[key]!r}"
    if kind == "double" and isinstance(before, list) and before:
        container[key] = before * 2
        return changed, f"{key!r} doubled"
    if kind == "add" and isinstance(before, dict):
        before[draws.choice(("", "\ud800", "\0", "x" * 300, "\x1b[2J", "__class__"))] = draws.choice(HOSTILE)
        return changed, f"{key!r} has another key"
    container[key] = draws.choice(HOSTILE)
    return changed, f"{key!r} set to {_short(container[key])}"


def _draw(value: Any, draws: random.Random) -> Place:
    """A place: goes down from the root, and stops at each level by chance."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = draws.choice(keys)
        below = value[key]
        if isinstance(below, dict | list) and below and draws.random() < 0.75:
            value = below
        else:
            return value, key


RETYPED: tuple[Callable[[Any], Any], ...] = (
    lambda value: [value],
    lambda value: {"value": value},
    lambda value: json.dumps(value, default=str),
    lambda value: [value, value],
    lambda value: bool(value),
    lambda value: len(str(value)),
)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:40]}… ({len(text)} characters)"
