"""Units of measurement: how each is written, and what one is in another of its kind, exactly."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

Powers = tuple[tuple[str, int], ...]
"""Names and their exponents, sorted by name and none of them 0: (("length", 1), ("time", -2))."""

# name | other names | size in units of the kind named after it. A plural with -s or -es is understood.
_TABLE = """
meter m metre | 1 length
inch in | 127/5000 length
foot ft feet | 381/1250 length
yard yd | 1143/1250 length
mile mi | 201168/125 length
second s sec | 1 time
minute min | 60 time
hour h hr | 3600 time
day | 86400 time
week wk | 604800 time
fortnight | 1209600 time
gram g gramme | 1/1000 mass
tonne | 1000 mass
pound lb | 45359237/100000000 mass
ounce oz | 45359237/1600000000 mass
liter l L litre | 1/1000 length^3
gallon gal | 473176473/125000000000 length^3
quart qt | 473176473/500000000000 length^3
pint pt | 473176473/1000000000000 length^3
hectare ha | 10000 length^2
acre | 316160658/78125 length^2
newton N | 1 mass length time^-2
joule J | 1 mass length^2 time^-2
watt W | 1 mass length^2 time^-3
pascal Pa | 1 mass length^-1 time^-2
volt V | 1 mass length^2 time^-3 current^-1
ohm | 1 mass length^2 time^-3 current^-2
ampere amp A | 1 current
coulomb C | 1 time current
hertz Hz | 1 time^-1
kelvin K | 1 temperature
electronvolt eV | 1 electronvolt
calorie cal | 1 calorie
mole mol | 1 amount
bit | 1 data
byte | 8 data
cent | 1/100 dollar
dollar USD usd buck | 1 dollar
nickel | 1/20 dollar
dime | 1/10 dollar
euro EUR eur | 1 euro
rupee Rs INR | 1 rupee
year yr | 1 year
month mo | 1/12 year
decade | 10 year
century centuries | 100 year
watthour Wh | 3600 mass length^2 time^-2
psi | 1 psi
rpm | 1 rpm
bpm | 1 bpm
mpg | 1 mpg
ppm | 1 ppm
decibel dB | 1 decibel
dyne | 1/100000 mass length time^-2
erg | 1/10000000 mass length^2 time^-2
bar | 100000 mass length^-1 time^-2
tesla | 1 mass time^-2 current^-1
degree deg | 1 degree
radian rad | 1 radian
point pts | 1 point
am a.m. | 1 am
pm p.m. | 1 pm
"""
# prefixes of units: in words, and before abbreviations
_PREFIXES = {"kilo": 3, "centi": -2, "milli": -3, "micro": -6, "nano": -9, "mega": 6, "giga": 9, "deci": -1, "hecto": 2}
_SHORT_PREFIXES = {"k": 3, "c": -2, "m": -3, "u": -6, "n": -9, "M": 6, "G": 9, "d": -1}
_PREFIXED = (
    "meter gram liter newton joule watt pascal volt ohm ampere coulomb hertz electronvolt calorie second byte watthour"
)
_MIXED = {
    "mph": "mile/hour",
    "kmh": "kilometer/hour",
    "kph": "kilometer/hour",
    "fps": "foot/second",
    "sqft": "foot^2",
    "cc": "centimeter^3",
}
# in other scripts
_FOREIGN = {
    "米": "meter",
    "厘米": "centimeter",
    "公分": "centimeter",
    "毫米": "millimeter",
    "千米": "kilometer",
    "公里": "kilometer",
    "千克": "kilogram",
    "公斤": "kilogram",
    "克": "gram",
    "小时": "hour",
    "分钟": "minute",
    "秒": "second",
    "天": "day",
    "平方米": "meter^2",
    "平方厘米": "centimeter^2",
    "立方厘米": "centimeter^3",
    "度": "degree",
    "美元": "dollar",
    "美分": "cent",
    "欧元": "euro",
    "м": "meter",
    "см": "centimeter",
    "мм": "millimeter",
    "км": "kilometer",
    "кг": "kilogram",
    "г": "gram",
    "л": "liter",
    "ч": "hour",
    "мин": "minute",
    "с": "second",
}


def _read_table() -> tuple[dict[str, str], dict[str, tuple[Fraction, Powers]]]:
    """The name of each spelling, and the size and kind of each name."""
    spellings: dict[str, str] = {**_MIXED, **_FOREIGN}
    sizes: dict[str, tuple[Fraction, Powers]] = {}
    for line in _TABLE.strip().splitlines():
        words, _, value = line.partition(" | ")
        size, *kinds = value.split()
        name, *others = words.split()
        powers = tuple(sorted((kind.partition("^")[0], int(kind.partition("^")[2] or 1)) for kind in kinds))
        variants = [("", "", 0)]
        if name in _PREFIXED.split():
            variants += [(long, "", power) for long, power in _PREFIXES.items()]
        for long, _, power in variants:
            sizes[long + name] = (Fraction(size) * Fraction(10) ** power, powers)
            for word in (name, *(other for other in others if len(other) > 3)):
                spellings[long + word] = long + name
        for other in others:
            spellings[other] = name
            if name in _PREFIXED.split() and len(other) <= 3:
                for short, power in _SHORT_PREFIXES.items():
                    long = next(each for each, exponent in _PREFIXES.items() if exponent == power)
                    if short + other not in ("min", "cd", "pt", "ft", "cal", "mol"):
                        spellings.setdefault(short + other, long + name)
    return spellings, sizes


_SPELLINGS, _SIZES = _read_table()


@lru_cache(maxsize=4096)
def unit_name(word: str) -> str | None:
    """A unit in its one spelling, such as `centimeter` for `cm`; None for a word that is none.

    >>> unit_name("cm"), unit_name("Litres"), unit_name("apples")
    ('centimeter', 'liter', None)
    """
    lower = word.lower()
    candidates = [word, lower] if len(word) > 1 and word != "MM" else [word]  # MM are millions
    candidates += [lower.removesuffix("s"), lower.removesuffix("es")] if len(word) > 2 else []
    return next((_SPELLINGS[each] for each in candidates if each in _SPELLINGS), None)


_FACTOR = re.compile(r"([^\s^]+)(?:\^(-?\d))?")


@lru_cache(maxsize=4096)
def measure(unit: str) -> tuple[Fraction, Powers] | None:
    """The size of a canonical unit, and its kind as powers of basic ones; None where a part of it is no known unit.

    >>> measure("kilometer/hour")
    (Fraction(5, 18), (('length', 1), ('time', -1)))
    """
    size = Fraction(1)
    powers: dict[str, int] = {}
    for index, part in enumerate(unit.split("/")):
        for name, exponent in _FACTOR.findall(part):
            if name not in _SIZES:
                return None
            times = (-1 if index else 1) * int(exponent or 1)
            size *= _SIZES[name][0] ** times
            for kind, power in _SIZES[name][1]:
                powers[kind] = powers.get(kind, 0) + power * times
    return size, tuple(sorted((kind, power) for kind, power in powers.items() if power))


def conversion(unit: str, other: str) -> Fraction | None:
    """How many of `other` one of `unit` is, both canonical; None where they measure different things.

    >>> conversion("kilometer", "meter"), conversion("hour", "meter")
    (Fraction(1000, 1), None)
    """
    left, right = measure(unit), measure(other)
    if left is None or right is None or left[1] != right[1]:
        return None
    return left[0] / right[0]
