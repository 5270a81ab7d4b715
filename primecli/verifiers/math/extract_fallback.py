"""The answer of a response that announces none: the whole of a short response, else its last number or formula.

As in `extract`, time is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections import deque

# a formula between dollar signs (which may also be amounts of money), in an environment, \(…\) or \[…\]
_MATH_SPAN = re.compile(
    r"\$\$([^$]{1,1500})\$\$|(?<![\\\w$])\$(?=[^\s$])([^$\n]{0,500}?[^\s$\\])\$(?![\d$])"
    r"|(?<!\S)\$ ([^$\n]{1,500}?[^\s$+*/=-]) \$(?![\w$])"
    r"|\\begin\{(?:align|gather|equation)\*?\}(.{1,1500}?)\\end\{(?:align|gather|equation)"
    r"|\\\((.{1,1500}?)\\\)|\\\[(.{1,1500}?)\\\]",
    re.DOTALL,
)
# -1,234.5, $70,000, 3/4, 25%
_NUMBER = re.compile(
    r"(?<![A-Za-z\d_.\u00aa-\u052f])[-−]?"
    r"(?:\\?\$\d{1,3}(?: \d{3}){1,4}(?!\d)|(?:\\?\$)?(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)|\d{1,400}(?!\d)))"
    r"(?:\.\d{1,400})?(?:\s?/\s?\d{1,400})?(?:\s?\\?%)?"
)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
# at the end of a sentence: "24 minutes (8 x 3)."
_COMPUTATION = re.compile(
    r"(?<=[a-z])\s\((?=[\d\s.,$%+*/×÷x=-]{3,60}\))[^()]{0,50}\d\s?[-+*/×÷x=]\s?\$?\d[^()]{0,50}\)(?=\.?\s*$)"
)
_CALCULATOR = re.compile(r"<<[^<>\n]{0,100}>>")  # the annotations of GSM8K: <<9*2=18>>
# words that make a line a sentence rather than an answer
_SENTENCE = re.compile(
    r"\b(?:is|are|was|were|be|has|have|had|we|get|gets|so|thus|makes?|gives?|the|that|(?-i:I)|she|he|they|it|there|left|total"
    r"|answer|equals?|let|then|needs?|takes?|spends?|will|can|must|from|if|because|since|idea|know|sorry|not)\b",
    re.IGNORECASE,
)
# how a line begins that is only an answer: a number, a formula, `x =`
_STARTS_LIKE_ANSWER = re.compile(
    r"[-+−–$\\(\[{\d.√π½¼¾|∞]|[a-zA-Z](?:_\d)?\s*(?:\([a-z]\))?\s*[=<>≤≥+*/^−-]|[a-z]\d?\s*\\|sqrt|pi\b"
)
_PLAIN_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
# a line that is an answer in one word: a letter of a choice, a name, yes or no
_ONE_WORD = re.compile(
    r"\(?[A-J]\)?\.?|\*\*\(?[A-J]\)?\*\*|[A-Za-z][a-z]{2,20}\.?|[Yy]es\.?|[Nn]o\.?|[Nn]o (?:real )?solutions?\.?"
)
# a word that is not a function's name: between dollar signs it shows that they are amounts
_PROSE = re.compile(r"(?<![\\a-zA-Z])(?!sqrt|sin|cos|tan|log|exp|mod)(?=[A-Z]*[a-z])[a-zA-Z]{3,}")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n|[。！？]")
# numbers, fractions, roots and π, without variables
_VALUE = re.compile(
    r"[-+]?(?:[\d.,/{}\s^()]|\\(?:[dt]?frac|sqrt|pi|circ|%|cdot)|π|√|%)*\d(?:[\d.,/{}\s^()]|\\(?:pi|circ|%)|π|%)*"
)
_RESULT = re.compile(r"=\s?(?=\\?\$?-?\d)")
# words that state another result after "= 42"; without one, "= 42 for the 6 shirts" says 42
_STATES = re.compile(
    r"\b(?:is|are|equals|leaves|leaving|leav|makes|gives|total|totals|remain|so|then|which|means)\b|=|[共得为是]"
)
# "(B) 12 apples" or "Option B"
_CHOICE_LINE = re.compile(
    r"(?:\*\*)?(?:[Oo]ption |[Cc]hoice )?\(?(?:[A-J](?:\)[.:]?|\.|(?= and |, ?[A-J]))|[B-J]:)[^.!?\n]{0,60}\.?(?:\*\*)?"
    r"|[Oo]ption [A-J]"
)
# at the end of a side of an equation: it begins the next of several equations, as in x = 2, y = 3
_LISTED = re.compile(r"[,;]\s*(?:\\[a-z,; ]+\s*)*[a-zA-Z](?:_\{?\w\}?)?$|\\(?:text|quad)|\b(?:and|or)\b")
# "spent $42", "a total of $42"
_AMOUNT = re.compile(
    r"\b(?:of|spen[dt]s?|earn(?:s|ed)?|makes?|made|pays?|paid|costs?|saves?|saved|is|was|ha[sd]|have|raised|received|needs?)"
    r"[ ](\\?\$\d[\d,]{0,20}(?:\.\d{1,4})?)(?![\d$])"
)
_DENIED = re.compile(r"(?:\b(?:not|pas|nicht|не)|n't|no es)\s+$|[不没非未至约]\w{0,3}\s?$", re.IGNORECASE)
# after a number, in a language that puts no space there: 5个
_EAST_ASIAN_UNIT = re.compile("[ ]?[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{1,12}")
_EAST_ASIAN = re.compile("[\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7af\uff0c]")
# two numbers or more before the last one, which make a list with it
_ITEM = r"(?<![\w.,])[-−]?\d{1,9}(?:\.\d{1,9}|/\d{1,9}|,\d{3}(?!\d))?"
_LIST_BEFORE = re.compile(rf"(?:{_ITEM}\s?,\s?){{1,60}}(?:{_ITEM}\s?,\s?(?:and |or )?|{_ITEM} (?:and|or) )$")
# "So f(x) = x + 1" or "Thus x = 2 and y = 3"; the group has it without the words before it
_STATEMENT = re.compile(
    r"(?:(?:so|thus|therefore|hence|then|finally|this gives|we (?:get|have|find)|it follows that|this means)\b,?\s+"
    r"(?:that\s+)?){0,3}(?:(?:the|its|our)(?: [a-z]{2,15}){1,4} (?:is|are|becomes) (?:given by )?)?"
    r"([a-zA-Z](?:_\{?\w{1,4}\}?)?(?:\([a-z]\))?\s?=\s?[^=:?!\"]{1,200}(?:=[^=:?!\"]{1,100}){0,5})",
    re.IGNORECASE,
)
# text without spaces that contains a character of a formula
_FORMULA = re.compile(r"[^\s]*[\\^_/:()\[\]{}=√π][^\s]*")


def bare_answer(text: str) -> str | None:
    """The response itself, where it is one line with an answer and without a sentence; else None.

    >>> bare_answer("(1, 2)"), bare_answer("x = 3 or x = 5"), bare_answer("7 rows of 8 are 56.")
    ('(1, 2)', 'x = 3 or x = 5', None)
    """
    line = text.strip()
    if not line or len(line) > 400 or "\n\n" in line or line.count("\n") > 6 or "boxed" in line:
        return None
    if _ONE_WORD.fullmatch(line) or _CHOICE_LINE.fullmatch(line):
        return line.strip("*")
    if "\n" in line and "\\begin" not in line and not line.startswith(("$$", "\\[")):
        return None
    words = re.sub(r"\\(?:text|mathrm|mbox|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+", "", line)
    if (
        len(_PLAIN_WORD.findall(words)) > 5
        or _SENTENCE.search(words)
        or _EAST_ASIAN.search(words)
        or not _STARTS_LIKE_ANSWER.match(line)
    ):
        return None
    span = _MATH_SPAN.fullmatch(line.rstrip("."))
    return _final_side(_formula(span)) if span else line


def last_value(text: str) -> str | None:
    """The last number of a text or, where that is part of a formula, the formula; None for a text without numbers.

    >>> last_value("so she pays $5 and has $12 left."), last_value(r"so the length is $2\\sqrt{5}$.")
    ('$12', '2\\\\sqrt{5}')
    """
    text = _COMPUTATION.sub("", _CALCULATOR.sub("", text))
    last_paragraph = text.rstrip().rfind("\n\n")
    bold = [match for match in _BOLD.finditer(text, max(0, last_paragraph)) if _is_answer(match.group(1))]
    if bold:
        return bold[-1].group(1).strip().rstrip(".")
    last_sentence = max((match.end() for match in _SENTENCE_END.finditer(text, 0, len(text.rstrip()) - 1)), default=0)
    statement = _statement(text[last_sentence:])
    if statement is not None:
        return statement
    number = _last(_NUMBER, text)
    spans = [span for span in _MATH_SPAN.finditer(text) if _is_formula(span)]
    values = [span for span in spans if span.start() >= last_sentence and _VALUE.fullmatch(_sides(_formula(span))[-1])]
    span = spans[-1] if spans else None
    if values and number is not None and number.start() >= spans[-1].end():
        span = values[-1]  # "so there are $9$ divisors of 196"
    if span is not None and (values or number is None or number.start() < span.end()):
        unit = re.match(r"\s?(?:\\?%|percent\b|degrees\b)", text[span.end() :])
        return _final_side(_formula(span)) + (unit.group() if unit else "")
    if number is None or _DENIED.search(text, max(0, number.start() - 8), number.start()):
        return None
    amount = _last(_AMOUNT, text[last_sentence:]) if "=" not in text[last_sentence:] else None
    if amount is not None and not number.group().startswith(("$", "\\$")):
        return amount.group(1)  # "spent a total of $42 on the 6 shirts"
    results = [match for match in _RESULT.finditer(text, last_sentence) if match.end() < number.start()]
    result = (
        _NUMBER.search(text, results[-1].end()) if results and not _STATES.search(text, results[-1].end()) else None
    )
    listed = _LIST_BEFORE.search(text, max(0, number.start() - 300), number.start())
    if result is None and listed is not None:
        return listed.group() + number.group()
    return _around(text, result or number)


def _statement(sentence: str) -> str | None:
    """The equation, or the equations, of a sentence that says nothing else; None where a single number is the value.

    >>> _statement("So f(x) = x + 1."), _statement("Thus x = 2 and y = 3."), _statement("x = 5")
    ('f(x) = x + 1', 'x = 2 and y = 3', None)
    """
    match = _STATEMENT.fullmatch(sentence.strip().rstrip("."))
    if match is None or "$" in sentence or "\\(" in sentence or "\\[" in sentence:
        return None
    words = {word.lower() for word in _PLAIN_WORD.findall(match.group(1))}
    if not words <= {"and", "or", "sin", "cos", "tan", "log", "ln", "exp", "sqrt", "pi"}:
        return None
    value = match.group(1).rpartition("=")[2]
    return match.group(1) if "and" in words or "or" in words or re.search(r"[a-zA-Z]", value) else None


def span_content(span: re.Match[str]) -> str:
    """The formula that a match of a pattern with one group for each kind of delimiter encloses."""
    return next(group for group in span.groups() if group is not None).strip()


def _formula(span: re.Match[str]) -> str:
    return span_content(span).rstrip(".,")


def _sides(formula: str) -> list[str]:
    """The sides of a chain of equations; of several rows, the sides in the last one."""
    formula = re.sub(
        r"\\(?:begin|end)\{(?:aligned|split|align\*?)\}|\\quad|\\(?:p?mod|pmod)\s?(?:\{?\d+\}?)", "", formula
    ).strip()
    sides = re.split(r"&?\s*=\s*&?|&?\s*\\equiv\s*", formula)
    if "\\begin" not in sides[-1]:
        sides[-1] = re.split(r"\\\\(?![a-zA-Z])", sides[-1].rstrip("\\"))[-1]
    return [side.strip().rstrip(".,").strip() for side in sides]


def _final_side(formula: str) -> str:
    """The last side of a chain of equations; the whole of `y = 2x` or `2x + 3y = 6`, which may be the answer.

    >>> _final_side(r"2a = 16\\sqrt{3}"), _final_side("3 + 4 = 2 + 5 = 7"), _final_side("y = 2x")
    ('16\\\\sqrt{3}', '7', 'y = 2x')
    """
    sides = _sides(formula)
    if len(sides) == 1:
        return sides[0]
    if any(_LISTED.search(side) for side in sides[1:-1]):
        return formula  # x = 2, y = 3
    letters = set(re.findall(r"(?<![\\a-zA-Z])[a-z](?![a-zA-Z])", sides[0]))
    if len(sides) > 2 or (_VALUE.fullmatch(sides[1]) and len(letters) < 2 and re.search(r"\d", sides[0])):
        return sides[-1]
    return formula


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match of a pattern."""
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _is_answer(bold: str) -> bool:
    """Whether bold text is a number with up to three words, the letter of a choice, or a formula."""
    return bool(
        re.match(r"[-−]?\\?\$?\s?\d[\d,./]*(?:\s?%|\s[a-z]+){0,3}\.?$|\(?[A-J]\)?\.?$|\$[^$]+\$\.?$", bold.strip())
    )


def _is_formula(span: re.Match[str]) -> bool:
    """Whether dollar signs enclose a formula, rather than belong to two amounts of money."""
    inside = span.group(2) or span.group(3)  # the two forms with single dollar signs
    if re.fullmatch(r"\W*\\?[a-zA-Z]{1,6}\W*", _formula(span)):
        return False  # "the possible values of $x$"
    return inside is None or not _PROSE.search(re.sub(r"\\[a-zA-Z]+\{[^{}]*\}", "", inside))


def _around(text: str, number: re.Match[str]) -> str:
    """The number, or the formula without spaces that it is part of: 3/4 of `x=3/4`, the whole of `2^10` or `(2,3)`."""
    start = end = 0
    for token in re.finditer(r"\S+", text):
        if token.start() <= number.start() < token.end():
            start, end = token.start(), max(token.end(), number.end())
    unit = _EAST_ASIAN_UNIT.match(text, number.end())
    if unit is not None or _EAST_ASIAN.search(text[start:end]):
        return number.group() + (unit.group() if unit is not None else "")
    token_text = text[start:end].strip("*_").rstrip(".,;:!?\"'").lstrip("\"'")
    opening = {")": "(", "]": "["}.get(token_text[-1:])
    if opening and opening not in token_text:  # the bracket opens before a space, as in (2, 3)
        left = text.rfind(opening, max(0, start - 40), start)
        if left < 0 or _PLAIN_WORD.search(text[left + 1 : start]):
            return number.group()
        token_text = text[left:end].strip("*_").rstrip(".,;:!?")
    elif token_text.startswith("(") and ")" not in token_text:
        return number.group()
    if not _FORMULA.fullmatch(token_text.replace(" ", "")) or _PLAIN_WORD.search(token_text):
        return number.group()
    value = token_text.rpartition("=")[2] if "=" in token_text else token_text
    return value if value.strip("()") else number.group()
