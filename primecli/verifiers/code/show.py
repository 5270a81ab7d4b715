"""Writes the values of programs for people: in Python's notation, shortened, and in bounded time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_SHOWN_CHARS = 120  # of a value in a failure

_BRACKETS = {"t": ("(", ")"), "s": ("{", "}"), "f": ("frozenset({", "})"), "q": ("deque([", "])")}


def shown(message: Any) -> str:
    """A value, as `codec.encode` has it in a message, in at most MAX_SHOWN_CHARS characters.

    >>> shown([{"t": [1, 2]}, {"d": [["a", {"h": [0, "Node"]}]]}]), shown("x" * 500)[-3:]
    ("[(1, 2), {'a': <Node>}]", 'xx…')
    """
    text = ""
    for piece in _pieces(message):
        text += piece
        if len(text) > MAX_SHOWN_CHARS:
            break
    return shorten(text, MAX_SHOWN_CHARS)


def shorten(text: str, limit: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _pieces(message: Any) -> Iterator[str]:
    """The parts of the text, one at a time: whoever has enough stops asking, however large or deep the value is."""
    if type(message) is str:
        yield repr(message[: MAX_SHOWN_CHARS + 1])
    elif type(message) is list:
        yield from _items(message, "[", "]")
    elif type(message) is dict and len(message) == 1:
        ((tag, data),) = message.items()
        yield from _tagged(tag, data)
    else:
        yield f"<{type(message).__name__}>" if type(message) is dict else repr(message)


def _tagged(tag: str, data: Any) -> Iterator[str]:
    if tag in _BRACKETS and type(data) is list:
        start, end = _BRACKETS[tag]
        yield from _items(data, start, ",)" if tag == "t" and len(data) == 1 else end)
    elif tag == "d" and type(data) is list:
        yield "{"
        for number, item in enumerate(data):
            key, value = item if type(item) is list and len(item) == 2 else (item, None)
            yield ", " if number else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(value)
        yield "}"
    elif tag == "h" and type(data) is list and type(data[-1:]) is list:
        yield f"<{str(data[-1])[:MAX_SHOWN_CHARS]}>" if data and type(data[-1]) is str else "<object>"
    elif type(data) is str:  # a wide integer, bytes, a Decimal
        yield data[: MAX_SHOWN_CHARS + 1]
    else:
        yield "<object>"


def _items(items: list[Any], start: str, end: str) -> Iterator[str]:
    yield start
    for number, item in enumerate(items):
        yield ", " if number else ""
        yield from _pieces(item)
    yield end
