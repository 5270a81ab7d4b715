"""Splits an expression into tokens; the names that the grammar knows."""

from __future__ import annotations

import re
from fractions import Fraction

from primecli.verifiers.math.tree import Tree

Token = tuple[str, str, bool]
"""The kind of a token (num, cmd, sym or op), its text, and whether a space precedes it."""

MAX_NUMBER_CHARS = 4000
"""Longer numbers are not read: Python converts at most 4,300 digits by default."""


class Unreadable(Exception):
    """The grammar does not cover this text, or the text has no value."""


_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<num>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d{1,3}(?: \d{3})+(?!\d)(?:\.\d+)?"
    r"|\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\d.]))?|\.\d+)"
    r"|(?P<cmd>\\[a-zA-Z]+)"
    r"|(?P<word>[a-zA-Z]+)"
    r"|(?P<op>\\[{}|]|[-+*/^_!%|()\[\]{}'&=<>])"
)

TRIG = ("sin", "cos", "tan", "cot", "sec", "csc")
FUNCTIONS = {
    *TRIG,
    *("arc" + name for name in TRIG),
    *(name + "h" for name in ("sin", "cos", "tan", "cot")),
    "ln",
    "log",
    "lg",
    "exp",
    "cis",
}
# longest first, so that "asin" is not read as "a" and "sin"
_NAMES = sorted({*FUNCTIONS, "sqrt", "pi", "infty", "infinity", "abs", "asin", "acos", "atan", "theta"}, key=len)
_NAMES.reverse()
ALIAS = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "infinity": "infty", "lg": "log"}
GREEK = {
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu"),
    *("xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "pi", "infty", "ell", "hbar"),
    *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega"),
    "integer",  # any integer: the parameter of a general solution (see `constants`)
}


def tokenize(text: str) -> list[Token]:
    """The tokens of a normalised expression. Raises Unreadable.

    >>> tokenize("2xsin y")
    [('num', '2', False), ('sym', 'x', False), ('cmd', '\\\\sin', False), ('sym', 'y', True)]
    """
    tokens: list[Token] = []
    space = False
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"unexpected {text[position]!r}")
        position = match.end()
        kind, word = str(match.lastgroup), match.group()
        if kind == "space":
            space = True
            continue
        if kind == "word":
            for piece in _letters(word):
                tokens.append(("sym", piece, space) if len(piece) == 1 else ("cmd", "\\" + piece, space))
                space = False
        else:
            tokens.append((kind, word, space))
        space = False
    return tokens


def _letters(word: str) -> list[str]:
    """A run of letters, split into known names and single letters.

    >>> _letters("xsinpi")
    ['x', 'sin', 'pi']
    """
    pieces = []
    while word:
        name = next((known for known in _NAMES if word.startswith(known)), word[0])
        pieces.append(name)
        word = word[len(name) :]
    return pieces


def number(text: str) -> Tree:
    """The tree of a number. Raises Unreadable where it is too long."""
    text = text.replace(",", "").replace(" ", "")
    if len(text) > MAX_NUMBER_CHARS:
        raise Unreadable("number too long")
    return ("num", Fraction(text))
