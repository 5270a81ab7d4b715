"""Compares the output of a program with what is expected: stdout as a contest's judge does, values by builtin type."""

from __future__ import annotations

import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Of floating point: relative, or absolute below 1. What contests allow."""

ROUNDING = 1e-12
"""Relative, where a whole number is expected: large ones have no digits to spare for the tolerance above."""

MAX_NUMBER_CHARS = 400
"""Longer tokens are compared as text: a float has at most 309 digits before its point."""

MAX_HEX_DIGITS = 4000
"""Of a returned integer: Python reads no JSON number of more than 4300 decimal digits, which are 3571 of these."""

MAX_EXACT_INTEGER = 2**53
"""Below it, every whole number is a float, so that two of them are equal or not."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_LINE = re.compile(r"\S[^\n]*")  # a line that is not empty, without the white space before it


def same_text(got: str, expected: str) -> bool:
    """Whether stdout is right, line by line; the amount of white space and empty lines do not count.

    Two whole numbers are equal only if they are written alike. Floating point may differ from an expected float by
    TOLERANCE, and from an expected whole number by a rounding error.

    >>> same_text("1 2\\n3.0000001 \\n", "1  2\\n3.0"), same_text("9999999", "10000000"), same_text("YES", "yes")
    (True, False, False)
    """
    if got == expected:
        return True
    expected_lines = [line.split() for line in _LINE.findall(expected)]
    lines = 0
    for line in _LINE.finditer(got):  # one at a time: it may be the first of millions
        if lines == len(expected_lines):
            return False
        expected_tokens = expected_lines[lines]
        tokens = line.group().split(None, len(expected_tokens))  # one more than expected, at most
        if len(tokens) != len(expected_tokens) or not all(map(_same_token, tokens, expected_tokens)):
            return False
        lines += 1
    return lines == len(expected_lines)


def _same_token(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if len(got) > MAX_NUMBER_CHARS or len(expected) > MAX_NUMBER_CHARS:
        return False
    if not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    whole_got, whole_expected = _WHOLE.fullmatch(got), _WHOLE.fullmatch(expected)
    if whole_got and whole_expected:
        return False
    return _close(float(got), int(expected) if whole_expected else float(expected))


def _close(got: float, expected: float) -> bool:
    """Whether two numbers, not both integers, are equal within the tolerance."""
    if isinstance(got, int) or isinstance(expected, int):
        try:
            return abs(float(got) - float(expected)) <= TOLERANCE + ROUNDING * abs(float(expected))
        except OverflowError:
            return False
    if math.isnan(got) or math.isnan(expected):
        return math.isnan(got) and math.isnan(expected)
    if math.isinf(got) or math.isinf(expected):
        return got == expected
    if got.is_integer() and expected.is_integer() and max(abs(got), abs(expected)) < MAX_EXACT_INTEGER:
        return got == expected
    return abs(got - expected) <= TOLERANCE * max(1.0, abs(expected))


def same_value(got: Any, expected: Any) -> bool:
    """Whether a returned value is right.

    got: the value as `codec.encode` has it in a message. It is never decoded: a set or dictionary of the program's keys
        may take minutes to build, and an integer to print. What is read of it is bounded by the size of `expected`.
    expected: a JSON value.

    JSON has no tuples, and no keys but texts: a tuple equals a list of the same items, and a key 1 equals "1". Floating
    point may differ by TOLERANCE; integers are equal or not.

    >>> same_value({"t": [1, 2.0000001]}, [1, 2.0]), same_value(True, 1), same_value({"d": [[1, "a"]]}, {"1": "a"})
    (True, True, True)
    """
    if type(got) is dict:
        ((tag, data),) = got.items() if len(got) == 1 else (("", None),)
        if tag == "i":
            number = _wide(data)
            return number is not None and type(expected) in (int, float) and _same_number(number, expected)
        if tag == "d":
            return type(expected) is dict and _same_dict(data, expected)
        if tag != "t" or type(data) is not list:
            return False
        got = data
    if type(got) is list:
        return type(expected) is list and len(got) == len(expected) and all(map(same_value, got, expected))
    if type(got) in (int, float, bool) and type(expected) in (int, float, bool):
        return _same_number(got, expected)
    return type(got) is type(expected) and type(got) in (str, type(None)) and bool(got == expected)


def _same_number(got: Any, expected: Any) -> bool:
    if type(got) is not float and type(expected) is not float:
        return bool(got == expected)
    return _close(got, expected)


def _wide(data: Any) -> int | None:
    """The integer in hexadecimal digits; None for one that no JSON number reaches."""
    try:
        return int(data, 16) if len(data) <= MAX_HEX_DIGITS else None
    except (TypeError, ValueError):
        return None


def _same_dict(items: Any, expected: dict[str, Any]) -> bool:
    """Whether the items of a dictionary, a list of pairs, are those expected."""
    if type(items) is not list or len(items) != len(expected):
        return False
    left = dict(expected)
    for item in items:
        if type(item) is not list or len(item) != 2:
            return False
        key = item[0] if type(item[0]) is str else _key_text(item[0])
        if key not in left or not same_value(item[1], left.pop(key)):
            return False
    return True


def _key_text(key: Any) -> str | None:
    """A key as JSON writes it; None for a type that JSON has no key for."""
    if key is None or type(key) is bool:
        return {None: "null", True: "true", False: "false"}[key]
    return repr(key) if type(key) in (int, float) else None
