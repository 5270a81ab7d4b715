"""Relations in ASCII, unit vectors, dots, piecewise functions and `mod`, in one spelling of LaTeX, for `normalize`."""

from __future__ import annotations

import re

# "<=>", "=>", ">=", "!=" and the like, the longest first; \not= last
_ASCII = re.compile(r"<=+>|=+>|>=|<=|=<|<>|=/=|==|!=|\\not\s*=")
_RELATIONS = {">=": r"\geq ", "<=": r"\leq ", "=<": r"\leq ", "<>": r"\neq ", "=/=": r"\neq ", "==": "="}
_STATEMENT = re.compile(r"[=<>]|\\(?:leq|geq|neq|approx)(?![a-zA-Z])")
_FACTORIAL = re.compile(r"[\d)\]}kmn]$")  # 5!=120 is about a factorial, and x!=0 is not
_POINTED = re.compile(r"(^|=\s*)<([^<>=,]{1,40}(?:,[^<>=,]{1,40}){1,9})>$")  # <1,2,3>, a vector

_HAT = r"\\(?:hat|vec|widehat|overrightarrow)(?![a-zA-Z])\s*"
_INNER = r"(?:\\text\s*\{\s*)?\\?([a-zA-Z])(?:math)?\s*\}?"
# \hat{i}, \vec{\mathbf{v}}, \hat\imath, \hat k
_ARROW = re.compile(rf"{_HAT}(?:\{{\s*{_INNER}\s*\}}|\\([ij])math(?![a-zA-Z])|([a-zA-Z])(?![a-zA-Z]))")
_DOTLESS = re.compile(r"\\([ij])math(?![a-zA-Z])")

# \cdots, with any \cdot beside it, and "..." beside a comma or a sign: 1.414... has no dots of its own
_DOTS = re.compile(
    r"(?:\\cdot\s*)?(?:\\[lc]?dots[cbmio]?(?![a-zA-Z])|(?<=[,+*-])\s?\.\.\.+|(?<=[,+*-]\s)\.\.\.+|\.\.\.+(?=\s?[,+]))"
    r"(?:\s*\\cdot(?![a-zA-Z]))?"
)

_TEXT_MOD = re.compile(r"\\text\s*\{\s*\(?\s*mod(?:ulo)?\s*([^{}()]*?)\s*\)?\s*\}\s*\)?(?=\s*[\d{(a-zA-Z]|$)")
# rows in braces that open and do not close: "\{\begin{array}{ll} … \end{array}"
_OPEN_ARRAY = re.compile(
    r"\\\{\s*\\begin\{(array|aligned|matrix)\}(?:\{[^{}]*\})?((?:(?!\\end\{\1\}).)*)\\end\{\1\}(?!\s*\\\})", re.DOTALL
)
# "\{\frac{\pi}{6} + 2k\pi | k \in \mathbb{Z}\}" and "\{x | x = \frac{\pi}{6} + 2k\pi, k \in \mathbb{Z}\}"
_FAMILY = re.compile(
    r"\\\{(?:\s*([a-z])\s*[|:]\s*(?=\1\s*=))?([^|:]{1,200}?)[|:,]\s*[j-nrst]\s*\\in\s*\\mathbb\s*\{?\s*Z\s*\}?\s*\\\}"
)
_CASES = re.compile(r"\\(begin|end)\{[dr]cases\*?\}")


def latex_spellings(s: str) -> str:
    """An answer, with its commands already in one spelling, with relations, vectors and dots in one spelling, too.

    >>> latex_spellings("x >= 3"), latex_spellings(r"\\hat{i} + 2\\hat\\jmath"), latex_spellings("1,2,...,9")
    ('x \\\\geq  3', 'i + 2j', '1,2,\\\\ldots ,9')
    """
    if "=" in s or "<" in s:
        s = _ASCII.sub(_relation, _POINTED.sub(r"\1\\langle \2\\rangle", s) if s[-1:] == ">" else s)
    if "\\" in s:
        if "hat" in s or "vec" in s or "arrow" in s or "math" in s:
            s = _ARROW.sub(lambda m: m.group(1) or m.group(2) or m.group(3), s)
            s = _DOTLESS.sub(r"\1", s)
        if "cases" in s or "\\begin" in s:
            s = _OPEN_ARRAY.sub(r"\\begin{cases}\2\\end{cases}", _CASES.sub(r"\\\1{cases}", s))
        if "Z" in s and "\\{" in s:
            s = _FAMILY.sub(r"\\{\2\\}", s)
        if "mod" in s:
            s = _TEXT_MOD.sub(r"\\mod \1", s)
    if "dots" in s or "..." in s:
        s = _DOTS.sub(r"\\ldots ", s)
    return s


def _relation(match: re.Match[str]) -> str:
    sign, before = match.group(), match.string[: match.start()]
    if sign[-1] == ">" and "=" in sign and sign != ">=":
        # "x => 3" may mean that x is at least 3; only after a statement it is surely an implication
        return r"\Rightarrow " if _STATEMENT.search(before) else sign
    if sign == "!=" and _FACTORIAL.search(before):
        return sign
    return _RELATIONS.get(sign, r"\neq ")
