"""Whether two single values are equal, whatever their spelling and, where one of them has none, their unit."""

from __future__ import annotations

import re
from fractions import Fraction

from primecli.verifiers.math.clock import same_time
from primecli.verifiers.math.equal_expressions import expressions_equal
from primecli.verifiers.math.leaf import CHOICE_THEN, Leaf, bare_text, read_leaf
from primecli.verifiers.math.measures import conversion, measure
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import parse_expression
from primecli.verifiers.math.tokens import Unreadable
from primecli.verifiers.math.tree import symbols
from primecli.verifiers.math.units import SINGLE_LETTER

Verdict = bool | None
"""Whether two things are equal; None for undecided, which only a bounded comparison returns."""

_SETS = (  # spellings of each of two sets, which no expression equals
    ("\\emptyset", "no solution"),
    ("\\mathbb{R}", "\\mathbb R", "\\mathbbR", "\\R", "all real numbers"),
)


def values_equal(gold_text: str, answer_text: str, bounded: bool) -> Verdict:
    """Whether two normalised values are equal; None for undecided, only where `bounded`.

    >>> values_equal(r"90^{\\circ}", r"\\frac{\\pi}{2}", True), values_equal("3:4", "6:8", True)
    (True, True)
    """
    if squeeze(gold_text) == squeeze(answer_text) or squeeze(bare_text(gold_text)) == squeeze(bare_text(answer_text)):
        return bool(answer_text.strip())
    if not answer_text.strip() or not gold_text.strip():
        return False
    gold, answer = read_leaf(gold_text), read_leaf(answer_text)
    kinds = {gold.kind, answer.kind}
    for spellings in _SETS:
        if gold.text in spellings or answer.text in spellings:
            return gold.text in spellings and answer.text in spellings
    if gold.kind == "choice" and gold.text.upper() <= "J":  # later letters are more likely variables
        return _same_choice(gold, answer, answer_text)
    if answer.kind == "choice" and (then := CHOICE_THEN.fullmatch(bare_text(gold_text))) is not None:
        return answer.text.upper() == (then.group(1) or then.group(3))
    if gold.kind == "math" and (then := CHOICE_THEN.fullmatch(bare_text(answer_text))) is not None:
        rest = then.group(2) or then.group(4)
        return not CHOICE_THEN.fullmatch(rest) and values_equal(gold_text, rest, bounded)
    if "words" in kinds:
        return _words_equal(gold, answer, bounded)
    if "choice" in kinds:
        return kinds <= {"choice", "math"} and expressions_equal(gold.text, answer.text, bounded)
    if kinds & {"time", "ratio"}:
        return _clocks_or_ratios(gold, answer, bounded)
    if "based" in kinds:
        if gold.kind == "based" and answer.kind == "math":
            return gold.text == answer.text.upper().lstrip("0")
        return gold.kind == answer.kind and gold.text == answer.text and gold.unit == answer.unit
    return _quantities_equal(gold, answer, bounded)


def _words_equal(gold: Leaf, answer: Leaf, bounded: bool) -> Verdict:
    if gold.kind == answer.kind:
        return gold.text == answer.text
    if gold.kind == "math" and answer.number:
        return expressions_equal(gold.text, answer.number, bounded)
    return False


def _clocks_or_ratios(gold: Leaf, answer: Leaf, bounded: bool) -> Verdict:
    if gold.kind == answer.kind == "time":
        return same_time(gold.text, gold.unit, answer.text, answer.unit)
    if "time" in (gold.kind, answer.kind):
        time, other = (gold, answer) if gold.kind == "time" else (answer, gold)
        if other.kind == "ratio":  # 5:12 is read as a time of day, and "5 to 12" as a ratio
            return not time.unit and time.text == ":".join(other.terms)
        if other.unit in ("am", "pm") and re.fullmatch(r"1[0-2]|[1-9]", other.text):
            # 8 pm is 8:00 pm and 20:00, but 8:00 may be in the morning
            ambiguous = time is answer and not time.unit and time.text == f"{other.text}:00"
            return not ambiguous and same_time(time.text, time.unit, f"{other.text}:00", other.unit)
        full_hour = time.text.endswith(":00") and bool(time.unit)
        if other.kind != "math" or not full_hour or other.unit not in ("", time.unit):
            return False
        return expressions_equal(time.text.split(":")[0], other.text, bounded)
    left, right = (leaf.terms or _fraction_terms(leaf) for leaf in (gold, answer))
    if len(left) != len(right) or not left:
        return False
    verdicts = [
        expressions_equal(f"({a})\\cdot({right[0]})", f"({b})\\cdot({left[0]})", bounded)
        for a, b in zip(left[1:], right[1:], strict=True)
    ]
    return False if False in verdicts else None if None in verdicts else True


def _fraction_terms(leaf: Leaf) -> tuple[str, ...]:
    """The terms of a fraction as a ratio; none where the value is not a fraction."""
    fraction = "/" in leaf.text or "\\frac" in leaf.text  # 3 is not a spelling of 3:1
    return (leaf.text, "1") if fraction and not leaf.unit and not leaf.percent else ()


def _quantities_equal(gold: Leaf, answer: Leaf, bounded: bool) -> Verdict:
    left, right = gold.text, answer.text
    if {gold.unit, answer.unit} == {"degree", ""}:
        same_angle = _angles_equal(gold, answer, bounded)
        if same_angle or _INVERSE.search(gold.text):  # 45 is not the arctangent of 1
            return same_angle
    elif gold.unit and answer.unit and gold.unit != answer.unit:
        if {gold.unit, answer.unit} == {"degree", "radian"}:
            return _angles_equal(gold, answer, bounded)
        factor = conversion(gold.unit, answer.unit)
        if factor is None and gold.unit[:6] == answer.unit[:6] == "degree" and "degree" in (gold.unit, answer.unit):
            factor = Fraction(1)  # 25° says less than 25 °C
        if factor is None and not _same_things(gold.unit, answer.unit):
            return False
        left = f"({left})\\cdot ({factor or 1})"
    elif (gold.several or answer.several) and not (gold.unit and answer.unit):
        return False  # 90 may be minutes or seconds
    verdict = expressions_equal(left, right, bounded)
    if gold.percent != answer.percent:
        # 0.25 is another spelling of 25%, and 25 answers "what percent" where the gold answer is 25%; but an answer of
        # 25% is not the gold answer 25
        if (answer if gold.percent else gold).unit:
            return False
        if gold.percent and verdict is not False:
            return verdict
        left = f"({left})/100" if gold.percent else left
        right = f"({right})/100" if answer.percent else right
        return expressions_equal(left, right, bounded)
    if verdict is False and not answer.unit and not gold.unit and is_number(gold.text):
        single = SINGLE_LETTER.fullmatch(answer.text)
        if single is not None:
            return expressions_equal(gold.text, single.group(1), bounded)
    return verdict


def _same_things(unit: str, other: str) -> bool:
    """Whether one says more about the same things, as `red apple` does beside `apple`."""
    names, others = unit.split(), other.split()
    if "/" in unit + other or measure(names[-1]) is not None:
        return False
    return names[-1] == others[-1] and (len(names) == 1 or len(others) == 1)


def is_number(text: str) -> bool:
    """Whether a text is an expression without variables, such as `3 + 19`."""
    try:
        return not symbols(parse_expression(text))
    except Unreadable:
        return False


_INVERSE = re.compile(r"\\?arc(?:sin|cos|tan|cot|sec|csc)|\\(?:sin|cos|tan|cot)\s*\^\s*\{?\s*-\s*1")


def _angles_equal(gold: Leaf, answer: Leaf, bounded: bool) -> Verdict:
    """Compares 45° with \\pi/4. A number without a unit is an angle in radians only if it has a \\pi or an \\arctan."""
    degrees, other = (gold, answer) if gold.unit == "degree" else (answer, gold)
    if other.unit != "radian" and "\\pi" not in other.text and not _INVERSE.search(other.text):
        return False
    return expressions_equal(f"({degrees.text})\\cdot\\pi/180", other.text, bounded)


def _same_choice(gold: Leaf, answer: Leaf, answer_text: str) -> bool:
    """Whether an answer is the gold letter of a multiple choice, alone or before the text of that choice."""
    if answer.kind == "choice":
        return gold.text.upper() == answer.text.upper()
    bare = bare_text(answer_text)
    if re.fullmatch(r"[a-e]", bare):
        return gold.text.upper() == bare.upper()
    then = CHOICE_THEN.fullmatch(bare)
    return bool(then) and gold.text.upper() == (then.group(1) or then.group(3))  # type: ignore[union-attr]
