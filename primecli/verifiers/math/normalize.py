"""Rewrites an answer, in LaTeX or plain text, in one spelling.

Everything here works on strings and is linear in the length of its input, which the caller bounds.
"""

from __future__ import annotations

import re
from functools import lru_cache

from primecli.verifiers.math.characters import plain_characters
from primecli.verifiers.math.spellings import latex_spellings

# commands that only change how a formula looks: without an argument, then with one
_FORMATTING = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|scriptstyle|limits|bigl?|Bigl?|biggl?|Biggl?|bigr|Bigr|biggr|Biggr"
    r"|middle|nonumber|hfill|bf|rm|it|tiny|small|large|Large|LARGE|huge|Huge|normalsize|checkmark|qed|blacksquare"
    r"|underline|uline|underbar)(?![a-zA-Z])\.?"
    r"|\\(?:hspace|vspace|label|tag|color|textcolor|phantom|hphantom|vphantom)\*?\s?\{[^{}]*\}"
)
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|\\(?:quad|qquad|enspace|thinspace)(?![a-zA-Z])|~|\s+")
# commands that set their argument as text or in another font; all become \text
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mathrm|mathbf|mathit|mathsf|mathtt|mbox|hbox|bm|boldsymbol|pmb)"
    r"(?![a-zA-Z])\s*(?=\{)"
)
_ROMAN = re.compile(r"\{\s*\\rm\s+([^{}\\]*)\}|(?<=\d)\{\\text\{([^{}\\]*)\}\}")  # 5{\rm cm}, 5{\text{cm}}
_SYNONYMS = {
    "dfrac": "frac",
    "nicefrac": "frac",
    "sfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "le": "leq",
    "leqslant": "leq",
    "ge": "geq",
    "geqslant": "geq",
    "ne": "neq",
    "lt": "<",
    "gt": ">",
    "times": "cdot",
    "ast": "cdot",
    "cdotp": "cdot",
    "lbrace": "{",
    "rbrace": "}",
    "lbrack": "[",
    "rbrack": "]",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "mid": "|",
    "varnothing": "emptyset",
    "dbinom": "binom",
    "tbinom": "binom",
    "iff": "Leftrightarrow",
    "implies": "Rightarrow",
    "infin": "infty",
    "div": "/",
    "land": "wedge",
    "colon": ":",
    "varepsilon": "epsilon",
    "varphi": "phi",
}
"""Commands without their backslash, and what they become; `_BARE_SYMBOLS` are written without one."""

COMMAND = re.compile(r"\\([a-zA-Z]+)\*?")
_BARE_SYMBOLS = {"<", ">", "[", "]", "|", "/", ":"}
_OPERATOR_NAME = re.compile(r"\\operatorname\*?\s*\{\s*([a-zA-Z]{1,20})\s*\}")
# 1,\!000 and 1{,}000 and 1\,000
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:(?:,\s?\\!\s?|\s?\{\s?,\s?\}\s?|\\,)\d{3})+)(?!\d)")
# 3{,}14, where a group of three digits would be thousands
_DECIMAL_COMMA = re.compile(r"(?<![\d.,}])(\d{1,12})\{,\}(\d{1,2}|\d{4,12})(?![\d{])")
# the double backslashes of text that was quoted once too often: \\\\frac; in a matrix they may end a row
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?:\\\\)?(?=(?:[dt]?frac|sqrt|text|math(?:rm|bf|bb|it)|pi|cdot|times|left|right|circ|boxed|infty|cup"
    r"|ln|log|sin|cos|tan|pm|leq?|geq?|neq?|binom|overline|angle|sum|int|quad"
    r"|alpha|beta|gamma|delta|epsilon|eta|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|Gamma|Delta|Theta|Lambda"
    r"|Sigma|Phi|Psi|Omega|sec|csc|cot|arc(?:sin|cos|tan)|exp|ell|vec|hat|bar|lfloor|rfloor|lceil|rceil|displaystyle|in"
    r")(?![a-zA-Z])|[%${}])"
)
# a bold letter after a number is a variable, even where a letter of its shape is a unit
_BOLD_LETTER = re.compile(r"(?<=[\d}])\s*\\(?:mathbf|boldsymbol|bm|pmb|mathit)\s*\{\s*([A-Zmgshl])\s*\}")
# \text around a formula: \text{\sqrt{3}}, but \text{ m\cdot s} is a unit
_TEXT_FORMULA = re.compile(r"\\text\{((?:[^{}\\]|\\[a-zA-Z]+(?![a-zA-Z])|\{[^{}]*\})*)\}")
_IN_FORMULA = re.compile(r"\\(?!(?:cdot|circ|mu|Omega|text|times|quad|underline)(?![a-zA-Z]))[a-zA-Z]")
_QUOTED = re.compile(r"^(['_])(.*)\1$", re.DOTALL)
# "US$5" or "USD 5"
_CURRENCY_BEFORE = re.compile(
    r"^\s*(?:\\text\{\s*)?(?:(?:US|HK|CA|AU|NZ|[ACS])(?=\s?\\?\$)|(?:USD|EUR|GBP|INR|CAD|AUD|Rs\.?)\s?(?=[\d.]))"
)
# ^{\circ} with spaces or an empty base, and an "o" for it
_DEGREE_MARK = re.compile(
    r"(?:\{\})?\^\{\s*\\circ\s*\}|(?<=\d)\^(?:\{\s*(?:\\text\{\s*o\s*\}|o)\s*\}|\\text\{o\}|o(?![a-z]))"
)
_TEXT_SIGN = re.compile(r"\\text\{\s*\\?([%:/+=-])\s*\}")
_TEXT_NAME = re.compile(
    r"\\text\{\s*((?:arc)?(?:sin|cos|tan|cot|csc)|sec(?=\s*\}\s*(?:[(a-zA-Z]|\\(?!text)))|ln|log|exp|cis)\s*\}"
)
_TEXT_GREEK = re.compile(  # 2\text{ pi}, but \text{alpha} may be a name
    r"(?<=[\d})])\s*\\text\{\s*(alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|pi|rho|sigma|tau|phi|psi|omega)\s*\}"
)
_TEXT_CONSTANT = re.compile(r"\\text\{\s*([a-fi-kn-rt-z])\s*\}")  # m, g, s, h, l are units
_SLANTED = re.compile(r"\^\{?(\d{1,9})\}?\s?/\s?_\{?(\d{1,9})\}?")  # ^3/_4
_TIMES_TEN = re.compile(r"(?<=\d)\s?[xX]\s?10\s?\^")  # 1.5x10^3
_OPERATOR = re.compile(r"[-+=,()\[\]/*<>]")
# "Alice, Bob and Carl"
_NAMES_LISTED = re.compile(r"\s*[A-Za-z]{1,20}(?:(?:\s*,\s*|\s*,?\s+and\s+)[A-Za-z]{1,20}){1,9}\s*")
# "for all n \in \mathbb{Z}" or "where k is an integer" at the end
_COUNT = r"(?:\d|(?:one|two|three|four|five|six|seven|eight|nine|ten)\b)"  # "3 for every 4" is no condition
_FOR_ALL = re.compile(
    r"[,\s]*(?:\\text\{[\s,]*(?:for (?:all|any|every|integers?)|where)"
    rf"(?!\s+{_COUNT})[^{{}}]*\}}(?!\s*\d)|\bfor (?:all|any|every)\b(?!\s+{_COUNT}))[^=]*$"
    r"|[,\s]*\(?\s*(?:\\text\{[^{}]*\})?\s*[j-nrst]\s*\\in\s*(?:\\(?:mathbb|text)\s*)?\{?\s*[ZN]\s*\}?(?:\^[+*])?\s*\)?$"
    r"|[,\s]*\(?(?:\bwhere )?\b[j-nrst] (?:is )?(?:an |any )?(?:arbitrary )?integer\)?$"
)
_NEGATIVE = re.compile(r"^(?:\\text\{\s*)?negative\s+\}?(?=[\d\\])", re.IGNORECASE)
# "The answer is" at the beginning, but not the letter of a choice: "(C):"
_ANNOUNCED = re.compile(
    r"^(?:\\text\{(?!\s*(?:(?:option|choice) )?\(?[A-J]\)?\s*:)[^{}]*(?:\b(?:is|are)|:|=)\s*\}"
    r"|(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final |correct |required |only |unique )?"
    r"(?:answers?|solutions?|solution set|result)(?: to the (?:equation|problem|question|system))?"
    r" ?(?:(?:is|are)(?: given by)?\b:?|:|=))\s*(?=\S)",
    re.IGNORECASE,
)


@lru_cache(maxsize=2048)
def normalize(text: str) -> str:
    """An answer in one spelling: without formatting, currency, outer dollar signs or a full stop at the end.

    >>> normalize(r"$\\left( 3, \\dfrac{\\pi}{2} \\right)$.")
    '( 3, \\\\frac{\\\\pi}{2} )'
    """
    s = _QUOTED.sub(r"\2", plain_characters(text).strip().strip('`"'))
    if "\\\\" in s:
        s = _without_doubled_backslashes(s)
    s = _CURRENCY_BEFORE.sub("", _THOUSANDS.sub(lambda m: re.sub(r"[^\d]", "", m.group()), s))
    if "{,}" in s:
        s = _DECIMAL_COMMA.sub(r"\1.\2", s)
    s = s.replace("\\!", "").replace("{,}", ",").replace("\\$", "").replace("$", "")
    s = re.sub(r"(?<!\\)\\[()]", "", s).replace("**", "^" if "**" in s.strip("*") else "")
    s = re.sub(r"(?<!\\)\\\[(?![^\]]{0,8}(?:em|ex|pt|mm)\])|(?<!\\)\\\]", "", s).strip("* \n\t")
    if "\\text" in s or "\\rm" in s:
        s = _ROMAN.sub(lambda m: f"\\text{{{m.group(1) or m.group(2)}}}", s.replace("\\textsuperscript", "^"))
    s = _TEXT_COMMAND.sub(lambda _: r"\text", _BOLD_LETTER.sub(r"\\cdot \1", s) if "\\" in s else s)
    s = _OPERATOR_NAME.sub(lambda m: "\\" + m.group(1) + " ", s)
    s = COMMAND.sub(_synonym, s.replace("\\degree", "^{\\circ}"))
    s = _SPACING.sub(" ", _FORMATTING.sub("", s))
    s = (
        s.replace("\\%", "%")
        .replace("\\&", "and")
        .replace("^\\circ", "^{\\circ}")
        .replace("\\text{ }", " ")
        .replace("{ }", "")
    )
    s = re.sub(r"\\\{\s*", r"\\{", _DEGREE_MARK.sub("^{\\\\circ}", s))
    s = re.sub(r"\\text\{\s*[.,]?\s*\}|\\(?:boxed|fbox)(?=\{)|(?<=\d)\{\}", "", s)
    s = _without_typeface(s)
    s = _notations(s.replace("\\#", "#").strip())
    while s and (s[-1] in ".,;:。" or s.endswith("\\")):
        s = s[:-1].rstrip()
    return strip_braces(_FOR_ALL.sub("", s) or s)


def _without_doubled_backslashes(s: str) -> str:
    if re.search(r"\\\\begin(?![a-zA-Z])", s):
        return s.replace("\\\\", "\\")  # the ends of its rows are doubled, too
    return s if "\\begin" in s else _DOUBLED.sub(lambda _: "\\", s)


def _unwrapped(match: re.Match[str]) -> str:
    """A `\\text{…}` without its command, where it encloses a formula."""
    inside = match.group(1)
    if "\\" not in inside or not _IN_FORMULA.search(inside):
        return match.group()
    return match.group() if re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3}", inside) else f" {inside} "


def _without_typeface(s: str) -> str:
    """A formula, or a list of names, without a `\\text{…}` around the whole of it; words keep theirs."""
    for _ in range(4):
        s = s.strip()
        if not s.startswith("\\text{") or _closing(s, 5) != len(s) - 1:
            break
        formula = re.search(r"[\\^]", s[6:]) or (_OPERATOR.search(s) and not re.search(r"[A-Za-z]{3}", s[6:]))
        if not formula and not _NAMES_LISTED.fullmatch(s[6:-1]):
            break
        s = s[6:-1]
    return s


def _notations(s: str) -> str:
    """Rewrites rarer notations for fractions, decimals, powers of ten and functions, and drops "the answer is"."""
    if "\\text" in s:
        s = _TEXT_FORMULA.sub(_unwrapped, _TEXT_GREEK.sub(r"\\\1 ", s))
        s = _TEXT_SIGN.sub(r"\1", _TEXT_NAME.sub(lambda m: "\\" + m.group(1) + " ", _TEXT_CONSTANT.sub(r"\1 ", s)))
    for command, name in (("over", "frac"), ("choose", "binom")):
        for _ in range(s.count("\\" + command) if "\\" + command in s else 0):
            s = _infix(s, command, name)
    s = _SLANTED.sub(r"\\frac{\1}{\2}", _TIMES_TEN.sub(r"\\cdot 10^", s.replace("{:}", ":")))
    return latex_spellings(_NEGATIVE.sub("-", _ANNOUNCED.sub("", repeating_decimals(s))))


def _infix(s: str, command: str, name: str) -> str:
    """The first `{a \\over b}` as `\\frac{a}{b}`, or `{a \\choose b}` as `\\binom{a}{b}`."""
    infix = re.search(rf"\\{command}(?![a-zA-Z])", s)
    if not infix:
        return s
    start, end = 0, len(s)
    depth = 0
    for index in range(infix.start() - 1, -1, -1):
        depth += (s[index] == "}") - (s[index] == "{")
        if depth < 0:
            start = index + 1
            break
    depth = 0
    for index in range(infix.end(), len(s)):
        depth += (s[index] == "{") - (s[index] == "}")
        if depth < 0:
            end = index
            break
    top, bottom = s[start : infix.start()].strip(), s[infix.end() : end].strip()
    return f"{s[:start]}\\{name}{{{top}}}{{{bottom}}}{s[end:]}"


# 0.1\overline{6}, 0.\bar{3} and 0.1(6)
_REPEATING = re.compile(
    r"(?<![\d.])(\d{0,12})\.(\d{0,12})(?:\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,12})\s*\}|(\d))|(?<=\.)\((\d{1,12})\))"
    r"(?:\s*\\(?:ldots|dots|cdots))?(?![\d\\])"
)
# 0.1666...
_DOTTED_RUN = re.compile(r"(?<![\d.])(\d{0,12})\.(\d{3,40})(?:\s*\\(?:ldots|dots|cdots)(?![a-zA-Z])|\.\.\.+)")
_TAIL_BLOCK = re.compile(r"(\d*?)(\d{1,8}?)\2+")  # the shortest block of digits that the tail repeats


def repeating_decimals(s: str) -> str:
    """Repeating decimals, such as `0.1\\overline{6}` and `0.1666...`, as fractions.

    >>> repeating_decimals(r"0.\\overline{3}"), repeating_decimals("0.1666..."), repeating_decimals("1.414...")
    ('\\\\frac{3}{9}', '\\\\frac{15}{90}', '1.414...')
    """
    s = _REPEATING.sub(lambda m: _repeating(m.group(1), m.group(2), m.group(3) or m.group(4) or m.group(5)), s)
    return _DOTTED_RUN.sub(_dotted, s)


def _repeating(whole: str, fixed: str, block: str) -> str:
    top = int(whole + fixed + block) - int(whole + fixed or "0")
    return f"\\frac{{{top}}}{{{'9' * len(block)}{'0' * len(fixed)}}}"


def _dotted(match: re.Match[str]) -> str:
    block = _TAIL_BLOCK.fullmatch(match.group(2))
    if block is None:
        return match.group()
    fixed, repeated = block.group(1), block.group(2)
    times = (len(match.group(2)) - len(fixed)) // len(repeated)
    if times < (3 if len(repeated) == 1 else 2):
        return match.group()
    return _repeating(match.group(1), fixed, repeated)


def _synonym(match: re.Match[str]) -> str:
    name = match.group(1)
    other = _SYNONYMS.get(name)
    if other is None:
        return match.group()
    if other in _BARE_SYMBOLS:
        return other
    return "\\" + other


def strip_braces(s: str) -> str:
    """A string without braces around the whole of it.

    >>> strip_braces("{{5}}"), strip_braces("{1}+{2}")
    ('5', '{1}+{2}')
    """
    for _ in range(8):
        s = s.strip()
        if not (s.startswith("{") and s.endswith("}") and not s.endswith("\\}")):
            break
        if _closing(s, 0) != len(s) - 1:
            break
        s = s[1:-1]
    return s.strip()


_SPACE_BETWEEN = re.compile(r"(?<=[\da-zA-Z]) +(?=[\da-zA-Z])")
_REDUNDANT_BRACES = re.compile(r"\{([\da-zA-Z])\}")


def squeeze(s: str) -> str:
    """A normalised answer without spaces and redundant braces, to be compared as a string.

    A space stays where it separates two numbers or words.

    >>> squeeze(r"\\frac{ 1 }2 + x^{2}") == squeeze(r"\\frac12+x^2")
    True
    """
    if " " in s:
        s = _SPACE_BETWEEN.sub("\x00", s).replace(" ", "").replace("\x00", " ")
    return _REDUNDANT_BRACES.sub(r"\1", s) if "{" in s else s


def _closing(s: str, opening: int) -> int:
    """Index of the brace that closes the one at `opening`; -1 where none does."""
    depth = 0
    index = opening
    while index < len(s):
        if s[index] == "\\":
            index += 2
            continue
        if s[index] == "{":
            depth += 1
        elif s[index] == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return -1
