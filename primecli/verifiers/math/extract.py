"""Finds the final answer in a response. Linear in the length of the text; no sympy.

Four rules, in this order: the last finished `\\boxed{…}`, the last final-answer phrase, a response that is nothing
but an answer, and, where asked for, the last number or formula. They run in the caller's process, so none of their
patterns may backtrack.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from primecli.verifiers.math.extract_fallback import bare_answer, last_value
from primecli.verifiers.math.words import only_number

MAX_ANSWER_CHARS = 2000
"""Longer answers are not read: no known data set has one, and algebra on them is a way to stall a worker."""

_BOX_TOKENS = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)(?![a-zA-Z])[ \t\n]{0,8}(\{?)|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[^\s${}]{1,64}")
_MARKS = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<eos>|<end_of_turn>|(?<=[\d.$}\])]) ки\b")
_THOUGHT_END = re.compile(r"</think(?:ing)?>")
_NEXT_PROBLEM = re.compile(
    r"\n[ \t]*(?:\*\*|#{1,4} )?(?:Q|Question|Problem|Human|User|Instruction|Exercise)(?: \d{1,3})?(?:\*\*)?[ ]?[:.]"
    r"|\n[ \t]*(?:\[INST\]|<\|(?:im_start|user)\|>)"
)

_PHRASE = re.compile(
    r"####"
    r"|<answer>"
    r"|\bfinal[ ]answer\b(?:[ ]is\b)?[ ]{0,2}[:：]?"
    r"|\b(?:correct[ ])?answers?\b(?:[ ](?:to[ ](?:the|this)[ ](?:question|problem)|choice|option"
    r"|\([^()\n]{1,30}\)|,?[ ]?in[ ][a-z ]{2,25},?))?[ ]"
    r"(?:(?:therefore|thus|then|also|hence)[ ])?"
    r"(?:(?:is|are)\b|(?:would|must|will|should)[ ]be\b|equals\b|comes[ ]out[ ]to(?:[ ]be)?\b|=)[ ]{0,2}[:：]?"
    r"|\bans(?:wer)?[ ]{0,2}(?:\*\*)?[:：=]"
    r"|(?:(?<=\n)|(?<=\A))[ ]{0,3}#{1,5}[ ](?:\*\*)?(?:final[ ])?answer\b(?:\*\*)?[:：]?(?=\s)"
    r"|\banswer[ ][-–—][ ]"
    r"|\bcorrect[ ](?:choice|option)[ ]is\b[ ]{0,2}[:：]?"
    r"|(?:最终)?答案[是为：:]{1,2}",
    re.IGNORECASE,
)
_SOLUTIONS = re.compile(
    r"\b(?:solutions?|roots|zeros)(?:[ ]to[ ]the[ ]equation)?[ ](?:is|are)[ ]{0,2}:?(?=[ \n]*[\\$\d(-])"
)
_THE_CHOICE = re.compile(
    r"(?<![A-Za-z])(?:option |choice |answer )?(?:\*\*)?\(?(?P<letter>[A-J])\)?(?:\*\*)? is (?:the |therefore the )?"
    r"(?:correct|right|best)\b"
)

_MATH_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_ABBREVIATED = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bRs)(?<!i\.e)(?<!e\.g)(?<!\bapprox)"
_PROSE_AFTER = re.compile(
    _ABBREVIATED
    + r"(?<!\\)(?:[.?](?=\s(?!\s*\})|$)|;(?=\s(?!\s*[-\d\\(])|$)|!(?=\s+[A-Z]|\s*$))|。|,(?=\s+(?!and\b|or\b)[a-z]{2,})"
    r"|\s(?=(?:because|since|which|so|as|where|I hope)\b)|(?<!\{)\s(?=\((?!or\b|and\b|mod\b|base\b)[A-Za-z]{3,})"
)
_LEAD_IN = re.compile(
    r"(?:(?:therefore|thus|then|simply|just|exactly|indeed|clearly|only|now|also|hence|given by|obtained as"
    r"|approximately|about|roughly|of(?= \W*\d)|equal to|found to be)\b,?[ ]?)+",
    re.IGNORECASE,
)
_NOTHING_SAID = re.compile(
    r"(?:in)?correct|right|wrong|reasonable|verified|as follows|below|above|clear|needed|found|the same|complete",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Extraction:
    """A final answer as the text writes it, and the rule that found it: boxed, phrase, whole or last_number."""

    text: str
    rule: str


def extract_answer(text: str, last_number: bool = True) -> Extraction | None:
    """The final answer of a response, or None.

    A box that is never closed is not read, and neither is what follows it: the `2` of `\\boxed{\\frac12` is
    no answer. What stands after the model's thoughts goes before them, and what it makes up after its answer,
    such as a further question, is cut.

    >>> extract_answer(r"first \\boxed{1}, then \\boxed{\\frac{1}{2}}.")
    Extraction(text='\\\\frac{1}{2}', rule='boxed')
    >>> extract_answer(r"so $x=\\boxed{2}$ or $x=\\boxed{3}$").text
    'x=2 or x=3'
    >>> extract_answer("9 * 2 = 18\\n#### 18").rule
    'phrase'
    >>> extract_answer("that leaves 7 eggs", last_number=False) is None
    True
    """
    text = _MARKS.sub(" ", text)
    for thoughts in deque(_THOUGHT_END.finditer(text), maxlen=1):
        found, _ = _announced_answer(text[thoughts.end() :])
        if found is not None:
            return found
    further = _NEXT_PROBLEM.search(text)
    if further is not None:
        found, _ = _announced_answer(text[: further.start()])
        if found is not None:
            return found
    found, unfinished = _announced_answer(text)
    if found is not None or not last_number:
        return found
    text = text[:unfinished]
    whole = bare_answer(text)
    if whole is not None:
        return Extraction(whole, "whole")
    value = last_value(text[-MAX_ANSWER_CHARS:])  # a final answer further from the end than this is not a final answer
    return Extraction(value, "last_number") if value is not None else None


def _announced_answer(text: str) -> tuple[Extraction | None, int]:
    """What a box or a phrase announces, and where the first unfinished box starts."""
    boxed, unfinished = _last_box(text)
    if boxed is not None:
        return Extraction(boxed, "boxed"), unfinished
    phrase = _last_phrase(text[:unfinished])
    return (Extraction(phrase, "phrase") if phrase is not None else None), unfinished


# boxes ------------------------------------------------------------------------------------------------

_BETWEEN = re.compile(
    r"(?:\\?\}|\$|\\[)\]])*\s*(?:\$|\\[(\[])?\s*(?:,|;|,?\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?|\\quad|\\qquad)"
    r"(?:\s|,|\$|\\[(\[,;]|\\quad|\\qquad|\\text\{\s*(?:and|or)\s*\}|(?:and|or)\b)*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
_NAME_BEFORE = re.compile(r"(?<![-+*/^=\\\w)}])(?<![-+*/^=\\)}] )([a-zA-Z](?:_\{?\w\}?)?)\s*=\s*$")
_PERCENT_AFTER = re.compile(r"\s?(\\?%)|\s?\$?\s?percent\b")


def _last_box(text: str) -> tuple[str | None, int]:
    """The answer in the last finished box (outermost where nested), and where the first unfinished one starts.

    Boxes with nothing but "and", "or" or a comma between them are one answer of several parts.
    """
    boxes: deque[tuple[int, int, int, int]] = deque(maxlen=12)  # where the box and its content start and end
    braces: list[tuple[int, int]] = []  # (start of the box or -1, start of its content)
    for token in _BOX_TOKENS.finditer(text):
        word = token.group()
        if word == "{":
            braces.append((-1, token.end()))
        elif word == "}":
            if braces:
                start, content = braces.pop()
                if start >= 0 and text[content : token.start()].strip():
                    while boxes and boxes[-1][0] > start:
                        boxes.pop()
                    boxes.append((start, content, token.start(), token.end()))
        elif len(word) > 2 and word.startswith("\\") and "box" in word:
            if token.group(1):
                braces.append((token.start(), token.end()))
            elif (bare := _UNBRACED.match(text, token.end())) is not None and bare.group().rstrip(".,;:"):
                end = token.end() + len(bare.group().rstrip(".,;:"))
                boxes.append((token.start(), token.end(), end, end))
    unfinished = next((start for start, _ in braces if start >= 0), len(text))
    return (_joined(text, list(boxes)) if boxes else None), unfinished


def _joined(text: str, boxes: list[tuple[int, int, int, int]]) -> str:
    """The last box, or the row of boxes that it ends."""
    first = len(boxes) - 1
    while first > 0:
        between = text[boxes[first - 1][3] : boxes[first][0]]
        if len(between) > 60 or not _BETWEEN.fullmatch(between):
            break
        first -= 1
    answers: list[str] = []
    joint = ""
    for index, (start, content, end, _) in enumerate(boxes[first:], first):
        if index > first and re.search(r"\bor\b", text[boxes[index - 1][3] : start]):
            joint = " or "
        name = _NAME_BEFORE.search(text, max(0, start - 12), start) if first < len(boxes) - 1 else None
        answers.append((f"{name.group(1)}=" if name else "") + text[content:end].strip())
    if len(set(answers)) == 1:
        answers = answers[-1:]
    after = _PERCENT_AFTER.match(text, boxes[-1][3])
    return (joint or ", ").join(answers) + (
        after.group(1) or "\\%" if after and len(answers) == 1 and "%" not in answers[0] else ""
    )


# phrases ----------------------------------------------------------------------------------------------


def _last_phrase(text: str) -> str | None:
    """What the last final-answer phrase of the text announces."""
    lower = text.lower()
    if len(lower) != len(text):  # a letter or two of Turkish
        lower = text
    start = _from_last(lower, ("####", "answer", "ans:", "ans :", "ans =", "correct choice", "correct option", "答案"))
    for phrase in reversed(deque(_PHRASE.finditer(text, start), maxlen=8)):  # the last ones may announce nothing
        announced = _announced(text, phrase)
        if announced is not None:
            return announced
    start = _from_last(lower, ("solution", "roots", "zeros"))
    for phrase in deque(_SOLUTIONS.finditer(text, start), maxlen=1):
        if not re.search(r"[.!?]\$?\s+[A-Za-z\\$]", text[phrase.end() : phrase.end() + MAX_ANSWER_CHARS]):
            return _announced(text, phrase)  # nothing is said after it
    for choice in deque(_THE_CHOICE.finditer(text, _from_last(lower, ("correct", "right", "best"))), maxlen=1):
        if "not" not in text[choice.start() : choice.end() + 8]:
            return choice["letter"]
    return None


def _from_last(lower: str, keywords: tuple[str, ...], count: int = 8) -> int:
    """Where to start looking for the last phrases with one of the keywords; the end where there is none."""
    first = len(lower)
    for keyword in keywords:
        at = len(lower)
        for _ in range(count):
            at = lower.rfind(keyword, 0, at)
            if at < 0:
                break
            first = min(first, at)
    return max(0, first - 40) if first < len(lower) else first


def _announced(text: str, phrase: re.Match[str]) -> str | None:
    following = text[phrase.end() : phrase.end() + MAX_ANSWER_CHARS]
    after = following.lstrip(" \t\r\n*:_}")
    if phrase.group() == "<answer>":
        return after.split("</answer>", 1)[0].strip() or None
    if "\n" in following[: len(following) - len(after)]:
        after = re.sub(r"^[-•] ", "", after)  # a list of one
    after = _LEAD_IN.sub("", after, count=1) if _LEAD_IN.match(after) else after
    if after.startswith(("$$", "\\[")):
        span = _MATH_SPAN.match(after)
        if span:
            return next(group for group in span.groups() if group is not None).strip()
    line = after.split("\n", 1)[0].strip().strip("*_").strip()
    if phrase.group() == "####":
        return line or None
    span = _MATH_SPAN.match(line)
    if span and not _is_money(span.group()):
        rest = line[span.end() :]
        inner = next(group for group in span.groups() if group is not None).strip()
        # "$1$ and $2$" is one answer of two parts, and "$5$ cm" has its unit outside
        tail = _PROSE_AFTER.split(rest, maxsplit=1)[0].strip("*_ ")
        return f"{inner} {tail}" if tail and len(tail) < 60 else inner or None
    said = _PROSE_AFTER.split(line, maxsplit=1)[0].strip().strip("*_").strip()
    if not said or _NOTHING_SAID.fullmatch(said):
        return None
    if re.match(r"[A-Za-z\"']", said) and len(said.split()) > 2:
        return _from_sentence(line) or said
    return said


def _is_money(span: str) -> bool:
    """Whether two dollar signs stand before amounts, as in "$5 and then $6"."""
    return (
        not span.startswith(("$$", "\\"))
        and (span[1].isspace() or span[-2].isspace())
        and bool(re.search(r"(?<![\\a-zA-Z{])[a-z]{3,}", span))
    )


def _from_sentence(line: str) -> str | None:
    """The one number or formula of "Janet makes $18 every day"."""
    sentence = _PROSE_AFTER.split(line, maxsplit=1)[0].replace("**", "")
    spans = [span for span in _MATH_SPAN.finditer(sentence) if not _is_money(span.group())]
    if len(spans) == 1 and not re.search(r"\d", sentence[: spans[0].start()] + sentence[spans[0].end() :]):
        inner = next(group for group in spans[0].groups() if group is not None).strip()
        around = sentence[: spans[0].start()] + " 1 " + sentence[spans[0].end() :]
        return inner if only_number(around) is not None else None
    return only_number(sentence)
