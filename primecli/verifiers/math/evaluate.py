"""The value of an expression tree: exact where rational arithmetic of bounded size gives it, else to N digits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from primecli.verifiers.math.tokens import TRIG, Tree, Unreadable

MAX_BITS = 60_000
"""Exact numbers stay below this many bits; more is left to floating point of fixed precision."""


class Untame(Exception):
    """A value too large to compute in bounded time."""


def exact(tree: Tree) -> Fraction | None:
    """The rational value of a tree where rational arithmetic of bounded size gives one, else None.

    >>> from primecli.verifiers.math.parse import parse_expression
    >>> exact(parse_expression(r"\\frac{\\sqrt{16}}{6} - 0.5"))
    Fraction(1, 6)

    Raises Unreadable where the tree has no value: a division by zero.
    """
    kind = tree[0]
    if kind == "num":
        return tree[1]  # type: ignore[no-any-return]
    if kind == "sym":
        return None
    values = [exact(child) for child in tree[1:] if isinstance(child, tuple)]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    return _bounded(_rational(kind if kind != "call" else tree[1], numbers))


def _bounded(value: Fraction | None) -> Fraction | None:
    if value is None or value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        return None
    return value


def _rational(kind: str, numbers: list[Fraction]) -> Fraction | None:
    a = numbers[0]
    b = numbers[-1]
    if kind == "add":
        return sum(numbers, Fraction(0))
    if kind == "neg":
        return -a
    if kind == "mul":
        return a * b
    if kind == "div":
        if b == 0:
            raise Unreadable("division by zero")
        return a / b
    if kind == "pow":
        return _rational_power(a, b)
    if kind == "fact":
        return Fraction(math.factorial(a.numerator)) if a.denominator == 1 and 0 <= a <= 3000 else None
    if kind == "root":
        return _rational_power(a, 1 / b) if b > 0 else None
    if kind == "abs":
        return abs(a)
    if kind in ("floor", "ceil"):
        return Fraction(math.floor(a) if kind == "floor" else math.ceil(a))
    if kind == "binom" and a.denominator == b.denominator == 1 and 0 <= b <= a <= 3000:
        return Fraction(math.comb(a.numerator, b.numerator))
    return None


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if base == 0:
        if exponent < 0:
            raise Unreadable("division by zero")
        return Fraction(0) if exponent > 0 else None  # 0^0 has no agreed value
    if exponent.denominator > 64 or abs(exponent.numerator) * bits > MAX_BITS:
        return None
    degree = exponent.denominator
    if degree > 1:
        if base < 0:
            return None
        top, bottom = _exact_root(base.numerator, degree), _exact_root(base.denominator, degree)
        if top is None or bottom is None:
            return None
        base = Fraction(top, bottom)
    return base**exponent.numerator


def _exact_root(value: int, degree: int) -> int | None:
    if value < 2:
        return value
    if degree == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > 1000:
            return None
        root = round(value ** (1 / degree))
    return next((guess for guess in (root - 1, root, root + 1) if guess**degree == value), None)


_MAX_MAGNITUDE = 100_000  # binary exponent up to which the caller's process goes on computing


def numeric(tree: Tree, values: dict[str, Any], tame: bool) -> Any:
    """The value of a tree as an mpmath number at mpmath's current precision.

    values: an mpmath number for each free symbol. With `tame`, raises Untame rather than compute with numbers
    beyond 2^100000 or factorials of large numbers. Raises Unreadable where there is no finite value.
    """
    import mpmath

    kind = tree[0]
    if kind == "num":
        return mpmath.mpf(tree[1].numerator) / tree[1].denominator
    if kind == "sym":
        return _constant(tree[1], values)
    arguments = [numeric(child, values, tame) for child in tree[1:] if isinstance(child, tuple)]
    try:
        result = _apply(kind if kind != "call" else tree[1], arguments, tame)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise Unreadable(str(error)) from error
    if not mpmath.isfinite(result):
        raise Unreadable("no finite value")
    if tame and result != 0 and mpmath.mag(result) > _MAX_MAGNITUDE:
        raise Untame
    return result


def _constant(name: str, values: dict[str, Any]) -> Any:
    import mpmath

    if name == "\\pi":
        return +mpmath.pi
    if name == "e":
        return +mpmath.e
    if name == "i":
        return mpmath.mpc(0, 1)
    if name == "\\infty":
        raise Unreadable("infinity has no finite value")
    return values[name]


def _apply(kind: str, arguments: list[Any], tame: bool) -> Any:
    import mpmath

    a, b = arguments[0], arguments[-1]
    if kind == "add":
        return sum(arguments[1:], a)
    if kind == "neg":
        return -a
    if kind == "mul":
        return a * b
    if kind == "div":
        return a / b
    if kind == "abs":
        return abs(a)
    if tame and kind in ("fact", "binom") and any(abs(x) > 10_000 for x in arguments):
        raise Untame
    if tame and kind not in ("root", "pow", "ln", "logb") and abs(a) > 100_000:
        raise Untame
    if kind == "pow":
        if tame and a != 0 and abs(b) * abs(mpmath.mag(a)) > _MAX_MAGNITUDE:
            raise Untame
        return a**b
    if kind == "root":
        return mpmath.sqrt(a) if b == 2 else mpmath.power(a, 1 / b) if _positive(a) else _odd_root(a, b)
    if kind == "fact":
        return mpmath.factorial(a)
    if kind == "logb":
        return mpmath.log(a) / mpmath.log(b)
    return _functions()[kind](*arguments)


def _positive(a: Any) -> bool:
    import mpmath

    return isinstance(a, mpmath.mpf) and bool(a >= 0)


def _odd_root(a: Any, degree: Any) -> Any:
    """The real root of a negative number, as schools write it: the cube root of -8 is -2."""
    import mpmath

    if isinstance(a, mpmath.mpf) and degree == int(degree) and int(degree) % 2 == 1:
        return -mpmath.power(-a, 1 / degree)
    return mpmath.power(a, 1 / degree)


def _functions() -> dict[str, Any]:
    import mpmath

    return {
        **{name: getattr(mpmath, name) for name in (*TRIG, "sinh", "cosh", "tanh", "coth", "exp", "floor", "ceil")},
        **{"arc" + name: getattr(mpmath, "a" + name) for name in TRIG},
        "ln": mpmath.log,
        "binom": mpmath.binomial,
    }
