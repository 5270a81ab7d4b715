"""Whether two prompts are one problem in nearly the same words, or two of a kind with other numbers."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from enum import IntEnum
from functools import lru_cache

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|\S")

_CARDINALS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15",
    "sixteen": "16", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30",
    "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
}  # fmt: skip
_AMOUNTS = {"hundred", "thousand", "million", "billion", "dozen", "half", "quarter", "once", "twice", "thrice"}
_AMOUNTS |= {"double", "triple", "quadruple"}
_ORDINALS = {"first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"}
_SIGNS = frozenset("+-−*×·÷/=<>≤≥^±%")
_ADDED_SIGNS = frozenset("+-−/^±%")
"""Signs that make another problem where only one of two prompts has them; the others may be markup, as in **Note**."""

_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")


class Alike(IntEnum):
    """How two prompts compare.

    no: different problems. unless_answers_differ: alike, but one has a number more than the other, so that different
    answers mean different problems. yes: the same problem.
    """

    no = 0
    unless_answers_differ = 1
    yes = 2


@lru_cache(maxsize=4096)  # pairs come sorted, and a prompt has several
def tokens(text: str) -> tuple[str, ...]:
    """The numbers, words and signs of a text, in one case.

    >>> tokens("He pays $3.50  for 1,000 g of RICE.")
    ('he', 'pays', '$', '3.50', 'for', '1,000', 'g', 'of', 'rice', '.')
    >>> tokens("Ten well-known words")
    ('10', 'well', 'known', 'words')
    """
    found = _TOKEN.findall(_HYPHEN.sub(" ", unicodedata.normalize("NFKC", text).lower()))
    return tuple(_CARDINALS.get(token, token) for token in found)


def compare(first: str, second: str, allowed: float) -> Alike:
    """Compares two prompts. allowed: how many words may be changed, added or left out.

    A number or a sign in place of another of its kind means another problem, however alike the words are.

    >>> compare("Add 3 and 4 please.", "Add 3 and 4, please!", 0).name, compare("Add 3 to 4", "Add 5 to 4", 3).name
    ('yes', 'no')
    """
    ours, theirs = _differing(tokens(first), tokens(second))
    changed, only_numbers = 0, True
    more: Counter[str] = Counter()  # the numbers and signs that the first has and the second has not
    for mine, other in _opcodes(ours, theirs):
        changed += max(sum(map(_is_word, mine)), sum(map(_is_word, other)))
        if changed > allowed:
            return Alike.no
        for kind in (_is_digits, _AMOUNTS.__contains__, _ORDINALS.__contains__, _SIGNS.__contains__):
            numbers, other_numbers = list(filter(kind, mine)), list(filter(kind, other))
            if numbers and other_numbers and numbers != other_numbers:
                return Alike.no
        more.update(filter(_counts, mine))
        more.subtract(filter(_counts, other))
        only_numbers &= not any(_is_plain(token) for token in (*mine, *other))
    if any(more.values()):
        return Alike.no if only_numbers else Alike.unless_answers_differ
    return Alike.yes


def is_number(token: str) -> bool:
    """Whether a token is a number, in digits or as a word."""
    return _is_digits(token) or token in _AMOUNTS or token in _ORDINALS or token in _CARDINALS


def _is_digits(token: str) -> bool:
    return token[:1].isdigit()


def _counts(token: str) -> bool:
    return is_number(token) or token in _ADDED_SIGNS


def _is_word(token: str) -> bool:
    return token[0].isalnum()


def _is_plain(token: str) -> bool:
    """Whether it is a word that is no number."""
    return token[0].isalpha() and not is_number(token)


def _differing(first: Sequence[str], second: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The parts between what both begin with and what both end with."""
    shorter = min(len(first), len(second))
    start = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    rest = shorter - start
    end = next((place for place in range(rest) if first[-1 - place] != second[-1 - place]), rest)
    return first[start : len(first) - end], second[start : len(second) - end]


def _opcodes(first: Sequence[str], second: Sequence[str]) -> list[tuple[Sequence[str], Sequence[str]]]:
    """The pieces in which they differ: what the first has there, and what the second has."""
    if len(first) == len(second):  # most often single words were replaced
        places = [place for place in range(len(first)) if first[place] != second[place]]
        if 8 * len(places) <= len(first) or len(first) <= 2:
            return [(first[place : place + 1], second[place : place + 1]) for place in places]
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    return [(first[a:b], second[c:d]) for operation, a, b, c, d in matcher.get_opcodes() if operation != "equal"]
