"""Values as JSON messages between processes, by exact type; the reader never runs code of the writer.

Scalars and lists are themselves. Anything that JSON lacks is an object with one key, which names its type:
`{"t": [1, 2]}` is a tuple. An instance of a subclass (such as an int whose == is always True) is sent as the plain
value that it holds. An object without a plain value stays with its owner and is sent as a handle: a number, and the
name of its type.

It runs in the sandbox with the program, in the one with the tests, and in the caller.
"""

from __future__ import annotations

import json
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing, decimal or fractions takes longer than most programs run
    from collections.abc import Callable, Iterator
    from typing import Any

    Keep = Callable[[Any], int | None]

MAX_LINE = 8 << 20
"""Bytes of one message. Decoded, it takes at most a few hundred megabytes."""

MAX_BITS = 1 << 20  # of an integer: multiplying two of this size takes well under a second
MAX_ITEMS = 100_000  # of an iterator, which may be endless

_ATOMS = {str, bool, float, type(None)}
_WIDE = 1 << 4096  # wider integers are sent in hexadecimal: conversion to decimal takes quadratic time
_VIEWS = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}


class Malformed(ValueError):
    """This is not a message: the writer does not keep to the protocol."""


def dump_line(message: Any) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def load_line(line: bytes) -> Any:
    """The message in a line, whose values are still encoded. Raises Malformed."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not a message: {error}"[:200]) from None


def encode(value: Any, keep: Keep) -> Any:
    """A value as JSON data.

    keep: keeps an object that is not plain data and returns its number, or None to refuse it.

    Raises TypeError for an object that `keep` refuses.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is int:
        return value if -_WIDE < value < _WIDE else {"i": hex(value)}
    if kind is list:
        kinds = set(map(type, value))
        if kinds <= _ATOMS or (kinds == {int} and max(value) < _WIDE and min(value) > -_WIDE):
            return value
        return [encode(item, keep) for item in value]
    return _encode_tagged(value, kind, keep)


def _encode_tagged(value: Any, kind: type, keep: Keep) -> Any:
    if issubclass(kind, tuple):
        return {"t": [encode(item, keep) for item in tuple.__iter__(value)]}
    if issubclass(kind, dict):
        return {"d": [[encode(key, keep), encode(item, keep)] for key, item in dict.items(value)]}
    for base, tag in ((set, "s"), (frozenset, "f"), (deque, "q")):
        if issubclass(kind, base):
            return {tag: [encode(item, keep) for item in base.__iter__(value)]}
    if issubclass(kind, (bytes, bytearray)):
        return {"b" if issubclass(kind, bytes) else "y": bytes(value).hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is range:
        return {"r": [value.start, value.stop, value.step]}
    if (kind.__module__, kind.__name__) == ("decimal", "Decimal"):
        return {"D": str(value)}
    if (kind.__module__, kind.__name__) == ("fractions", "Fraction"):
        return {"F": [encode(value.numerator, keep), encode(value.denominator, keep)]}
    if kind in _VIEWS:
        return {"v": [_VIEWS[kind], [encode(item, keep) for item in value]]}
    return _encode_other(value, kind, keep)


def _encode_other(value: Any, kind: type, keep: Keep) -> Any:
    if issubclass(kind, int):
        return encode(int.__add__(value, 0), keep)
    if issubclass(kind, float):
        return float.__add__(value, 0.0)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, list):
        return encode(list.__getitem__(value, slice(None)), keep)
    if kind.__module__ == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return encode(value.item(), keep)
    if kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__"):
        items: list[Any] = []
        for item in value:
            items.append(encode(item, keep))
            if len(items) == MAX_ITEMS:
                break
        return {"g": items}
    number = keep(value)
    if number is None:
        raise TypeError(f"{kind.__name__} is not plain data")
    return {"h": [number, kind.__name__[:100]]}


def decode(message: Any, find: Callable[[int, str], Any]) -> Any:
    """The value that JSON data stand for.

    find: returns the object of a handle, given its number and the name of its type.

    Raises Malformed.
    """
    try:
        return _decode(message, find)
    except (ValueError, TypeError, ArithmeticError, KeyError, RecursionError) as error:
        raise Malformed(f"not plain data: {type(error).__name__}: {error}"[:200]) from None


def _decode(message: Any, find: Callable[[int, str], Any]) -> Any:
    kind = type(message)
    if kind is list:
        if not {list, dict} & set(map(type, message)):
            return message
        return [_decode(item, find) for item in message]
    if kind is not dict:
        return message
    ((tag, data),) = message.items()
    if tag == "h":
        number, type_name = data
        return find(int(number), str(type_name))
    return _DECODERS[tag](_decode(data, find))


def _wide(text: str) -> int:
    if len(text) > MAX_BITS // 4 + 3:
        raise ValueError("an integer that is too wide")
    return int(text, 16)


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _fraction(data: list[int]) -> Any:
    from fractions import Fraction

    return Fraction(*data)


def _range(data: list[int]) -> range:
    return range(*data)


def _iterator(items: list[Any]) -> Iterator[Any]:
    yield from items
    if len(items) >= MAX_ITEMS:
        raise RuntimeError(f"an iterator of more than {MAX_ITEMS} items")


def _view(data: list[Any]) -> Any:
    kind, items = data
    if kind == "keys":
        return dict.fromkeys(items).keys()
    return dict(items).items() if kind == "items" else dict(enumerate(items)).values()


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "i": _wide,
    "t": tuple,
    "d": dict,
    "s": set,
    "f": frozenset,
    "q": deque,
    "b": bytes.fromhex,
    "y": bytearray.fromhex,
    "c": lambda data: complex(*data),
    "r": _range,
    "D": _decimal,
    "F": _fraction,
    "g": _iterator,
    "v": _view,
}
