"""Answers in words: numbers spelled out, names, dates, and the one number of a sentence."""

from __future__ import annotations

import re

_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DENOMINATORS = {
    "half": 2, "halves": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip
_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august"]
_MONTHS += ["september", "october", "november", "december"]
_FULL_MONTH = {name[:3]: name for name in _MONTHS}
_MONTH = "|".join([*_MONTHS, "sept", *_FULL_MONTH])
# "June 20th, 2024" or "the 20th of June"
_DATE = re.compile(
    rf"(?:(?P<m1>{_MONTH})\.? (?P<d1>\d{{1,2}})(?:st|nd|rd|th)?|(?:the )?(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? "
    rf"(?P<m2>{_MONTH})\.?)(?:,? (?P<year>\d{{4}}))?",
    re.IGNORECASE,
)
# words for the same thing; `same_words` looks here last, when they are in lower case and without articles. The five
# families are not equal to each other: a limit that is infinite does not exist, but "infinity" says more
_SYNONYMS = {
    **dict.fromkeys(
        ("empty set", "无解", "無解", "无实数解", "нет решений"),
        "no solution",
    ),
    **dict.fromkeys(
        ("all reals", "all real number", "real numbers", "set of all real numbers", "all real values",
         "set of real numbers"),
        "all real numbers",
    ),
    **dict.fromkeys(
        ("dne", "d n e", "does not exist", "doesn t exist", "limit does not exist", "limit doesn t exist",
         "limit dne", "does not exist dne", "dne does not exist", "不存在", "极限不存在", "не существует"),
        "does not exist",
    ),
    **dict.fromkeys(
        ("is undefined", "not defined", "is not defined", "it is undefined", "limit is undefined",
         "slope is undefined", "undefined slope", "expression is undefined"),
        "undefined",
    ),
    **dict.fromkeys(
        ("无穷多", "无数个", "无穷多个", "无穷多解"),
        "infinitely many",
    ),
    **dict.fromkeys(("是", "oui", "да"), "yes"),
    **dict.fromkeys(("否", "нет"), "no"),
}  # fmt: skip
_HAS = r"(?:there (?:is|are|exists?) |it has |has |(?:the )?(?:equation|system|inequality|problem) has )?"
_NO_SOLUTION = re.compile(rf"{_HAS}no (?:real )?(?:solutions?|roots?)(?: exists?)?")
_MANY = re.compile(
    rf"{_HAS}(?:infinitely many|(?:an )?infinite(?: number(?: of)?)?)"
    r"(?: (?:real )?(?:solutions?|roots|values|pairs))?(?: exist)?"
)
_KNOWN = {"dne", "d n e", *(words for words in _SYNONYMS if not words.isascii())}


def is_known(text: str) -> bool:
    """Whether a text is an answer in words that looks like something else, such as DNE.

    >>> is_known("D.N.E."), is_known("ABC")
    (True, False)
    """
    return re.sub(r"[^\w]+", " ", text.lower()).strip() in _KNOWN


def spelled_number(words: str) -> str | None:
    """The number that words spell, as an expression; None where they do not spell one below a thousand.

    >>> spelled_number("twenty-five"), spelled_number("negative three"), spelled_number("two thirds")
    ('25', '-3', '\\\\frac{2}{3}')
    """
    parts = re.sub(r"[\s\-]+", " ", words.lower()).strip().split(" ")
    if parts[0] in ("negative", "minus") and len(parts) > 1:
        inner = spelled_number(" ".join(parts[1:]))
        return f"-{inner}" if inner is not None else None
    last = parts[-1] if parts[-1] == "halves" else parts[-1].removesuffix("s")
    if len(parts) > 1 and (below := _DENOMINATORS.get(last)):
        top = 1 if parts[:-1] in (["a"], ["an"]) else _cardinal(parts[:-1])
        return f"\\frac{{{top}}}{{{below}}}" if top is not None and 0 < top < below else None
    number = _cardinal(parts)
    return str(number) if number is not None else None


def _cardinal(parts: list[str]) -> int | None:
    """The whole number below a thousand that these words spell."""
    if len(parts) >= 2 and parts[1] == "hundred":
        first = 1 if parts[0] == "a" else _ONES.index(parts[0]) if parts[0] in _ONES[1:10] else None
        rest = parts[2:]
        if rest[:1] == ["and"]:
            rest = rest[1:]
        tail = _cardinal(rest) if rest else 0
        return first * 100 + tail if first is not None and tail is not None and tail < 100 else None
    if len(parts) == 1 and parts[0] in _ONES:
        return _ONES.index(parts[0])
    if parts and parts[0] in _TENS:
        tens = 10 * (_TENS.index(parts[0]) + 2)
        if len(parts) == 1:
            return tens
        return tens + _ONES.index(parts[1]) if len(parts) == 2 and parts[1] in _ONES[1:10] else None
    return None


def same_words(text: str) -> str:
    """Words in one spelling: in lower case, without an article, dates with the month first.

    >>> same_words("The 20th of June"), same_words("an Ellipse"), same_words("No real solutions.")
    ('june 20', 'ellipse', 'no solution')
    """
    date = _DATE.fullmatch(text.strip().rstrip("."))
    if date:
        month = (date["m1"] or date["m2"]).lower()
        day = date["d1"] or date["d2"]
        return " ".join(filter(None, (_FULL_MONTH[month[:3]], day.lstrip("0"), date["year"])))
    words = re.sub(r"[\W_]+", " ", text.lower()).strip()
    words = re.sub(r"^(?:it is |it s )?(?:an?|the|on) (?=.)", "", words)
    if _NO_SOLUTION.fullmatch(words):
        return "no solution"
    if words != "infinite" and _MANY.fullmatch(words):
        return "infinitely many"
    return _SYNONYMS.get(words, words)


def is_date(text: str) -> bool:
    """Whether a text is a day of a month."""
    return bool(_DATE.fullmatch(text.strip().rstrip(".")))


_QUALIFIED = re.compile(  # words that show that the number in a sentence is not the answer itself
    r"\b(?:not|no|never|isn|least|most|than|between|or|except|without|about|approximately|roughly|nearly|almost|around"
    r"|wrong|incorrect|false|half|twice|double|triple|times|over|lakhs?|crores?"
    r"|per ?cent|minus|plus|dozens?|hundreds?|thousands?|[mbtr]+illions?|squared|cubed|factorial|root|power|negative"
    r"|from|up|exceeds?|if|unless|rounded|remainder|out|divided|multiplied|ratio|[a-z]*(?:irds|ths))\b|n['’]t\b"
    r"|(?:\b(?:and|or)|,)\s+(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty)\b",
    re.IGNORECASE,
)
# characters of Chinese, Japanese and Korean, in which words stand without spaces, and those that change the value
_EAST_ASIAN = re.compile("[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_EAST_ASIAN_QUALIFIED = re.compile(
    "[没無无非未或到至约約超过過多少余餘几幾倍半折成万萬亿億千百十]|不(?!同)|以上|以下|之|分の|より|ない"
    "|아니|안 |만|억|이상|이하|약"
)
# a number that is not part of a formula
_NUMBER_IN_WORDS = re.compile(
    r"(?<![\w.,\\^_/*+=<>|(\[{-])-?\\?\$?\s?(\d[\d,]*(?:\.\d+)?(?:/\d+)?)(?!\w)(?!\.\d|\s?[-+*/^=<>\\]\s?\d)"
)


def only_number(sentence: str) -> str | None:
    """The number in a sentence that has only one and says nothing that changes it; else None.

    >>> only_number("Tom has 10 apples"), only_number("at least 10"), only_number("一共有10个苹果")
    ('10', None, '10')
    """
    if not sentence.isascii() and _EAST_ASIAN.search(sentence):
        return _only_number_east_asian(sentence)
    if " " not in sentence:
        return None
    numbers: list[str] = _NUMBER_IN_WORDS.findall(sentence)
    digits = re.findall(r"\d+(?:[.,/]\d+)*", sentence)
    if len(numbers) != 1 or len(digits) != 1 or _QUALIFIED.search(sentence) or re.search(r"[\\^_{}=<>]", sentence):
        return None
    if len(re.findall(r"(?<![A-Za-z])[A-Za-z]{2,}", sentence)) < 2 or not re.match(
        r"[\"'(]*[A-Za-z]", sentence.strip()
    ):
        return None
    sign = "-" if re.search(r"(?<!\w)-\\?\$?\s?" + re.escape(numbers[0]), sentence) else ""
    return sign + numbers[0].strip(",")


def _only_number_east_asian(sentence: str) -> str | None:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", sentence)
    if len(numbers) != 1 or _EAST_ASIAN_QUALIFIED.search(sentence) or re.search(r"[\\^_{}=<>/%:A-Za-z]", sentence):
        return None
    return str(numbers[0]).rstrip(",")
