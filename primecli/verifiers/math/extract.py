"""Finds the final answer in a response.

Four rules, in this order: the last closed `\\boxed{…}`, unless "final answer:" announces another after it; the last
final-answer phrase; a response that is nothing but an answer; and, where asked for, the last number or formula. They
run in the caller's process, so their time must be linear in the length of the text: every repetition in a pattern is
bounded or cannot backtrack.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from primecli.verifiers.math.extract_fallback import bare_answer, last_value, span_content
from primecli.verifiers.math.words import only_number

MAX_ANSWER_CHARS = 2000
"""Longer answers are not read: no known data set has one, and algebra on them would stall a worker."""

MAX_ROW_BOXES = 12
"""Boxes in a row that can make up one answer, such as `x=\\boxed{2}` or `x=\\boxed{3}`."""

MAX_BETWEEN_CHARS = 60
"""Between two such boxes; more is a sentence."""

MAX_PHRASES = 8
"""Final-answer phrases that are tried, from the last one back: the last ones may announce nothing ("the answer is as
follows")."""

# a box, with the brace that opens it if there is one; an escaped character; or a brace
_BOX_TOKENS = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)(?![a-zA-Z])[ \t\n]{0,8}(\{?)|\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[^\s${}]{1,64}")  # the content of a box without braces: \boxed 5
# special tokens that ended up in the text, and the "ки" with which Math-Shepherd marks the end of a step
_MARKS = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<eos>|<end_of_turn>|(?<=[\d.$}\])]) ки\b")
_THOUGHT_END = re.compile(r"</think(?:ing)?>")
# where a base model goes on to invent the next problem
_NEXT_PROBLEM = re.compile(
    r"\n[ \t]*(?:\*\*|#{1,4} )?(?:(?:Next |Another |New )?(?:Q|[Qq]uestion|[Pp]roblem)|Instruction|Exercise|Human|User"
    r"|(?P<example>Example)|问题|問題|题目)(?: \d{1,3})?(?:\*\*)?[ ]?[:.：\n]"
    r"|\n[ \t]*(?:Now,? )?[Ll]et(?:'s| us) (?:solve|do|try|consider|move on to|look at) (?:another|the next|a new) "
    r"(?:problem|question|exercise)"
)
# where the model's turn ends, or the user's begins
_TURN = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|end_of_text|user)\|>|<\|(?:im_start|start_header_id)\|>\s?user|<start_of_turn>user"
    r"|<end_of_turn>|<eos>|</s>|\[INST\]"
)
# a sentence that states a result, so that what follows is another problem rather than the same one restated
_CONCLUDES = re.compile(
    r"=|^\*\*[^*]{1,40}\*\*$|\b(?:so|thus|therefore|hence|total|altogether|answer|equals|gives|gets?|makes|is|has"
    r"|leaves|left)\b|[共得为是]",
    re.IGNORECASE,
)

# "The answer is", "Final answer:", "ans =", "#### ", "<answer>", "## Answer", and the like
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
    r"|\bcorrect[ ](?:choice|option)[ ]is\b[ ]{0,2}[:：]?",
    re.IGNORECASE,
)
# the same, and those of other languages
_ANY_PHRASE = re.compile(
    _PHRASE.pattern + r"|(?:最终)?答案[是为為：:]{1,2}|答えは?[:：]?|(?:(?<=\n)|(?<=\A))答[:：]|정?답[은:：]{1,2}"
    r"|\br[ée]ponse(?:[ ](?:finale|correcte))?(?:[ ]est\b[ ]{0,2}[:：]?|[ ]{0,2}(?:\*\*)?[:：])"
    r"|\b(?:respuesta|resposta|risposta)(?:[ ](?:final|finale|correcta|correta|corretta))?"
    r"(?:[ ](?:es\b|é(?!\w)|è(?!\w))[ ]{0,2}[:：]?|[ ]{0,2}(?:\*\*)?[:：])"
    r"|\bantwort(?:[ ](?:ist|lautet)\b[ ]{0,2}[:：]?|[ ]{0,2}(?:\*\*)?[:：])"
    r"|\bответ(?:ом)?(?:[ ](?:является|равен)\b[ ]{0,2}[:：]?|[ ]{0,2}(?:\*\*)?[:：—–])",
    re.IGNORECASE,
)
# an announcement that counts even after a box, and what its answer may begin with
_FINAL = re.compile(r"\bfinal answer(?:\*\*)?(?: is\b(?:\*\*)?[:：]?| ?[:：])", re.IGNORECASE)
_VALUE_START = re.compile(r"[-+−\\$(\[{|.\d√π]|[A-J]\)?$|[a-z](?:\([a-z]\))? ?=")
# "The solutions are", where a value follows
_SOLUTIONS = re.compile(
    r"\b(?:solutions?|roots|zeros)(?:[ ]to[ ]the[ ]equation)?[ ](?:is|are)[ ]{0,2}:?(?=[ \n]*[\\$\d(-])"
)
# "Option (C) is correct"
_CORRECT_CHOICE = re.compile(
    r"(?<![A-Za-z])(?:option |choice |answer )?(?:\*\*)?\(?(?P<letter>[A-J])\)?(?:\*\*)? is (?:the |therefore the )?"
    r"(?:correct|right|best)\b"
)

# a formula between dollar signs, \(…\) or \[…\]; one of the groups has its content
_MATH_SPAN = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# not after these: their full stop does not end a sentence
_NOT_ABBREVIATED = r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bvs)(?<!\bRs)(?<!i\.e)(?<!e\.g)(?<!\bapprox)"
# where an answer ends and more of the sentence, or the next one, begins
_PROSE_AFTER = re.compile(
    _NOT_ABBREVIATED + r"(?<!\\)(?:[.?](?=\s(?!\s*\})|$)|;(?=\s(?!\s*[-\d\\(])|$)|!(?=\s+[A-Z]|\s*$))"
    r"|。|，(?=[^\W\d])|,(?=\s+(?!and\b|or\b)[a-z]{2,})"
    r"|\s(?=(?:because|since|which|so|as|where|I hope)\b)"
    r"|(?<!\{)\s(?=\((?!or\b|and\b|mod\b|base\b)(?:[A-Za-z]{3,}|as\b|i\.e|e\.g))"
    # how it was computed: 7 apples (12 - 5), 7 (12 - 5 = 7)
    r"|(?<=[a-z]{3})(?<!\\sin|\\cos|\\tan|\\log|\\exp)(?<!\band)\s(?=\([\d\s.,$%]{1,40}[-+*/×÷x][^()=A-Za-wyz]{1,40}\)\.?\s*$)"
    r"|(?<=[\d}])\s(?=\([^()=]{1,60}=[^()]{1,60}\)\.?\s*$)|\s(?=\((?:не|pas|nicht|no)\b)"
)
_HOW = re.compile(r"\s+\([^()]{0,60}\d\s?[-+*/×÷=][^()]{1,60}\)\.?")
_COPULA = re.compile(r"\s*(?:です|である|となります|となる|になります|입니다|이다|이에요)")  # after the answer
# words between the phrase and the answer: "the answer is therefore exactly 5"
_LEAD_IN = re.compile(
    r"(?:(?:therefore|thus|then|simply|just|exactly|indeed|clearly|only|now|also|hence|given by|obtained as"
    r"|approximately|about|roughly|of(?= \W*\d)|equal to|found to be)\b,?[ ]?)+",
    re.IGNORECASE,
)
# what may follow "the answer is" without being an answer
_NO_ANSWER = re.compile(
    r"(?:in)?correct|right|wrong|reasonable|verified|as follows|below|above|clear|needed|found|the same|complete",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Extraction:
    """A final answer.

    text: as the response writes it, such as `\\frac12`.
    rule: the one that found it: boxed, phrase, whole or last_number.
    """

    text: str
    rule: str


def extract_answer(text: str, last_number: bool = True) -> Extraction | None:
    """The final answer of a response; None where there is none.

    last_number: whether to fall back on a short response as a whole, then on the last number or formula.

    A box that is never closed is not read, nor is any text after it: the `2` of `\\boxed{\\frac12` is not an answer. An
    answer after the model's thoughts (`</think>`) is preferred to one in them, and so is one before a further question
    that the model made up.

    >>> extract_answer(r"first \\boxed{1}, then \\boxed{\\frac{1}{2}}.")
    Extraction(text='\\\\frac{1}{2}', rule='boxed')
    >>> extract_answer(r"so $x=\\boxed{2}$ or $x=\\boxed{3}$").text
    'x=2 or x=3'
    >>> extract_answer("9 * 2 = 18\\n#### 18").rule
    'phrase'
    >>> extract_answer("that leaves 7 eggs", last_number=False) is None
    True
    """
    for thoughts in deque(_THOUGHT_END.finditer(text) if "</think" in text else (), maxlen=1):
        extraction = _first_answer(text[thoughts.end() :])
        if extraction is not None:
            return extraction
    return _first_answer(text, fall_back=True, last_number=last_number)


def _first_answer(text: str, fall_back: bool = False, last_number: bool = False) -> Extraction | None:
    """The answer to the first problem of a text in which others may follow.

    fall_back: whether to look at what follows, if no answer is announced before it, and then for any number.
    """
    tagged = "<" in text or "[INST]" in text
    turn = _TURN.search(text) if tagged else None
    if turn is not None and text[: turn.start()].strip():
        extraction = _first_answer(text[: turn.start()], fall_back, last_number)
        if extraction is not None:
            return extraction
    text = _MARKS.sub(" ", text) if tagged or "ки" in text else text
    next_problem = _NEXT_PROBLEM.search(text)
    if next_problem is not None:
        before = text[: next_problem.start()]
        extraction, _ = _announced_answer(before)
        if extraction is not None:
            return extraction
        if fall_back and not next_problem["example"] and not _NEXT_PROBLEM.match("\n" + text) and _concludes(before):
            return _unannounced_answer(before) if last_number else None
    extraction, unclosed = _announced_answer(text)
    if extraction is not None or not (fall_back and last_number):
        return extraction
    return _unannounced_answer(text[:unclosed])


def _concludes(text: str) -> bool:
    """Whether the last sentence of a text states a result."""
    sentence = re.split(r"(?<=[.!?。])\s|\n", text[-MAX_ANSWER_CHARS:].rstrip())[-1]
    return bool(re.search(r"\d", sentence) and _CONCLUDES.search(sentence))


def _unannounced_answer(text: str) -> Extraction | None:
    whole = bare_answer(text)
    if whole is not None:
        return Extraction(whole, "whole")
    value = last_value(text[-MAX_ANSWER_CHARS:])  # a number before that is not final
    return Extraction(value, "last_number") if value is not None else None


def _announced_answer(text: str) -> tuple[Extraction | None, int]:
    """The answer that a box or a phrase announces, and where the first unclosed box starts."""
    boxed, end, unclosed = _last_box(text)
    if boxed is not None:
        for phrase in deque(_FINAL.finditer(text, end, unclosed) if "inal" in text[end:] else (), maxlen=1):
            announced = _announced(text[:unclosed], phrase)
            in_formula = text[phrase.end() :].lstrip(" \n*:").startswith(("$", "\\(", "\\["))
            if announced is not None and (in_formula or _VALUE_START.match(announced)):
                return Extraction(announced, "phrase"), unclosed
        return Extraction(boxed, "boxed"), unclosed
    last = _last_phrase(text[:unclosed])
    return (Extraction(last, "phrase") if last is not None else None), unclosed


# boxes ------------------------------------------------------------------------------------------------

# all that may stand between two boxes of one answer: the ends of formulas, a comma, and, or, and "x ="
_BETWEEN = re.compile(
    r"(?:\\?\}|\$|\\[)\]])*\s*(?:\$|\\[(\[])?\s*(?:,|;|,?\s*(?:\\text\{\s*)?(?:and|or)\b\s*\}?|\\quad|\\qquad)"
    r"(?:\s|,|\$|\\[(\[,;]|\\quad|\\qquad|\\text\{\s*(?:and|or)\s*\}|(?:and|or)\b)*(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
# the "x =" before a box, unless it is the end of a longer formula
_NAME_BEFORE = re.compile(r"(?<![-+*/^=\\\w)}])(?<![-+*/^=\\)}] )([a-zA-Z](?:_\{?\w\}?)?)\s*=\s*$")
_PERCENT_AFTER = re.compile(r"\s?(\\?%)|\s?\$?\s?percent\b")


class _Box(NamedTuple):
    """Where a box and its content start and end in the text.

    start: of `\\boxed`.
    content_start: after the opening brace.
    content_end: before the closing brace.
    end: after it.
    """

    start: int
    content_start: int
    content_end: int
    end: int


def _last_box(text: str) -> tuple[str | None, int, int]:
    """The answer in the last closed box (of nested ones the outer), its end, and where the first unclosed one starts.

    Boxes with nothing but "and", "or" or a comma between them are one answer of several parts.
    """
    boxes: deque[_Box] = deque(maxlen=MAX_ROW_BOXES)
    braces: list[tuple[int, int]] = []  # open ones: where the box starts, or -1 for a plain brace, and the content
    for token in _BOX_TOKENS.finditer(text):
        word = token.group()
        if word == "{":
            braces.append((-1, token.end()))
        elif word == "}":
            if braces:
                start, content = braces.pop()
                if start >= 0 and text[content : token.start()].strip():
                    while boxes and boxes[-1].start > start:
                        boxes.pop()
                    boxes.append(_Box(start, content, token.start(), token.end()))
        elif len(word) > 2 and word.startswith("\\") and "box" in word:
            if token.group(1):
                braces.append((token.start(), token.end()))
            elif (bare := _UNBRACED.match(text, token.end())) is not None and bare.group().rstrip(".,;:"):
                end = token.end() + len(bare.group().rstrip(".,;:"))
                boxes.append(_Box(token.start(), token.end(), end, end))
    unclosed = next((start for start, _ in braces if start >= 0), len(text))
    return (_row_of_boxes(text, list(boxes)), boxes[-1].end, unclosed) if boxes else (None, 0, unclosed)


def _row_of_boxes(text: str, boxes: list[_Box]) -> str:
    """The content of the last box or, where it ends a row of boxes, of all of them."""
    first = len(boxes) - 1
    while first > 0:
        between = text[boxes[first - 1].end : boxes[first].start]
        if len(between) > MAX_BETWEEN_CHARS or not _BETWEEN.fullmatch(between):
            break
        first -= 1
    answers: list[str] = []
    separator = ", "
    for index, box in enumerate(boxes[first:], first):
        if index > first and re.search(r"\bor\b", text[boxes[index - 1].end : box.start]):
            separator = " or "
        # a name such as "x_{1} = " fits into 12 characters
        name = _NAME_BEFORE.search(text, max(0, box.start - 12), box.start) if first < len(boxes) - 1 else None
        answers.append((f"{name.group(1)}=" if name else "") + text[box.content_start : box.content_end].strip())
    if len(set(answers)) == 1:
        answers = answers[-1:]
    after = _PERCENT_AFTER.match(text, boxes[-1].end)
    return separator.join(answers) + (
        after.group(1) or "\\%" if after and len(answers) == 1 and "%" not in answers[0] else ""
    )


# phrases ----------------------------------------------------------------------------------------------


# one of them is in each phrase
_KEYWORDS = ("####", "answer", "ans:", "ans :", "ans =", "correct choice", "correct option")
_FOREIGN_KEYWORDS = (
    *("réponse", "reponse", "respuesta", "resposta", "risposta", "antwort", "ответ"),
    *("答案", "答え", "答：", "答:", "답"),
)


def _last_phrase(text: str) -> str | None:
    """The answer that the last final-answer phrase of the text announces."""
    lower = text.lower()
    if len(lower) != len(text):  # a capital dotted I of Turkish becomes two characters, and positions would be off
        lower = text
    foreign = not text.isascii() or any(part in lower for part in ("sposta", "spuesta", "antwort", "reponse"))
    start = _from_last(lower, (*_KEYWORDS, *_FOREIGN_KEYWORDS) if foreign else _KEYWORDS)
    pattern = _ANY_PHRASE if foreign else _PHRASE
    for phrase in reversed(deque(pattern.finditer(text, start), maxlen=MAX_PHRASES)):
        announced = _announced(text, phrase)
        if announced is not None:
            return announced
    start = _from_last(lower, ("solution", "roots", "zeros"))
    for phrase in deque(_SOLUTIONS.finditer(text, start), maxlen=1):
        if not re.search(r"[.!?]\$?\s+[A-Za-z\\$]", text[phrase.end() : phrase.end() + MAX_ANSWER_CHARS]):
            return _announced(text, phrase)  # in the last sentence
    for choice in deque(_CORRECT_CHOICE.finditer(text, _from_last(lower, ("correct", "right", "best"))), maxlen=1):
        if "not" not in text[choice.start() : choice.end() + 8]:
            return choice["letter"]
    return None


def _from_last(lower: str, keywords: tuple[str, ...]) -> int:
    """Where to start searching for the last phrases that have one of the keywords; the end of the text for none.

    Finding a keyword is much faster than searching the whole text with the patterns of the phrases.
    """
    first = len(lower)
    for keyword in keywords:
        position = len(lower)
        for _ in range(MAX_PHRASES):
            position = lower.rfind(keyword, 0, position)
            if position < 0:
                break
            first = min(first, position)
    return max(0, first - 40) if first < len(lower) else first  # a phrase may begin before its keyword


def _announced(text: str, phrase: re.Match[str]) -> str | None:
    """The answer that follows a phrase; None where what follows is not an answer."""
    following = text[phrase.end() : phrase.end() + MAX_ANSWER_CHARS]
    after = following.lstrip(" \t\r\n*:_}")
    if phrase.group() == "<answer>":
        return after.split("</answer>", 1)[0].strip() or None
    if "\n" in following[: len(following) - len(after)]:
        after = re.sub(r"^[-•] ", "", after)  # a list with one entry
    after = _LEAD_IN.sub("", after, count=1) if _LEAD_IN.match(after) else after
    if after.startswith(("$$", "\\[")):
        span = _MATH_SPAN.match(after)
        if span:
            return span_content(span)
    line = after.split("\n", 1)[0].strip().strip("*_").strip()
    line = line if line.isascii() else line.replace("**", "")
    if phrase.group() == "####":
        return line or None
    span = _MATH_SPAN.match(line)
    if span and not _is_money(span.group()):
        rest = line[span.end() :]
        inner = span_content(span)
        # "$1$ and $2$" is one answer in two parts, and the unit of "$5$ cm" is outside the formula
        tail = (
            "" if _HOW.fullmatch(rest) or _COPULA.match(rest) else _PROSE_AFTER.split(rest, maxsplit=1)[0].strip("*_ ")
        )
        return f"{inner} {tail}" if tail and len(tail) < 60 else inner or None
    answer = _PROSE_AFTER.split(line, maxsplit=1)[0].strip().strip("*_").strip()
    if not answer or _NO_ANSWER.fullmatch(answer):
        return None
    if re.match(r"[A-Za-z\"']", answer) and len(answer.split()) > 2:
        return _from_sentence(line) or answer
    return answer


def _is_money(span: str) -> bool:
    """Whether two dollar signs belong to amounts of money, as in "$5 and then $6", and do not enclose a formula."""
    return (
        not span.startswith(("$$", "\\"))
        and (span[1].isspace() or span[-2].isspace())
        and bool(re.search(r"(?<![\\a-zA-Z{])[a-z]{3,}", span))
    )


def _from_sentence(line: str) -> str | None:
    """The only number or formula in a sentence such as "Janet makes $18 every day"."""
    sentence = _PROSE_AFTER.split(line, maxsplit=1)[0].replace("**", "")
    spans = [span for span in _MATH_SPAN.finditer(sentence) if not _is_money(span.group())]
    if len(spans) == 1 and not re.search(r"\d", sentence[: spans[0].start()] + sentence[spans[0].end() :]):
        with_number = sentence[: spans[0].start()] + " 1 " + sentence[spans[0].end() :]
        return span_content(spans[0]) if only_number(with_number) is not None else None
    return only_number(sentence)
