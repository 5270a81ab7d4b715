"""Reads a LaTeX or plain expression into a small tree.

A grammar of our own, since it settles nearly every answer in microseconds, keeps decimals exact and never
hands model text to an evaluator. What it does not know raises `Unreadable`; math-verify then has a try.
A tree is a tuple: ("num", Fraction), ("sym", name), ("add", a, b, …), ("mul", a, b), ("div", a, b),
("pow", a, b), ("neg", a), ("fact", a), ("call", name, a, …).
"""

from __future__ import annotations

from fractions import Fraction

from primecli.verifiers.math.tokens import ALIAS, FUNCTIONS, GREEK, TRIG, Token, Tree, Unreadable, number, tokenize

__all__ = ["MAX_DEPTH", "Tree", "Unreadable", "parse_expression", "size", "symbols"]

MAX_DEPTH = 80
"""Nesting of a text and of a tree, well within the interpreter's recursion limit."""


_STARTERS = {"num", "cmd", "sym"}
_NOT_FACTOR = {
    "\\cdot",
    "\\pm",
    "\\mp",
    "\\approx",
    "\\neq",
    "\\leq",
    "\\geq",
    "\\cup",
    "\\cap",
    "\\in",
    "\\rfloor",
    "\\rceil",
}


def parse_expression(text: str) -> Tree:
    """The tree of a normalised expression. Raises Unreadable.

    >>> parse_expression(r"2\\frac{1}{2}")
    ('add', ('num', Fraction(2, 1)), ('div', ('num', Fraction(1, 1)), ('num', Fraction(2, 1))))
    """
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over a token list; `at` is the next token."""

    def __init__(self, text: str) -> None:
        self.tokens: list[Token] = tokenize(text)
        self.at = 0
        self.depth = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        """The token `ahead` places on, or an empty one past the end."""
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else ("end", "", False)

    def take(self, text: str) -> bool:
        """Steps over the next token if it is `text`."""
        if self.peek()[1] == text:
            self.at += 1
            return True
        return False

    def need(self, text: str) -> None:
        """Steps over `text` or raises."""
        if not self.take(text):
            raise Unreadable(f"expected {text!r}")

    def whole(self) -> Tree:
        """The whole token list as one expression."""
        if not self.tokens:
            raise Unreadable("empty")
        tree = self.sum()
        if self.at != len(self.tokens):
            raise Unreadable(f"unexpected {self.peek()[1]!r}")
        level = [tree]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in node[1:] if isinstance(child, tuple)]
            if not level:
                return tree
        raise Unreadable("nested too deeply")

    def sum(self) -> Tree:
        """Terms joined by + and -."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        terms = [self.product()]
        while self.peek()[1] in ("+", "-"):
            minus = self.peek()[1] == "-"
            self.at += 1
            right = self.product()
            terms.append(("neg", right) if minus else right)
        self.depth -= 1
        return ("add", *terms) if len(terms) > 1 else terms[0]

    def product(self) -> Tree:
        """Factors joined by *, /, \\cdot or nothing; a number before a proper fraction is a mixed number."""
        tree = self.mixed() or self.signed()
        while True:
            word = self.peek()[1]
            if word in ("*", "\\cdot"):
                self.at += 1
                tree = ("mul", tree, self.signed())
            elif word == "/":
                self.at += 1
                tree = ("div", tree, self.signed())
            elif self.starts_factor():
                if self.peek()[0] == "num" and self.peek(-1)[1] != "!":
                    raise Unreadable("two numbers side by side")
                tree = ("mul", tree, self.power())
            else:
                return tree

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor, so that multiplication is meant."""
        kind, word, _ = self.peek()
        if kind in _STARTERS:
            return word not in _NOT_FACTOR
        return word in ("(", "{", "[", "\\{") or (word == "|" and self.bars == 0)

    def mixed(self) -> Tree | None:
        """`2\\frac{3}{4}` or `2 3/4` with a proper fraction."""
        (kind, whole, _), (_, after, _) = self.peek(), self.peek(1)
        if kind != "num" or not whole.isdigit():
            return None
        start = self.at
        if after == "\\frac":
            self.at += 1
            fraction = self.power()
        elif after.isdigit() and self.peek(1)[2] and self.peek(2)[1] == "/" and self.peek(3)[1].isdigit():
            fraction = ("div", number(after), number(self.peek(3)[1]))
            self.at += 4
        else:
            return None
        if fraction[0] == "div" and fraction[1][0] == fraction[2][0] == "num":
            if fraction[1][1] >= fraction[2][1]:
                raise Unreadable("a whole number before an improper fraction: a sum or a product?")
            return ("add", number(whole), fraction)
        self.at = start
        return None

    def signed(self) -> Tree:
        """A factor with any signs before it; a power binds tighter."""
        signs = 0
        while self.peek()[1] in ("+", "-"):
            signs += self.peek()[1] == "-"
            self.at += 1
        if signs == 0:
            return self.power()
        tree = self.mixed() or self.power()
        return ("neg", tree) if signs % 2 else tree

    def power(self) -> Tree:
        """A primary with factorials, percent, degrees and exponents."""
        tree = self.primary()
        while True:
            word = self.peek()[1]
            if word == "!":
                self.at += 1
                tree = ("fact", tree)
            elif word == "%":
                self.at += 1
                tree = ("div", tree, ("num", Fraction(100)))
            elif word == "^":
                self.at += 1
                if self.degrees():
                    tree = ("mul", tree, ("div", ("sym", "\\pi"), ("num", Fraction(180))))
                else:
                    tree = ("pow", tree, self.exponent())
                    if self.peek()[1] == "^":
                        raise Unreadable("double exponent")
            else:
                return tree

    def degrees(self) -> bool:
        """Steps over `\\circ`, with or without braces."""
        if self.take("\\circ"):
            return True
        if self.peek()[1] == "{" and self.peek(1)[1] == "\\circ" and self.peek(2)[1] == "}":
            self.at += 3
            return True
        return False

    def exponent(self) -> Tree:
        """What stands after ^: a braced group, or one signed primary."""
        if self.peek()[1] == "{":
            return self.group()
        if self.take("-"):
            return ("neg", self.primary())
        self.take("+")
        return self.primary()

    def group(self) -> Tree:
        """`{…}`."""
        self.need("{")
        tree = self.enclosed()
        self.need("}")
        return tree

    def enclosed(self) -> Tree:
        """An expression inside brackets, where a bar opens again."""
        bars, self.bars = self.bars, 0
        tree = self.sum()
        self.bars = bars
        return tree

    def argument(self, single_digit: bool) -> Tree:
        """A TeX argument: a group or one token. `\\frac12` is 1/2, while `\\sqrt12` means the whole 12."""
        kind, word, space = self.peek()
        if word == "{":
            return self.group()
        if kind == "num":
            if single_digit and word.isdigit() and len(word) > 1:
                self.tokens[self.at] = (kind, word[1:], space)
                return number(word[0])
            self.at += 1
            return number(word)
        return self.primary()

    def primary(self) -> Tree:
        """A number, symbol, bracketed expression or function."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        tree = self.atom()
        self.depth -= 1
        return tree

    def atom(self) -> Tree:
        """`primary` without its count of the depth."""
        kind, word, _ = self.peek()
        self.at += 1
        if kind == "num":
            return number(word)
        if kind == "sym":
            return ("sym", word + self.subscript())
        if word in ("(", "[", "{", "\\{"):
            tree = self.enclosed()
            self.need({"(": ")", "[": "]", "{": "}", "\\{": "\\}"}[word])
            return tree
        if word == "|":
            self.bars += 1
            tree = self.sum()
            self.need("|")
            self.bars -= 1
            return ("call", "abs", tree)
        if kind == "cmd":
            return self.command(ALIAS.get(word[1:], word[1:]))
        raise Unreadable(f"unexpected {word!r}")

    def command(self, name: str) -> Tree:
        """What a LaTeX command or a function's name begins."""
        if name in ("frac", "binom"):
            top = self.argument(single_digit=True)
            bottom = self.argument(single_digit=True)
            return ("div", top, bottom) if name == "frac" else ("call", "binom", top, bottom)
        if name == "sqrt":
            index: Tree = ("num", Fraction(2))
            if self.take("["):
                index = self.enclosed()
                self.need("]")
            return ("call", "root", self.argument(single_digit=False), index)
        if name in ("lfloor", "lceil"):
            tree = self.enclosed()
            self.need("\\r" + name[1:])
            return ("call", name[1:], tree)
        if name == "abs":
            return ("call", "abs", self.primary())
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return ("sym", "\\" + name + self.subscript())
        raise Unreadable(f"unknown command \\{name}")

    def function(self, name: str) -> Tree:
        """`\\sin x`, `\\sin^2(x)`, `\\log_2 8`; without brackets the argument runs to the next sign."""
        base: Tree | None = None
        exponent: Tree | None = None
        while self.peek()[1] in ("_", "^"):
            if self.take("_"):
                base = self.argument(single_digit=False)
            elif self.take("^"):
                exponent = self.exponent()
        if self.peek()[1] in ("(", "{", "["):
            tree = self.primary()
        elif self.peek()[1] in ("+", "-"):
            tree = self.signed()
        else:
            tree = self.mixed() or self.power()
            while self.starts_factor() and self.peek()[0] != "num" and self.peek()[1] != "(":
                if self.peek()[1].lstrip("\\") in FUNCTIONS:
                    break
                tree = ("mul", tree, self.power())
        if name == "log":
            call: Tree = ("call", "logb", tree, base or ("num", Fraction(10)))
        elif base is not None:
            raise Unreadable(f"subscript on {name}")
        else:
            call = ("call", name, tree)
        if exponent is None:
            return call
        if exponent == ("neg", ("num", Fraction(1))):
            if name not in TRIG:
                raise Unreadable("inverse of a function")
            return ("call", "arc" + name, tree)
        return ("pow", call, exponent)

    def subscript(self) -> str:
        """`_1`, `_{ab}` and primes after a symbol, as part of its name."""
        name = ""
        while self.peek()[1] == "'":
            self.at += 1
            name += "'"
        if not self.take("_"):
            return name
        name += "_"
        if not self.take("{"):
            name += self.peek()[1]
            self.at += 1
            return name
        while self.peek()[0] != "end" and not self.take("}"):
            if self.peek()[1] in ("{", "^"):
                raise Unreadable("subscript")
            name += self.peek()[1]
            self.at += 1
        return name


def symbols(tree: Tree) -> frozenset[str]:
    """Names of the free symbols of a tree; π, e and i are constants.

    >>> sorted(symbols(parse_expression(r"2\\pi x + e^{iy}")))
    ['x', 'y']
    """
    if tree[0] == "sym":
        return frozenset() if tree[1] in ("\\pi", "e", "i", "\\infty") else frozenset({tree[1]})
    found: frozenset[str] = frozenset()
    for child in tree[1:]:
        if isinstance(child, tuple):
            found |= symbols(child)
    return found


def size(tree: Tree) -> int:
    """How many nodes a tree has."""
    return 1 + sum(size(child) for child in tree[1:] if isinstance(child, tuple))
