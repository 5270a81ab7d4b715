"""Finds the final answer in a response. Linear in the length of the text; no sympy.

Three rules, in this order: the last finished `\\boxed{…}`, the last final-answer phrase, and, where asked
for, the last number. They run in the caller's process, so none of their patterns may backtrack.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

MAX_ANSWER_CHARS = 2000
"""Longer answers are not read: no known data set has one, and algebra on them is a way to stall a worker."""

_BOX_TOKENS = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)(?![a-zA-Z])[ \t\n]{0,8}(\{?)|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[^\s${}]{1,64}")

_PHRASE = re.compile(
    r"####"
    r"|\bfinal[ ]answer\b(?:[ ]is\b)?[ ]{0,2}[:：]?"
    r"|\b(?:correct[ ])?answer\b(?:[ ](?:to[ ](?:the|this)[ ](?:question|problem)|choice|option))?[ ]"
    r"(?:is\b|would[ ]be\b|must[ ]be\b|equals\b)[ ]{0,2}[:：]?"
    r"|\banswer[ ]{0,2}(?:\*\*)?[:：]"
    r"|\b(?:correct[ ])(?:choice|option)[ ]is\b[ ]{0,2}[:：]?",
    re.IGNORECASE,
)

_MATH_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE_AFTER = re.compile(
    r"[.;!?](?=\s|$)|,(?=\s+(?!and\b|or\b)[a-z]{2,})|\s(?=(?:because|since|which|so|as|where|I hope)\b)"
)
_NUMBER = re.compile(
    r"(?<![\w.])[-−]?(?:\\?\$)?(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d{1,400}(?!\d))"
    r"(?:\.\d{1,400})?(?:\s?/\s?\d{1,400})?(?:\s?\\?%)?"
)


@dataclass(frozen=True, slots=True)
class Extraction:
    """A final answer as the text writes it, and the rule that found it: boxed, phrase or last_number."""

    text: str
    rule: str


def extract_answer(text: str, last_number: bool = True) -> Extraction | None:
    """The final answer of a response, or None.

    A box that is never closed is not read, and neither is what follows it: the `2` of `\\boxed{\\frac12` is
    no answer.

    >>> extract_answer(r"first \\boxed{1}, then \\boxed{\\frac{1}{2}}.")
    Extraction(text='\\\\frac{1}{2}', rule='boxed')
    >>> extract_answer("9 * 2 = 18\\n#### 18").rule
    'phrase'
    >>> extract_answer("that leaves 7 eggs", last_number=False) is None
    True
    """
    boxed, unfinished = _last_box(text)
    if boxed is not None:
        return Extraction(boxed, "boxed")
    text = text[:unfinished]
    phrase = _last_phrase(text)
    if phrase is not None:
        return Extraction(phrase, "phrase")
    if last_number:
        number = _last_number(text)
        if number is not None:
            return Extraction(number, "last_number")
    return None


def _last_box(text: str) -> tuple[str | None, int]:
    """Content of the last finished box (outermost where nested), and where the first unfinished one starts."""
    found: str | None = None
    braces: list[tuple[int, int]] = []  # (start of the box or -1, start of its content)
    for token in _BOX_TOKENS.finditer(text):
        word = token.group()
        if word == "{":
            braces.append((-1, token.end()))
        elif word == "}":
            if braces:
                start, content = braces.pop()
                if start >= 0 and text[content : token.start()].strip():
                    found = text[content : token.start()]
        elif len(word) > 2 and word.startswith("\\") and "box" in word:
            if token.group(1):
                braces.append((token.start(), token.end()))
            elif (bare := _UNBRACED.match(text, token.end())) is not None:
                found = bare.group().rstrip(".,;:") or found
    unfinished = next((start for start, _ in braces if start >= 0), len(text))
    return (found.strip() if found is not None else None), unfinished


def _last_phrase(text: str) -> str | None:
    """What the last final-answer phrase of the text announces."""
    for phrase in reversed(deque(_PHRASE.finditer(text), maxlen=8)):  # the last ones may announce nothing
        announced = _announced(text, phrase)
        if announced is not None:
            return announced
    return None


def _announced(text: str, phrase: re.Match[str]) -> str | None:
    after = text[phrase.end() : phrase.end() + MAX_ANSWER_CHARS].lstrip(" \t\r\n*:_")
    if after.startswith(("$$", "\\[")):
        span = _MATH_SPAN.match(after)
        if span:
            return next(group for group in span.groups() if group is not None).strip()
    line = after.split("\n", 1)[0].strip().strip("*_").strip()
    if phrase.group() == "####":
        return line or None
    span = _MATH_SPAN.match(line)
    if span:
        rest = line[span.end() :]
        inner = next(group for group in span.groups() if group is not None).strip()
        # "$1$ and $2$" is one answer of two parts, and "$5$ cm" has its unit outside
        tail = _PROSE_AFTER.split(rest, maxsplit=1)[0]
        return f"{inner} {tail.strip()}" if tail.strip() and len(tail) < 60 else inner or None
    return _PROSE_AFTER.split(line, maxsplit=1)[0].strip().strip("*_").strip() or None


def _last_number(text: str) -> str | None:
    tail = text[-MAX_ANSWER_CHARS:]  # a final answer further from the end than this is not a final answer
    last = None
    for match in _NUMBER.finditer(tail):
        last = match.group()
    return last
