"""Reads a single value: a choice letter, words, a time, a ratio, digits in a base, or an expression with its unit."""

from __future__ import annotations

import re
from dataclasses import dataclass

from primecli.verifiers.math.clock import read_time
from primecli.verifiers.math.compound import add_up
from primecli.verifiers.math.units import cut_unit, is_function
from primecli.verifiers.math.words import is_date, is_known, only_number, same_words, spelled_number


@dataclass(frozen=True, slots=True)
class Leaf:
    """A single value.

    kind: choice (a letter), words, based (digits and their base), time, ratio, or math.
    text: the letter, the words in lower case, the digits, hours:minutes, or the expression without its unit.
    unit: the unit in one spelling, such as meter, or ""; for a time am or pm; for digits their base, such as base2.
    percent: whether a percent sign followed.
    terms: the terms of a ratio, such as ("3", "4").
    number: the one number in the words, or "".
    several: whether it was written in several units, such as 1 hour 30 minutes; without a unit no number equals it.
    """

    kind: str
    text: str
    unit: str = ""
    percent: bool = False
    terms: tuple[str, ...] = ()
    number: str = ""
    several: bool = False


# "(C)", "c)" or "C."
_CHOICE = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]|([A-Z])\s*[.:]?")
# "option (C)"
_NAMED_CHOICE = re.compile(r"(?:option|choice|answer)\s*:?\s*[(\[]?([A-J])[)\]]?[.:]?", re.IGNORECASE)
# "(C) 12" or "C. 12": a letter and the text of its choice. Four groups: the letter and the text, for each form
CHOICE_THEN = re.compile(
    r"(?:[Oo]ption|[Cc]hoice)?\s*(?:\(?\s*([A-J])\s*\)\s*[:.]?\s*(?![+*/^=])(\S.*)|([A-J])\s*[.:]\s+(\S.*))", re.DOTALL
)
_TEXT_COMMAND = re.compile(r"\\text\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' \-]*[A-Za-z]")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
_BASE = r"(\d{1,2}|" + "|".join(_BASES) + ")"
# "1011_2", "1011_{two}" or "1011 base 2"
_BASED = re.compile(
    rf"\(?([\dA-Fa-f]+)\)?(?:\s?_\s*(?:\{{\s*)?{_BASE}\s*\}}?|,?\s*\(?\s*(?:in )?base[ -]{_BASE}\s*\)?)", re.IGNORECASE
)
_NOT_DEGREES = re.compile(r"\^\{\\circ\}|\\?(?:sin|cos|tan|cis)")
_DEGREES = re.compile(r"(.+?)\s*\^\{\\circ\}\s*(?:\\text\{\s*)?([CFcf]?)\s*\}?", re.DOTALL)
# 30^\circ 30' 15''
_DEGREES_AND_MINUTES = re.compile(
    r"(-?)\s*(\d{1,9})\s*\^\{\\circ\}\s*(\d{1,2}(?:\.\d{1,9})?)\s*(?:'|\^\{?\s*\\prime\s*\}?)"
    r"(?:\s*(\d{1,2}(?:\.\d{1,9})?)\s*(?:''|\"|\^\{?\s*\\prime\s*\\prime\s*\}?)?)?"
)
# words, rather than variables side by side
_SAYS_MORE = re.compile(r"\\text\{|[A-Za-z]{5}|[A-Za-z]{2} [A-Za-z]{2}|[^\x00-\x7f]")
_RATIO = re.compile(r"[^:]{1,80}(?::[^:]{1,80}){1,4}")
_RATIO_WORDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) to (\d{1,9}(?:\.\d{1,9})?)")


def read_leaf(text: str) -> Leaf:
    """Reads a normalised value.

    >>> read_leaf(r"10\\text{ weeks}"), read_leaf("(C)").kind, read_leaf("25%").percent
    (Leaf(kind='math', text='10', unit='week', percent=False, terms=(), number='', several=False), 'choice', True)
    """
    if text.isdecimal():
        return Leaf("math", text)
    bare = bare_text(text)
    if text.count("\\text{") == 1 and re.fullmatch(r"\\text\{\s*[-+]?[\d.][^{}]*\}(?:\^\{?[23]\}?)?", text):
        text = bare  # a number set as text
    choice = _CHOICE.fullmatch(bare)
    if choice and (choice.group(2) or bare != text or bare[-1] in ")]"):
        return Leaf("choice", choice.group(1) or choice.group(2))
    named = _NAMED_CHOICE.fullmatch(bare)
    if named:
        return Leaf("choice", named.group(1).upper())
    if ":" in bare or " to " in bare or bare[-2:] in ("on", "ht", "ck", "ay"):  # noon, midnight, o'clock, midday
        parts = _time_or_ratio(bare)
        if parts is not None:
            return parts
    words = _as_words(text, bare)
    if words is not None:
        return words
    based = _BASED.fullmatch(re.sub(r"\s+", " ", bare))
    if based:
        base = based.group(2) or based.group(3)
        return Leaf("based", based.group(1).upper().lstrip("0"), "base" + _BASES.get(base.lower(), base))
    angle = _DEGREES_AND_MINUTES.fullmatch(text)
    if angle:
        sign, whole, minutes, seconds = angle.groups()
        return Leaf("math", f"{sign}({whole}+{minutes}/60+{seconds or 0}/3600)", "degree")
    in_degrees = _DEGREES.fullmatch(text)
    if in_degrees and not _NOT_DEGREES.search(in_degrees.group(1)):
        return Leaf("math", in_degrees.group(1), "degree" + in_degrees.group(2).upper())
    return _with_unit(text.strip())


def bare_text(text: str) -> str:
    """A value without `\\text{…}` around any of its parts.

    >>> bare_text(r"10\\text{ weeks}")
    '10 weeks'
    """
    return _TEXT_COMMAND.sub(lambda match: match.group(1), text).strip()


def _time_or_ratio(bare: str) -> Leaf | None:
    time = read_time(bare)
    if time is not None:
        return Leaf("time", time[0], time[1])
    words = _RATIO_WORDS.fullmatch(bare)
    if words:
        return Leaf("ratio", bare, terms=words.groups())
    if _RATIO.fullmatch(bare) and not re.search(r"[A-Za-z]{3,}", re.sub(r"\\[a-zA-Z]+", "", bare)):
        return Leaf("ratio", bare, terms=tuple(term.strip() for term in bare.split(":")))
    return None


def _as_words(text: str, bare: str) -> Leaf | None:
    """An answer in words, or the number that they spell; None for what may be an expression."""
    if not bare or "=" in bare:
        return None
    if is_date(bare) or ((bare[0] in "dD" or not bare.isascii()) and is_known(bare)):
        return Leaf("words", same_words(bare))
    in_text = bool(re.fullmatch(r"\s*(?:\\text\{[^{}]*\}\s*)+", text))
    if not (in_text and re.search(r"[A-Za-z]{2}", bare) and not re.search(r"[\\^_]|^[-\d.]", bare)):
        if not _WORDS.fullmatch(bare):
            number = only_number(bare)
            if number is None or any(is_function(word) for word in re.findall("[A-Za-z]+", bare)):
                return None
            return Leaf("words", same_words(bare), number=number)
        if any(is_function(word) for word in bare.split()) and bare.lower() != "infinity":
            return None
        if not (
            re.search(r"[A-Za-z]{4}", bare)
            or (" " in bare and re.search(r"[A-Za-z]{3}", bare))
            or bare.lower() in ("yes", "no")
            or spelled_number(bare) is not None
        ):
            return None
    number = spelled_number(bare)
    if number is not None:
        return Leaf("math", number)
    words = same_words(bare)
    if words in ("infinity", "positive infinity", "negative infinity"):
        return Leaf("math", ("-" if "negative" in words else "") + "\\infty")
    return Leaf("words", words, number=only_number(bare) or "")


def _with_unit(text: str) -> Leaf:
    total = add_up(text)
    if total is not None:
        return Leaf("math", total[0], total[1], several=total[2])
    cut = cut_unit(text)
    if cut is None:
        # words that may change the value: only the same ones equal them
        return Leaf("words", same_words(bare_text(text))) if _SAYS_MORE.search(text) else Leaf("math", text)
    head, unit, percent = cut
    if head.endswith("%"):
        return Leaf("math", head[:-1].strip(), unit, True)
    return Leaf("math", head, unit, percent)
