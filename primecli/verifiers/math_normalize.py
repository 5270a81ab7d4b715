"""Brings an answer, LaTeX or plain, to one spelling, and splits it into parts: lists, intervals, matrices.

Strings only. Everything here is linear in the length of its input, which the caller bounds.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_CHARACTERS = {
    **dict.fromkeys("−–—‐‑‒﹣－", "-"),
    **dict.fromkeys("×·⋅∙", r"\cdot "),
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "π": r"\pi ",
    "√": r"\sqrt",
    "∞": r"\infty ",
    "≤": r"\leq ",
    "⩽": r"\leq ",
    "≥": r"\geq ",
    "⩾": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^{\circ}",
    "º": r"^{\circ}",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "ℝ": r"\mathbb{R}",
    "′": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "€": "",
    "£": "",
    "¥": "",
    "₹": "",
    "¢": r"\text{ cents}",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")

_FORMATTING = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|scriptstyle|limits|bigl?|Bigl?|biggl?|Biggl?|bigr|Bigr|biggr|Biggr"
    r"|middle|nonumber|hfill|bf|rm|it)(?![a-zA-Z])\.?"
    r"|\\(?:hspace|vspace|label|phantom|hphantom|vphantom)\*?\{[^{}]*\}"
)
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|\\(?:quad|qquad|enspace|thinspace)(?![a-zA-Z])|~|\s+")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|mathrm|mathbf|mathit|mathsf|mathtt|mbox|hbox|bm|boldsymbol|pmb)"
    r"(?![a-zA-Z])\s*(?=\{)"
)
_SIMPLE_TEXT = re.compile(r"\\text\{((?:[^{}\\]|\\[^a-zA-Z])*)\}")
_SYNONYMS = {
    "dfrac": "frac",
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
_COMMAND = re.compile(r"\\([a-zA-Z]+)\*?")
_BARE_SYMBOLS = {"<", ">", "[", "]", "|", "/", ":"}
_OPERATOR_NAME = re.compile(r"\\operatorname\*?\s*\{\s*([a-zA-Z]{1,20})\s*\}")
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:(?:,\s?\\!\s?|\{,\}|\\,)\d{3})+)(?!\d)")
_INVISIBLE = {"Cf", "Cc", "Co", "Cn"}


def plain_characters(text: str) -> str:
    """The text in ASCII and LaTeX where it used typographic characters, foreign digits or invisible marks.

    >>> plain_characters("−３\\u200b½")
    '-3\\\\frac{1}{2}'
    """
    if text.isascii():
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    out = []
    for char in text:
        if char in _CHARACTERS:
            out.append(_CHARACTERS[char])
        elif char.isascii() or char.isspace():
            out.append(char)
        elif unicodedata.category(char) in _INVISIBLE:
            continue
        elif (digit := unicodedata.decimal(char, None)) is not None:
            out.append(str(digit))
        else:
            folded = unicodedata.normalize("NFKC", char)
            if "⁄" in folded:  # ½: keep it one fraction, since 2½ is not 21/2
                top, _, bottom = folded.partition("⁄")
                folded = f"\\frac{{{top}}}{{{bottom}}}" if bottom else folded
            out.append(folded)
    return "".join(out)


def normalize(text: str) -> str:
    """One spelling for an answer: no formatting commands, no currency, no outer dollars or closing full stop.

    >>> normalize(r"$\\left( 3, \\dfrac{\\pi}{2} \\right)$.")
    '( 3, \\\\frac{\\\\pi}{2} )'
    """
    s = plain_characters(text).strip()
    s = _THOUSANDS.sub(lambda m: re.sub(r"[^\d]", "", m.group()), s)
    s = s.replace("\\!", "").replace("{,}", ",").replace("\\$", "").replace("$", "")
    s = re.sub(r"(?<!\\)\\[()]", "", s).replace("**", "^" if "**" in s.strip("*") else "")
    s = re.sub(r"(?<!\\)\\\[(?![^\]]{0,8}(?:em|ex|pt|mm)\])|(?<!\\)\\\]", "", s).strip("*_ \n\t")
    s = _TEXT_COMMAND.sub(lambda _: r"\text", s)
    s = _OPERATOR_NAME.sub(lambda m: "\\" + m.group(1) + " ", s)
    s = _COMMAND.sub(_synonym, s.replace("\\degree", "^{\\circ}"))
    s = _FORMATTING.sub("", s)
    s = _SPACING.sub(" ", s)
    s = s.replace("\\%", "%").replace("\\&", "and").replace("^\\circ", "^{\\circ}").replace("{ }", "")
    s = re.sub(r"\^\{\s*\\circ\s*\}", "^{\\\\circ}", s)
    s = re.sub(r"\\\{\s*", r"\\{", s)
    s = re.sub(r"\\text\{\s*\}|\\(?:boxed|fbox)(?=\{)", "", s)
    s = s.replace("\\#", "#").strip()
    while s and (s[-1] in ".,;:" or s.endswith("\\\\")):
        s = s[: -1 if s[-1] in ".,;:" else -2].rstrip()
    return strip_braces(s)


def _synonym(match: re.Match[str]) -> str:
    name = match.group(1)
    other = _SYNONYMS.get(name)
    if other is None:
        return match.group()
    if other in _BARE_SYMBOLS:
        return other
    return "\\" + other


def strip_braces(s: str) -> str:
    """The string without braces that wrap the whole of it.

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


def squeeze(s: str) -> str:
    """A normalised answer without spaces and redundant braces, for comparing as a string.

    Two numbers that only a space keeps apart stay apart.

    >>> squeeze(r"\\frac{ 1 }2 + x^{2}") == squeeze(r"\\frac12+x^2")
    True
    """
    s = re.sub(r"(?<=[\da-zA-Z]) +(?=[\da-zA-Z])", "\x00", s).replace(" ", "").replace("\x00", " ")
    return re.sub(r"\{([\da-zA-Z])\}", r"\1", s)


def _closing(s: str, at: int) -> int:
    """Index of what closes the bracket at `at`, counting only brackets of its kind; -1 where nothing does."""
    depth = 0
    i = at
    while i < len(s):
        if s[i] == "\\":
            i += 2
            continue
        if s[i] == "{":
            depth += 1
        elif s[i] == "}":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return -1


_BEGIN = re.compile(r"\\begin\{[a-zA-Z]+\*?\}")
_END = re.compile(r"\\end\{[a-zA-Z]+\*?\}")


def split_top(s: str, separators: re.Pattern[str], limit: int = 200) -> tuple[list[str], list[str]] | None:
    """Parts of `s` between the separators that stand outside all brackets, and those separators.

    Half-open intervals count as brackets: `[1,2)` closes. None where brackets do not balance or there are
    more than `limit` parts.
    """
    depth = 0
    parts: list[str] = []
    found: list[str] = []
    start = i = 0
    while i < len(s):
        if depth == 0 and (hit := separators.match(s, i)) and hit.end() > i:
            parts.append(s[start:i])
            found.append(hit.group())
            start = i = hit.end()
            if len(parts) > limit:
                return None
            continue
        char = s[i]
        if char == "\\":
            if _BEGIN.match(s, i):
                depth += 1
            elif _END.match(s, i):
                depth -= 1
            elif s.startswith(("\\{", "\\langle"), i):
                depth += 1
            elif s.startswith(("\\}", "\\rangle"), i):
                depth -= 1
            word = _COMMAND.match(s, i)
            i = word.end() if word else i + 2
        else:
            if char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
            i += 1
        if depth < 0:
            return None
    if depth != 0:
        return None
    parts.append(s[start:])
    return parts, found


@dataclass(frozen=True, slots=True)
class Part:
    """One node of a split answer.

    kind: leaf, list (order free), tuple (order matters; also intervals), set, union, matrix.
    brackets: for a tuple its two brackets; for a matrix the number of columns.
    """

    kind: str
    text: str
    items: tuple[Part, ...] = ()
    brackets: str = ""


_AND_OR = re.compile(r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*")
_COMMA = re.compile(r"\s*[,;]\s*")
_CUP = re.compile(r"\\cup(?![a-zA-Z])|\bU\b")
_MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[[^\]]{0,12}\])?")
_CELL = re.compile("&")
_PM = re.compile(r"\\pm(?![a-zA-Z])")
_MEMBER = re.compile(r"^[a-zA-Z](?:_\{?\w\}?)?\s*\\in(?![a-zA-Z])\s*")
_BIG_NUMBER = re.compile(r"^[-+]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])")


def read_parts(s: str, depth: int = 0) -> list[Part]:
    """The ways to read a normalised answer, likeliest first: `1,234` is a number, or a list of two.

    >>> [part.kind for part in read_parts(r"(1,2) \\cup [3,4)")], read_parts("1,234")[1].items[1].text
    (['union'], '234')
    """
    s = strip_braces(_MEMBER.sub("", s.strip()))
    if depth > 6:
        return [Part("leaf", s)]
    listed = split_top(_AND_OR.sub(",", s), _COMMA)
    if listed is None:
        return [Part("leaf", s)]
    readings: list[Part] = []
    pieces = [piece for piece in listed[0] if piece.strip()]
    if len(pieces) > 1:
        if _BIG_NUMBER.match(s) and not _COMMA.search(s[_BIG_NUMBER.match(s).end() :]):  # type: ignore[union-attr]
            readings.append(Part("leaf", s.replace(",", "")))
        elif "=" in s and (number := re.search(r"=\s*(-?\d{1,3}(?:,\d{3})+(?:\.\d+)?)$", s)):
            head = s[: number.start(1)]
            if "," not in head:
                readings.append(Part("leaf", head + number.group(1).replace(",", "")))
        items: list[Part] = []
        for piece in pieces:
            only = read_parts(piece, depth + 1)[0]
            items.extend(only.items if only.kind == "list" else (only,))
        readings.append(Part("list", s, tuple(items)))
        return readings
    return [_one(pieces[0].strip() if pieces else s, depth)]


def _one(s: str, depth: int) -> Part:
    united = split_top(s, _CUP)
    if united is not None and len(united[0]) > 1:
        return Part("union", s, tuple(read_parts(piece, depth + 1)[0] for piece in united[0]))
    matrix = _MATRIX.fullmatch(s)
    if matrix:
        return _matrix(s, matrix.group(2), depth)
    if s.startswith("\\{") and s.endswith("\\}"):
        inner = split_top(s[2:-2], _COMMA)
        if inner is not None:
            members: list[Part] = []
            for piece in inner[0]:
                member = read_parts(piece, depth + 1)[0]
                members.extend(member.items if member.kind == "list" else (member,) if piece.strip() else ())
            return Part("set", s, tuple(members))
    opening = "\\langle" if s.startswith("\\langle") else s[:1]
    closing = "\\rangle" if s.endswith("\\rangle") else s[-1:]
    if opening and opening in ("(", "[", "\\langle") and closing in (")", "]", "\\rangle"):
        inner = split_top(s[len(opening) : len(s) - len(closing)], _COMMA)
        if inner is not None and len(inner[0]) > 1:
            items = tuple(read_parts(piece, depth + 1)[0] for piece in inner[0])
            return Part("tuple", s, items, opening + closing)
        if inner is not None and opening + closing in ("()", "[]") and s[1:-1].strip():
            # brackets around one thing mean nothing, except around a choice letter, which the leaf knows
            return read_parts(s[1:-1], depth + 1)[0] if len(s) > 3 else Part("leaf", s)
    if len(_PM.findall(s)) == 1:
        return Part("list", s, tuple(Part("leaf", _PM.sub(sign, s)) for sign in ("+", "-")))
    return Part("leaf", s)


def _matrix(s: str, body: str, depth: int) -> Part:
    rows = split_top(body.strip(), _ROW)
    if rows is None:
        return Part("leaf", s)
    cells: list[str] = []
    width = 0
    for row in rows[0]:
        if not row.strip():
            continue
        columns = split_top(row.strip(), _CELL)
        if columns is None or (width and len(columns[0]) != width):
            return Part("leaf", s)
        width = len(columns[0])
        cells.extend(columns[0])
    return Part("matrix", s, tuple(Part("leaf", cell.strip()) for cell in cells), str(width))
