"""Whether two single values are equal, units and spellings aside."""

from __future__ import annotations

import re

from primecli.verifiers.math.algebra import math_equal
from primecli.verifiers.math.normalize import squeeze
from primecli.verifiers.math.parse import Unreadable, parse_expression, symbols
from primecli.verifiers.math.quantity import CHOICE_THEN, TEXT, Leaf, read_leaf
from primecli.verifiers.math.units import SINGLE_LETTER

Verdict = bool | None

_ONE_SET = (  # spellings of one set, which no expression equals
    ("\\emptyset", "no solution"),
    ("\\mathbb{R}", "\\mathbb R", "\\mathbbR", "\\R", "all real numbers"),
)


def values_equal(gold_text: str, answer_text: str, slow: bool) -> Verdict:
    """Whether two normalised values are equal; None (only without `slow`) for undecided.

    >>> values_equal(r"90^{\\circ}", r"\\frac{\\pi}{2}", False), values_equal("3:4", "6:8", False)
    (True, True)
    """
    if squeeze(gold_text) == squeeze(answer_text) or squeeze(_bare(gold_text)) == squeeze(_bare(answer_text)):
        return bool(answer_text.strip())
    if not answer_text.strip() or not gold_text.strip():
        return False
    gold, answer = read_leaf(gold_text), read_leaf(answer_text)
    kinds = {gold.kind, answer.kind}
    for spellings in _ONE_SET:
        if gold.text in spellings or answer.text in spellings:
            return gold.text in spellings and answer.text in spellings
    if gold.kind == "choice" and gold.text.upper() <= "J":
        return _chosen(gold, answer, answer_text)
    if answer.kind == "choice" and (then := CHOICE_THEN.fullmatch(_bare(gold_text))) is not None:
        return answer.text.upper() == (then.group(1) or then.group(3))
    if gold.kind == "math" and (then := CHOICE_THEN.fullmatch(_bare(answer_text))) is not None:
        rest = then.group(2) or then.group(4)
        return not CHOICE_THEN.fullmatch(rest) and values_equal(gold_text, rest, slow)
    if "words" in kinds:
        return _words_equal(gold, answer, slow)
    if "choice" in kinds:
        return kinds <= {"choice", "math"} and math_equal(gold.text, answer.text, slow)
    if kinds & {"time", "ratio"}:
        return _clocks_or_ratios(gold, answer, slow)
    if "based" in kinds:
        if gold.kind == "based" and answer.kind == "math":
            return gold.text == answer.text.upper().lstrip("0")
        return gold.kind == answer.kind and gold.text == answer.text and gold.unit == answer.unit
    return _quantities_equal(gold, answer, slow)


def _words_equal(gold: Leaf, answer: Leaf, slow: bool) -> Verdict:
    if gold.kind == answer.kind:
        return gold.text == answer.text
    if gold.kind == "math" and answer.number:
        return math_equal(gold.text, answer.number, slow)
    return False


def _clocks_or_ratios(gold: Leaf, answer: Leaf, slow: bool) -> Verdict:
    if gold.kind == answer.kind == "time":
        return gold.text == answer.text and (gold.unit == answer.unit or not (gold.unit and answer.unit))
    if "time" in (gold.kind, answer.kind):
        time, other = (gold, answer) if gold.kind == "time" else (answer, gold)
        if other.kind == "ratio":  # "5:12" is a time of day, "5 to 12" is not
            return not time.unit and time.text == ":".join(other.terms)
        full_hour = time.text.endswith(":00") and bool(time.unit)  # 8 pm is 8:00 pm
        if other.kind != "math" or not full_hour or other.unit not in ("", time.unit):
            return False
        return math_equal(time.text.split(":")[0], other.text, slow)
    left, right = (leaf.terms or (_fraction_terms(leaf)) for leaf in (gold, answer))
    if len(left) != len(right) or not left:
        return False
    verdicts = [
        math_equal(f"({a})\\cdot({right[0]})", f"({b})\\cdot({left[0]})", slow)
        for a, b in zip(left[1:], right[1:], strict=True)
    ]
    return False if False in verdicts else None if None in verdicts else True


def _fraction_terms(leaf: Leaf) -> tuple[str, ...]:
    fraction = "/" in leaf.text or "\\frac" in leaf.text  # 3 is no spelling of 3:1
    return (leaf.text, "1") if fraction and not leaf.unit and not leaf.percent else ()


def _quantities_equal(gold: Leaf, answer: Leaf, slow: bool) -> Verdict:
    if {gold.unit, answer.unit} == {"degree", ""}:
        turned = _in_degrees(gold, answer, slow)
        if turned:
            return turned
    elif gold.unit and answer.unit and gold.unit != answer.unit:
        if {gold.unit, answer.unit} == {"degree", "radian"}:
            return _in_degrees(gold, answer, slow)
        return False
    verdict = math_equal(gold.text, answer.text, slow)
    if verdict is False and gold.percent != answer.percent:
        # 25 and 25% are one answer to "what percent"; 0.25 is another spelling of 25%, but not of 25
        left = f"({gold.text})/100" if gold.percent else gold.text
        right = f"({answer.text})/100" if answer.percent else answer.text
        return math_equal(left, right, slow)
    if verdict is False and not answer.unit and not gold.unit and _is_number(gold.text):
        single = SINGLE_LETTER.fullmatch(answer.text)
        if single is not None:
            return math_equal(gold.text, single.group(1), slow)
    return verdict


def _is_number(text: str) -> bool:
    try:
        return not symbols(parse_expression(text))
    except Unreadable:
        return False


def _in_degrees(gold: Leaf, answer: Leaf, slow: bool) -> Verdict:
    """45° against \\pi/4; a bare number is no angle in radians unless it is a multiple of \\pi."""
    degrees, other = (gold, answer) if gold.unit == "degree" else (answer, gold)
    if other.unit != "radian" and "\\pi" not in other.text:
        return False
    return math_equal(f"({degrees.text})\\cdot\\pi/180", other.text, slow)


def _bare(text: str) -> str:
    return TEXT.sub(lambda match: match.group(1), text).strip()


def _chosen(gold: Leaf, answer: Leaf, answer_text: str) -> bool:
    """A multiple-choice letter, alone or before the text of its choice."""
    if answer.kind == "choice":
        return gold.text.upper() == answer.text.upper()
    bare = _bare(answer_text)
    if re.fullmatch(r"[a-e]", bare):
        return gold.text.upper() == bare.upper()
    then = CHOICE_THEN.fullmatch(bare)
    return bool(then) and gold.text.upper() == (then.group(1) or then.group(3))  # type: ignore[union-attr]
