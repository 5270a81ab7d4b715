"""The values of a prompt file as text: what is wrapped in a list or written as JSON is taken out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any

LARGEST_EXACT = 2**53  # above it, a float does not say which whole number it was


class Missing(Exception):
    """A row has no such column."""


def find(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field inside one: a.b is b in the column a, unless there is a column "a.b".

    A column that is JSON text is looked into, too; what is inside a null is null.

    >>> find({"extra": '{"answers": {"short": "4"}}'}, "extra.answers.short")
    '4'

    Raises Missing.
    """
    if name in values:
        return values[name]
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        column = ".".join(parts[:size])
        if column in values:
            inner = unwrapped(values[column])
            if inner is None:
                return None
            inner = as_object(inner)
            if inner is not None:
                return find(inner, ".".join(parts[size:]))
    raise Missing(name)


def as_object(value: Any) -> dict[str, Any] | None:
    """A JSON object, decoded where it is text; None for any other value."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        value = from_json(value)
    return value if isinstance(value, dict) else None


def from_json(text: str) -> Any:
    """The value that a text is as JSON; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def unwrapped(value: Any) -> Any:
    """The only item of a list, nulls aside; None for an empty list and for NaN; any other value as it is.

    >>> unwrapped([["72"]]), unwrapped([None]), unwrapped(["a", "b"])
    ('72', None, ['a', 'b'])
    """
    while isinstance(value, list):
        items = [item for item in value if not is_null(item)]
        if len(items) > 1:
            return value
        value = items[0] if items else None
    return None if is_null(value) else value


def is_null(value: Any) -> bool:
    """Whether a value is null, or NaN, by which pandas and JSON mark what is missing."""
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def as_text(value: Any) -> str | None:
    """A value as text: numbers as short as can be, what is inside of a list as `unwrapped` says, the rest as JSON.

    >>> as_text(["72"]), as_text(72.0), as_text(0.1), as_text(b"2"), as_text({"inputs": [1]})
    ('72', '72', '0.1', '2', '{"inputs": [1]}')

    Raises ValueError for bytes that are not UTF-8.
    """
    value = unwrapped(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_EXACT:
        return str(int(value))
    if isinstance(value, bytes | Decimal | date | time):
        return _scalar(value)
    return json.dumps(value, ensure_ascii=False, default=_scalar)


def _scalar(value: Any) -> str:
    """The text of a value that JSON does not have."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"it is bytes, and not UTF-8 text: {error.reason} at byte {error.start}") from None
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    return value.isoformat() if isinstance(value, date | time) else str(value)


def stands_as(value: Any, text: str | None) -> bool:
    """Whether a text is a value as it stands in the file, rather than what was decoded from it."""
    if value is None or isinstance(value, str):
        return text == value
    return text == json.dumps(value, ensure_ascii=False, default=str)
