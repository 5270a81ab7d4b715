from fractions import Fraction

import pytest

from primecli.verifiers.math.measures import conversion
from primecli.verifiers.math.units import canonical_unit
from tests.verifiers.math.grading import grade_in_box

# what one of the first is in the second, by definition (the yard and pound agreement of 1959, and the SI)
ONE = [
    ("mile", "m", "1609.344"),
    ("in", "cm", "2.54"),
    ("yd", "ft", "3"),
    ("lb", "g", "453.59237"),
    ("lb", "oz", "16"),
    ("gallon", "cubic inches", "231"),
    ("gal", "L", "3.785411784"),
    ("qt", "pt", "2"),
    ("mL", "cm^3", "1"),
    ("acre", "square feet", "43560"),
    ("hectare", "m^2", "10000"),
    ("km/h", "m/s", "5/18"),
    ("mph", "ft/s", "22/15"),
    ("kWh", "MJ", "3.6"),
    ("N m", "J", "1"),
    ("W", "kg m^2 s^-3", "1"),
    ("V", "W/A", "1"),
    ("g/cm^3", "kg/m^3", "1000"),
    ("week", "hours", "168"),
    ("dollars", "dimes", "10"),
    ("um", "nm", "1000"),
]


@pytest.mark.parametrize(("unit", "other", "value"), ONE)
def test_one_unit_in_another(unit: str, other: str, value: str) -> None:
    assert conversion(canonical_unit(unit), canonical_unit(other)) == Fraction(value)
    assert conversion(canonical_unit(other), canonical_unit(unit)) == 1 / Fraction(value)


@pytest.mark.parametrize(("unit", "other", "value"), [row for row in ONE if "/" not in row[2] and " " not in row[0]])
def test_quantities_convert_exactly(unit: str, other: str, value: str) -> None:
    gold = f"1\\text{{ {unit}}}"
    assert grade_in_box(gold, f"{value}\\text{{ {other}}}").reward == 1.0
    assert grade_in_box(gold, f"{value}1\\text{{ {other}}}" if "." in value else f"{value}.01 {other}").reward == 0.0


@pytest.mark.parametrize(
    ("unit", "other"), [("m", "s"), ("m", "m^2"), ("kg", "lb force"), ("J", "W"), ("year", "day"), ("USD", "EUR")]
)
def test_different_kinds_do_not_convert(unit: str, other: str) -> None:
    assert conversion(canonical_unit(unit), canonical_unit(other)) is None
