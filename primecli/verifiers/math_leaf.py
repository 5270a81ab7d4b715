"""Reads one value: a number or expression with its unit set apart, a choice letter, words, digits in a base."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value. kind: choice (a letter), words, based (digits and a base), or math.

    text: the letter, the words in lower case, the digits, or the expression without its unit.
    unit: the unit in one spelling, or ""; percent: whether a percent sign stood after it.
    """

    kind: str
    text: str
    unit: str = ""
    percent: bool = False


_CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*\)|([A-Z])\s*[.:]?")
CHOICE_THEN = re.compile(r"\(?\s*([A-J])\s*\)\s*\S.*|([A-J])\s*[.:]\s+\S.*", re.DOTALL)
TEXT = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' \-]*[A-Za-z]")
_NOT_WORDS = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|ln|log|exp|sqrt|pi|infinity|infty|theta|abs|mod|oo", re.IGNORECASE
)
_BASED = re.compile(r"([\dA-Fa-f]+)_\s*(?:\{\s*)?(\d{1,2})\s*\}?")
_UNIT_TEXT = re.compile(
    r"(.*[\d)}%\]a-zA-Z])\s*\\text\{\s*([^{}]*?)\s*\}\s*((?:/|\\cdot)\s*\\text\{[^{}]*\})?\s*(\^\s*\{?\s*-?\d\s*\}?)?",
    re.DOTALL,
)
_UNIT_WORDS = re.compile(
    r"(.*[\d)}%])(\s*)([a-zA-Z]+(?:[ .\-/]+[a-zA-Z]+){0,8})\.?\s*(\^\s*\{?\s*\d\s*\}?)?", re.DOTALL
)
_DEGREES = re.compile(r"(.+?)\s*\^\{\\circ\}\s*(?:\\text\{\s*)?([CFcf]?)\s*\}?", re.DOTALL)
_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NOT_UNITS = re.compile(  # words that change the value, so that what stands before them is not the whole answer
    r"\b(?:dozens?|half|halves|thirds?|quarters?|score|pairs?|plus|minus|times|over|of|or|and|not|to|more|less|than"
    r"|squared|cubed|factorial|root|power|choose|below|negative|between|greater|fewer|if|when|(?!month)[a-z]+ths?)\b",
    re.IGNORECASE,
)
_UNIT_BEFORE_POWER = re.compile(r"[a-zA-Z]{2,}\s+(?:squared|cubed)$")  # 5 cm squared, but 5 squared is 25
_UNITS = {
    "cm": "centimeter mm:millimeter m:meter km:kilometer in:inch ft:foot feet:foot inches:inch yd:yard mi:mile",
    "mass": "g:gram kg:kilogram mg:milligram lb:pound lbs:pound oz:ounce",
    "time": "s:second sec:second secs:second min:minute mins:minute hr:hour hrs:hour h:hour ms:millisecond",
    "other": "L:liter l:liter mL:milliliter ml:milliliter litre:liter litres:liter metre:meter metres:meter "
    "mph:mile/hour deg:degree rad:radian radians:radian USD:dollar usd:dollar dollars:dollar cents:cent Hz:hertz "
    "kmh:kilometer/hour kph:kilometer/hour pts:point",
}


def _unit_table() -> dict[str, str]:
    table = {"cm": "centimeter"}
    for group in _UNITS.values():
        for entry in group.split():
            short, _, name = entry.partition(":")
            if name:
                table[short] = name
    return table


_UNIT_NAMES = _unit_table()


def _unit(text: str, exponent: str = "") -> str:
    """A unit in one spelling.

    >>> _unit("sq. inches"), _unit("in", "^2"), _unit("miles per hour")
    ('inch^2', 'inch^2', 'mile/hour')
    """
    text = text.strip(" .")
    power = re.sub(r"\D", "", exponent)
    if re.match(r"(?:sq|square)\b\.?\s*", text):
        text, power = re.sub(r"^(?:sq|square)\b\.?\s*", "", text), "2"
    elif re.match(r"(?:cu|cubic)\b\.?\s*", text):
        text, power = re.sub(r"^(?:cu|cubic)\b\.?\s*", "", text), "3"
    elif re.search(r"\s+squared$", text):
        text, power = re.sub(r"\s+squared$", "", text), "2"
    elif re.search(r"\s+cubed$", text):
        text, power = re.sub(r"\s+cubed$", "", text), "3"
    words = []
    for word in re.sub(r"\s*/\s*|\s+per\s+", " / ", text).split():
        known = _UNIT_NAMES.get(word) or _UNIT_NAMES.get(word.lower())
        word = known or word.lower().strip(".")
        if not known and len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = word[:-1]
            word = _UNIT_NAMES.get(word, "inch" if word == "inche" else word)
        words.append(word)
    return " ".join(words).replace(" / ", "/") + (f"^{power}" if power and power != "1" else "")


def read_leaf(text: str) -> Leaf:
    """A normalised value with its unit set apart.

    >>> read_leaf(r"10\\text{ weeks}"), read_leaf("(C)").kind, read_leaf("25%").percent
    (Leaf(kind='math', text='10', unit='week', percent=False), 'choice', True)
    """
    bare = TEXT.sub(lambda match: match.group(1), text).strip()
    if text.count("\\text{") == 1 and re.fullmatch(r"\\text\{\s*[-+]?[\d.][^{}]*\}", text):
        text = bare  # a number that only its typeface wraps
    choice = _CHOICE.fullmatch(bare)
    if choice and (choice.group(2) or bare != text or bare.endswith(")")):
        return Leaf("choice", choice.group(1) or choice.group(2))
    words = _as_words(text, bare)
    if words is not None:
        return Leaf("words", words)
    based = _BASED.fullmatch(text.strip())
    if based:
        return Leaf("based", based.group(1).upper().lstrip("0"), "base" + based.group(2))
    degrees = _DEGREES.fullmatch(text)
    if degrees and "^{\\circ}" not in degrees.group(1) and not re.search(r"\\?(?:sin|cos|tan)", degrees.group(1)):
        return Leaf("math", degrees.group(1), "degree" + degrees.group(2).upper())
    return _with_unit(text.strip())


def _as_words(text: str, bare: str) -> str | None:
    """The words of a text answer in lower case; None where it may be an expression."""
    if not bare or "=" in bare:
        return None
    in_text = bool(re.fullmatch(r"\s*(?:\\text\{[^{}]*\}\s*)+", text))
    if in_text and re.search(r"[A-Za-z]{2}", bare) and not re.search(r"[\\^_]", bare) and not re.match(r"[-\d.]", bare):
        return re.sub(r"[^a-z\d]+", " ", bare.lower()).strip()
    if not _WORDS.fullmatch(bare):
        return None
    if any(_NOT_WORDS.fullmatch(word) for word in bare.split()):
        return None
    if (
        re.search(r"[A-Za-z]{4}", bare)
        or (" " in bare and re.search(r"[A-Za-z]{3}", bare))
        or bare.lower() in ("yes", "no")
    ):
        return re.sub(r"[^a-z]+", " ", bare.lower()).strip()
    return None


def _with_unit(text: str) -> Leaf:
    unit = ""
    match = _UNIT_TEXT.fullmatch(text)
    if match and re.search(r"[a-zA-Z]", match.group(2)):
        head, unit, exponent = (
            match.group(1),
            match.group(2) + re.sub(r"\\cdot|\\text|[{}]", "", match.group(3) or ""),
            match.group(4) or "",
        )
    else:
        match = _UNIT_WORDS.fullmatch(text)
        if match and _plain_unit(match.group(3), spaced=bool(match.group(2))):
            head, unit, exponent = match.group(1), match.group(3), match.group(4) or ""
        else:
            head, exponent = text, ""
    percent = False
    if unit:
        head, unit, percent = _magnitude(head.strip(), unit)
        if _NOT_UNITS.search(re.sub(r"\s+(?:squared|cubed)$", "", unit) if _UNIT_BEFORE_POWER.match(unit) else unit):
            return Leaf("math", text)
        unit = _unit(unit, exponent) if unit else ""
    head = head.strip()
    if head.endswith("%"):
        return Leaf("math", head[:-1].strip(), unit, True)
    return Leaf("math", head, unit, percent)


def _plain_unit(words: str, spaced: bool) -> bool:
    """Whether plain letters after a number are a unit, not a product of variables."""
    first = re.split(r"[ .\-/]+", words)[0]
    if any(_NOT_WORDS.match(word) for word in re.split(r"[ .\-/]+", words)):
        return False
    known = first in _UNIT_NAMES or first.lower() in _UNIT_NAMES or first in ("percent", "sq", "square", "cubic")
    if len(first) == 1:
        return False  # 5 m may be five times m
    return known or (spaced and len(first) >= 3) or len(first) >= 5


def _magnitude(head: str, unit: str) -> tuple[str, str, bool]:
    """`5`, `million dollars` as `5\\cdot 10^{6}`, `dollars`; percent in words sets the flag."""
    first, _, rest = unit.strip().partition(" ")
    word = first.lower().rstrip("s")
    if word in _MAGNITUDES:
        return f"({head})\\cdot 10^{{{_MAGNITUDES[word]}}}", rest, False
    if first.lower() in ("percent", "pct", "percentage"):
        return head, "", True
    return head, unit, False
