"""Cuts the unit off a value, and writes it in one spelling."""

from __future__ import annotations

import re

_TEXT_GROUP = r"\\text\{(?:[^{}]|\{[^{}]*\})*\}"
# a value and a unit in \text{…}: 18\text{ cm}^2, 18 \frac{\text{m}}{\text{s}}
_UNIT_TEXT = re.compile(
    rf"(.*?[\d)}}%\]a-zA-Z])\s*((?:{_TEXT_GROUP}|\\frac\{{{_TEXT_GROUP}\}}\{{{_TEXT_GROUP}\}})"
    rf"(?:\s*(?:/|\\cdot|{_TEXT_GROUP}|\^\s*\{{?\s*-?\d\s*\}}?))*)",
    re.DOTALL,
)
# a value and a unit in plain words, with its exponent: 18 square feet, 40 ft^2
_UNIT_WORDS = re.compile(
    r"(.*(?:[\d)}%]|\\pi\s))(\s*)\(?([a-zA-Z]+(?:[ .\-/]+[a-zA-Z]+){0,8})\)?\.?\s*(\^\s*\{?\s*\d\s*\}?)?", re.DOTALL
)
# a value and a word in another script: 18元
_FOREIGN = re.compile(r"(.*[\d)}%])\s*[^\W\d_a-zA-Z]{1,12}", re.DOTALL)
# 4th, 4^{\text{th}}
_ORDINAL = re.compile(r"(\d{1,9})\s*(?:\^\s*\{?\s*)?(?:\\text\{)?\s*(st|nd|rd|th)\s*\}?\s*\}?")
SINGLE_LETTER = re.compile(r"(.*\d\}?\)?)\s*([mgshLlJNVWK])(?:\^\s*\{?\s*[23]\s*\}?)?", re.DOTALL)
"""A value before a letter that may be a unit: 5 m may also be five times m."""

# powers of ten
_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NOT_UNITS = re.compile(  # words that change the value, so that the number before them is not the whole answer
    r"\b(?:dozens?|half|halves|thirds?|quarters?|score|pairs?|plus|minus|times|over|or|and|not|to|than|squared|cubed"
    r"|of(?! (?:the|a|an|his|her|their|its)\b)|(?:more|less|fewer)(?= than|$)|factorial|root|power|choose|below"
    r"|negative|between|greater|if|when|(?!month)[a-z]+ths?|hundreds?|thousands?|[mb]illions?|base)\b",
    re.IGNORECASE,
)
_UNIT_BEFORE_POWER = re.compile(r"[a-zA-Z]{2,}\s+(?:squared|cubed)$")  # 5 cm squared, but 5 squared is 25
_SHORT_UNITS = (
    "cm:centimeter mm:millimeter m:meter km:kilometer in:inch ft:foot feet:foot inches:inch yd:yard mi:mile "
    "g:gram kg:kilogram mg:milligram lb:pound lbs:pound oz:ounce "
    "s:second sec:second secs:second min:minute mins:minute hr:hour hrs:hour h:hour ms:millisecond "
    "L:liter l:liter mL:milliliter ml:milliliter litre:liter litres:liter metre:meter metres:meter "
    "centimetre:centimeter centimetres:centimeter kilometre:kilometer kilometres:kilometer "
    "mph:mile/hour deg:degree rad:radian radians:radian USD:dollar usd:dollar dollars:dollar cents:cent Hz:hertz "
    "kmh:kilometer/hour kph:kilometer/hour pts:point am:am pm:pm"
)
_UNIT_NAMES = dict(entry.split(":") for entry in _SHORT_UNITS.split())
_FUNCTION = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|cis|ln|log|exp|sqrt|pi|infinity|infty|theta|abs|mod|oo", re.IGNORECASE
)


def is_function(word: str) -> bool:
    """Whether a word names a function or constant of mathematics."""
    return bool(_FUNCTION.fullmatch(word))


def canonical_unit(text: str, exponent: str = "") -> str:
    """A unit in one spelling: singular, without abbreviations, powers as `^2`.

    >>> canonical_unit("sq. inches"), canonical_unit("in", "^2"), canonical_unit("miles per hour")
    ('inch^2', 'inch^2', 'mile/hour')
    """
    text = text.strip(" .()")
    power = re.sub(r"\D", "", exponent)
    for prefix, suffix, value in (("sq|square", "squared", "2"), ("cu|cubic", "cubed", "3")):
        bare = re.sub(rf"^(?:{prefix})\b\.?\s*|\s+{suffix}$", "", text)
        if bare != text:
            text, power = bare, value
    words = []
    for word in re.sub(r"\s*/\s*|\s+per\s+", " / ", text).split():
        known = _UNIT_NAMES.get(word) or _UNIT_NAMES.get(word.lower())
        word = known or word.lower().strip(".")
        if not known and len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = word[:-1]
            word = _UNIT_NAMES.get(word, "inch" if word == "inche" else word)
        words.append(word)
    return " ".join(words).replace(" / ", "/") + (f"^{power}" if power and power != "1" else "")


def cut_unit(text: str) -> tuple[str, str, bool] | None:
    """The expression before a unit, the unit in one spelling, and whether it is "percent" in words.

    None where the words after the number change its value, so that the text is not a value with a unit.

    >>> cut_unit(r"10\\text{ weeks}"), cut_unit("5 million dollars"), cut_unit("5 dozen")
    (('10', 'week', False), ('(5)\\\\cdot 10^{6}', 'dollar', False), None)
    """
    head, unit, exponent = _find_unit(text)
    percent = False
    if unit:
        head, unit, percent = _magnitude(head.strip(), unit)
        if _NOT_UNITS.search(re.sub(r"\s+(?:squared|cubed)$", "", unit) if _UNIT_BEFORE_POWER.match(unit) else unit):
            return None
        unit = canonical_unit(unit, exponent) if unit else ""
    return head.strip(), unit, percent


def _find_unit(text: str) -> tuple[str, str, str]:
    """The expression before a unit, the unit as written, and the exponent after it."""
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal and _ordinal_suffix(int(ordinal.group(1))) == ordinal.group(2):
        return ordinal.group(1), "", ""
    match = _UNIT_TEXT.fullmatch(text)
    if match and re.search(r"\\text\{[^{}]*[a-zA-Z]", match.group(2)):
        return match.group(1), *_text_unit(match.group(2))
    match = _UNIT_WORDS.fullmatch(text)
    if match and _plain_unit(match.group(3), spaced=bool(match.group(2)) or "\\pi" in match.group(1)[-5:]):
        return match.group(1), match.group(3), match.group(4) or ""
    foreign = _FOREIGN.fullmatch(text)
    return (foreign.group(1), "", "") if foreign else (text, "", "")


def _ordinal_suffix(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _text_unit(latex: str) -> tuple[str, str]:
    """`\\text{m}/\\text{s}^2` in words, and the exponent at the end."""
    latex = re.sub(r"\\frac\{(.*)\}\{(.*)\}", r"\1 / \2", latex)
    latex = re.sub(r"\\text\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1", latex)
    latex = re.sub(r"\\cdot|\s+", " ", latex)
    latex = re.sub(r"\s(\w+)\^\s*\{?-1\}?", r" / \1", latex)
    exponent = re.search(r"\^\s*\{?\s*(-?\d)\s*\}?\s*$", latex)
    if exponent:
        return latex[: exponent.start()].strip(), exponent.group()
    return latex.strip(), ""


def _plain_unit(words: str, spaced: bool) -> bool:
    """Whether plain letters after a number are a unit rather than a product of variables.

    spaced: whether a space precedes them.
    """
    parts = re.split(r"[ .\-/]+", words)
    first = parts[0]
    if any(is_function(word) for word in parts) or re.match(r"sqrt|pi(?![a-z])", first):
        return False
    known = first in _UNIT_NAMES or first.lower() in _UNIT_NAMES or first in ("percent", "sq", "square", "cubic", "p")
    if len(first) == 1 and not re.fullmatch(r"[ap][. ]*m", words, re.IGNORECASE):
        return False  # 5 m may be five times m
    return known or (spaced and len(first) >= 3) or len(first) >= 5


def _magnitude(head: str, unit: str) -> tuple[str, str, bool]:
    """Moves a magnitude from the unit to the value: `5`, `million dollars` as `(5)\\cdot 10^{6}`, `dollars`.

    The flag is True for "percent" in words, which is then dropped.
    """
    first, _, rest = unit.strip().partition(" ")
    word = first.lower().rstrip("s")
    if word in _MAGNITUDES:
        return f"({head})\\cdot 10^{{{_MAGNITUDES[word]}}}", rest, False
    if first.lower() in ("percent", "pct", "percentage"):
        return head, "", True
    return head, unit, False
