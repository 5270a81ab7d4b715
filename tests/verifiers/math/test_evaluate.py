from fractions import Fraction
from typing import Any

import mpmath
import pytest

from primecli.verifiers.math.evaluate import MAX_BITS, TooLarge, exact, numeric
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.tokens import Unreadable


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\sqrt{\frac{9}{16}}", Fraction(3, 4)),
        ("8^{2/3}", Fraction(4)),
        (r"\sqrt{2}", None),
        (r"\sqrt{-4}", None),
        ("0^0", None),
        ("x", None),
        (r"\pi", None),
        (f"2^{{{MAX_BITS + 1}}}", None),
        ("3001!", None),
    ],
)
def test_values_are_exact_or_left_alone(text: str, value: Fraction | None) -> None:
    assert exact(parse_expression(text)) == value


@pytest.mark.parametrize("text", [r"\frac{1}{0}", "0^{-1}", r"\frac{1}{2-2}", r"10 \bmod 0"])
def test_a_division_by_zero_has_no_value(text: str) -> None:
    with pytest.raises(Unreadable):
        exact(parse_expression(text))
    with pytest.raises(Unreadable):
        numeric(parse_expression(text), {}, bounded=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\sqrt{2}", mpmath.sqrt(2)),
        (r"\sqrt[3]{-8}", -2),
        (r"e^{i\pi}", -1),
        (r"\log_2 8", 3),
        (r"\log 100", 2),
        (r"\arctan 1", mpmath.pi / 4),
        ("2x", 3),
    ],
)
def test_numeric_values(text: str, value: Any) -> None:
    assert abs(numeric(parse_expression(text), {"x": mpmath.mpf("1.5")}, bounded=True) - value) < 1e-14


@pytest.mark.parametrize("text", ["9^{9^{9}}", r"2^{200001}", r"\sin(10^{10})", "20000!", r"e^{e^{e^{e^{9}}}}"])
def test_large_numbers_are_refused_where_time_is_bounded(text: str) -> None:
    with pytest.raises(TooLarge):
        numeric(parse_expression(text), {}, bounded=True)


@pytest.mark.parametrize(
    "text", ["9^{9^{9^{9}}}", "((30!)!)!", r"\sin(10^{10^{10}})", r"\binom{10^{30}}{10^{29}}", "e^{e^{e^{e^{9}}}}"]
)
def test_numbers_that_no_time_suffices_for_are_always_refused(text: str) -> None:
    with pytest.raises(TooLarge):
        numeric(parse_expression(text), {}, bounded=False)


@pytest.mark.parametrize(("text", "value"), [(r"17 \bmod 5", 2), (r"-1 \mod 7", 6), (r"2^{10} \bmod 7", 2)])
def test_mod_is_an_operation(text: str, value: int) -> None:
    assert exact(parse_expression(text)) == numeric(parse_expression(text), {}, bounded=True) == value


def test_large_numbers_are_computed_where_it_is_not() -> None:
    assert mpmath.mag(numeric(parse_expression("2^{200001}"), {}, bounded=False)) == 200_002
