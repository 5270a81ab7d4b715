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

MAX_EXACT_INTEGER = 2**53
"""Below it, every whole number is a float, so that two of them are equal or not."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_WHOLE = re.compile(r"[+-]?[0-9]+")


def same_text(got: str, expected: str) -> bool:
    """Whether stdout is right, line by line; the amount of white space and empty lines do not count.

    Two whole numbers are equal only if they are written alike. Floating point may differ from an expected float by
    TOLERANCE, and from an expected whole number by a rounding error.

    >>> same_text("1 2\\n3.0000001 \\n", "1  2\\n3.0"), same_text("9999999", "10000000"), same_text("YES", "yes")
    (True, False, False)
    """
    if got == expected:
        return True
    got_lines = [line.split() for line in got.split("\n") if not line.isspace() and line]
    expected_lines = [line.split() for line in expected.split("\n") if not line.isspace() and line]
    if len(got_lines) != len(expected_lines):
        return False
    return all(
        len(tokens) == len(expected_tokens) and all(map(_same_token, tokens, expected_tokens))
        for tokens, expected_tokens in zip(got_lines, expected_lines, strict=True)
    )


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

    got: a value of builtin types, as the codec of the sandbox makes it.
    expected: a JSON value.

    JSON has no tuples, and no keys but texts: a tuple equals a list of the same items, and a key 1 equals "1". Floating
    point may differ by TOLERANCE; integers are equal or not.

    >>> same_value((1, 2.0000001), [1, 2.0]), same_value(True, 1), same_value({1: "a"}, {"1": "a"}), same_value(3, 4)
    (True, True, True, False)
    """
    if type(got) in (list, tuple):
        return type(expected) is list and len(got) == len(expected) and all(map(same_value, got, expected))
    if type(got) is dict:
        return type(expected) is dict and _same_dict(got, expected)
    if type(got) in (int, float, bool) and type(expected) in (int, float, bool):
        if type(got) is not float and type(expected) is not float:
            return bool(got == expected)
        return _close(got, expected)
    return type(got) is type(expected) and type(got) in (str, type(None)) and bool(got == expected)


def _same_dict(got: dict[Any, Any], expected: dict[str, Any]) -> bool:
    if len(got) != len(expected):
        return False
    named = {key if type(key) is str else _key_text(key): value for key, value in got.items()}
    return len(named) == len(got) and all(key in named and same_value(named[key], expected[key]) for key in expected)


def _key_text(key: Any) -> str:
    """A key as JSON writes it; for a type that JSON has no key for, a text that no data set has."""
    if key is None or type(key) is bool:
        return {None: "null", True: "true", False: "false"}[key]
    return repr(key) if type(key) in (int, float) else f"\0{type(key).__name__}"
