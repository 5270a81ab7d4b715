"""The value of an expression tree: as a fraction where rational arithmetic gives one, else to any number of digits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from primecli.verifiers.math.tokens import TRIG, Unreadable
from primecli.verifiers.math.tree import Tree, children, operation

MAX_BITS = 60_000
"""Exact numbers stay below this many bits; beyond, floating point of fixed precision is used."""

MAX_FACTORIAL = 3000  # of an exact number: 3000! has 30,332 bits
MAX_ROOT_DEGREE = 64  # of an exact root
MAX_ROOT_BITS = 1000  # under an exact root beyond the square root: its first guess is a float, below 2^1024

# beyond these `numeric` raises TooLarge, if `bounded`
MAX_MAGNITUDE = 100_000  # binary exponent of a value
MAX_ARGUMENT = 100_000  # of a function such as sin, which needs more digits the larger it is
MAX_FLOAT_FACTORIAL = 10_000

# beyond these it always does: the digits needed, and so the time, grow with the size of the exponent
LAST_MAGNITUDE = 10**30
LAST_ARGUMENT_BITS = 20_000
LAST_FLOAT_FACTORIAL = 10**28


class TooLarge(Exception):
    """A value is too large to compute in bounded time."""


def exact(tree: Tree) -> Fraction | None:
    """The value of a tree where rational arithmetic of bounded size gives it, else None.

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
    values = [exact(child) for child in children(tree)]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None
    return _within_max_bits(_rational(operation(tree), numbers))


def _within_max_bits(value: Fraction | None) -> Fraction | None:
    if value is None or value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        return None
    return value


def _rational(kind: str, numbers: list[Fraction]) -> Fraction | None:
    """An operation or function of exact numbers; None where its value is not rational or may be too large."""
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
        return Fraction(math.factorial(a.numerator)) if a.denominator == 1 and 0 <= a <= MAX_FACTORIAL else None
    if kind == "root":
        return _rational_power(a, 1 / b) if b > 0 else None
    if kind == "abs":
        return abs(a)
    if kind == "mod":
        if b == 0:
            raise Unreadable("division by zero")
        return a - b * math.floor(a / b)
    if kind in ("floor", "ceil"):
        return Fraction(math.floor(a) if kind == "floor" else math.ceil(a))
    if kind == "binom" and a.denominator == b.denominator == 1 and 0 <= b <= a <= MAX_FACTORIAL:
        return Fraction(math.comb(a.numerator, b.numerator))
    return None


def _rational_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if base == 0:
        if exponent < 0:
            raise Unreadable("division by zero")
        return Fraction(0) if exponent > 0 else None  # 0^0 has no agreed value
    if exponent.denominator > MAX_ROOT_DEGREE or abs(exponent.numerator) * bits > MAX_BITS:
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
    """The whole number whose power is `value`, which is not negative; None where there is none."""
    if value < 2:
        return value
    if degree == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > MAX_ROOT_BITS:
            return None
        root = round(value ** (1 / degree))
    return next((guess for guess in (root - 1, root, root + 1) if guess**degree == value), None)


def numeric(tree: Tree, values: dict[str, Any], bounded: bool) -> Any:
    """The value of a tree as an mpmath number, at mpmath's current precision.

    values: an mpmath number for each free symbol.
    bounded: whether to raise TooLarge rather than compute with numbers beyond 2^MAX_MAGNITUDE, or functions and
        factorials of large numbers. Without it, TooLarge comes only for numbers that are far larger still.

    Raises Unreadable where there is no finite value.
    """
    import mpmath

    kind = tree[0]
    if kind == "num":
        return mpmath.mpf(tree[1].numerator) / tree[1].denominator
    if kind == "sym":
        return _constant(tree[1], values)
    arguments = [numeric(child, values, bounded) for child in children(tree)]
    try:
        result = _apply(operation(tree), arguments, bounded)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise Unreadable(str(error)) from error
    if not mpmath.isfinite(result):
        raise Unreadable("no finite value")
    if result != 0 and mpmath.mag(result) > (MAX_MAGNITUDE if bounded else LAST_MAGNITUDE):
        raise TooLarge
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


def _apply(kind: str, arguments: list[Any], bounded: bool) -> Any:
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
    if kind == "mod":
        return a - b * mpmath.floor(a / b)
    largest = MAX_FLOAT_FACTORIAL if bounded else LAST_FLOAT_FACTORIAL
    if kind in ("fact", "binom") and any(abs(x) > largest for x in arguments):
        raise TooLarge
    too_large = abs(a) > MAX_ARGUMENT if bounded else a != 0 and mpmath.mag(a) > LAST_ARGUMENT_BITS
    if kind not in ("root", "pow", "ln", "logb") and too_large:
        raise TooLarge
    if kind == "pow":
        if a != 0 and abs(b) * max(abs(mpmath.mag(a)), 1) > (MAX_MAGNITUDE if bounded else LAST_MAGNITUDE):
            raise TooLarge
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
    """A root of a negative or complex number; an odd one of a negative number is real: the cube root of -8 is -2."""
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
        "cis": mpmath.expj,
        "binom": mpmath.binomial,
    }
