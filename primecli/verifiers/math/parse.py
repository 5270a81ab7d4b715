"""Reads an expression, in LaTeX or plain text, as a tree.

The grammar is our own: it reads nearly every answer in microseconds, keeps decimals exact, and never hands the model's
text to an evaluator. Where it does not know a notation it raises `Unreadable`, and a worker tries the LaTeX parser of
latex2sympy2_extended (see `equal_by_sympy`).
"""

from __future__ import annotations

from fractions import Fraction

from primecli.verifiers.math.tokens import ALIAS, FUNCTIONS, GREEK, TRIG, Token, Unreadable, number, tokenize
from primecli.verifiers.math.tree import Tree, children

MAX_DEPTH = 80
"""The deepest nesting of a text and of a tree, well within the interpreter's recursion limit."""

_STARTERS = {"num", "cmd", "sym"}  # kinds of tokens with which a factor may begin
_NOT_FACTOR = {  # commands with which no factor begins
    *("\\cdot", "\\pm", "\\mp", "\\approx", "\\neq", "\\leq", "\\geq"),
    *("\\cup", "\\cap", "\\in", "\\rfloor", "\\rceil", "\\mod", "\\bmod"),
}


def parse_expression(text: str) -> Tree:
    """The tree of a normalised expression. Raises Unreadable.

    >>> parse_expression(r"2\\frac{1}{2}")
    ('add', ('num', Fraction(2, 1)), ('div', ('num', Fraction(1, 1)), ('num', Fraction(2, 1))))
    """
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over a list of tokens.

    position: index of the next token.
    depth: how many sums and primaries are being read, each inside the one before.
    bars: how many `|` are open, so that the next one closes.
    product_of_powers: the factors read so far of a product such as `2^3 3 5`, in which numbers follow one another.
    """

    def __init__(self, text: str) -> None:
        self.tokens: list[Token] = tokenize(text)
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.product_of_powers: Tree | None = None

    def peek(self, ahead: int = 0) -> Token:
        """The next token, or the one `ahead` tokens after it; an empty one past the end."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ("end", "", False)

    def take(self, text: str) -> bool:
        """Consumes the next token if it is `text`; returns whether it was."""
        if self.peek()[1] == text:
            self.position += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Consumes `text`. Raises Unreadable where something else comes next."""
        if not self.take(text):
            raise Unreadable(f"expected {text!r}")

    def whole(self) -> Tree:
        """All tokens as one expression."""
        if not self.tokens:
            raise Unreadable("empty")
        tree = self.sum()
        if self.position != len(self.tokens):
            raise Unreadable(f"unexpected {self.peek()[1]!r}")
        level = [tree]
        for _ in range(MAX_DEPTH):
            level = [child for node in level for child in children(node)]
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
            self.position += 1
            right = self.product()
            terms.append(("neg", right) if minus else right)
        self.depth -= 1
        return ("add", *terms) if len(terms) > 1 else terms[0]

    def product(self) -> Tree:
        """Factors joined by *, /, \\cdot or nothing; a whole number and a proper fraction are a mixed number."""
        tree = self.mixed() or self.signed()
        while True:
            word = self.peek()[1]
            if word in ("*", "\\cdot"):
                self.position += 1
                tree = ("mul", tree, self.signed())
            elif word == "/":
                self.position += 1
                tree = ("div", tree, self.signed())
            elif word in ("\\bmod", "\\mod"):
                self.position += 1
                tree = ("call", "mod", tree, self.signed())
            elif self.starts_factor():
                if self.peek()[0] == "num" and self.peek(-1)[1] != "!" and not self.number_may_follow(tree):
                    raise Unreadable("two numbers side by side")
                tree = ("mul", tree, self.power())
            else:
                return tree

    def number_may_follow(self, tree: Tree) -> bool:
        """Whether a number after these factors is one more: `2^3 3 5^2`, `2^{3}5`, `(n-2) 2^n`, `n2^n`, `C_1 2^n`.

        Not in `2^33` or `5 2^n`, nor where the number may be the whole part of a mixed one, as in `2^3 1/2`.
        """
        last = tree[-1] if tree[0] in ("mul", "neg") else tree
        (_, word, space), (kind, before, _), after = self.peek(), self.peek(-1), self.peek(1)[1]
        if not word.isdigit() or after in ("/", "\\frac"):
            return False
        apart = space or before in (")", "}")
        if (last[0] == "pow" and apart) or (space and tree == self.product_of_powers):
            self.product_of_powers = ("mul", tree, number(word))
            return True
        letters = self.peek(2)[0] == "sym" or (self.peek(2)[1] == "{" and self.peek(3)[0] == "sym")
        return after == "^" and (apart or letters) and last[0] != "num" and (kind != "num" or last[0] == "sym")

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor, which is multiplied with the one before it."""
        kind, word, _ = self.peek()
        if kind in _STARTERS:
            return word not in _NOT_FACTOR
        return word in ("(", "{", "[", "\\{") or (word == "|" and self.bars == 0)

    def mixed(self) -> Tree | None:
        """`2\\frac{3}{4}` or `2 3/4`; None for anything else. Raises Unreadable for an improper fraction."""
        (kind, whole, _), (_, after, _) = self.peek(), self.peek(1)
        if kind != "num" or not whole.isdigit():
            return None
        start = self.position
        if after == "\\frac":
            self.position += 1
            fraction = self.power()
        elif after.isdigit() and self.peek(1)[2] and self.peek(2)[1] == "/" and self.peek(3)[1].isdigit():
            fraction = ("div", number(after), number(self.peek(3)[1]))
            self.position += 4
        else:
            return None
        if fraction[0] == "div" and fraction[1][0] == fraction[2][0] == "num":
            if fraction[1][1] >= fraction[2][1]:
                raise Unreadable("a whole number before an improper fraction: a sum or a product?")
            return ("add", number(whole), fraction)
        self.position = start
        return None

    def signed(self) -> Tree:
        """A factor with any signs before it; they apply to the power: -2^2 is -4."""
        signs = 0
        while self.peek()[1] in ("+", "-"):
            signs += self.peek()[1] == "-"
            self.position += 1
        if signs == 0:
            return self.power()
        tree = self.mixed() or self.power()
        return ("neg", tree) if signs % 2 else tree

    def power(self) -> Tree:
        """A primary and the factorials, percent signs, degrees and exponents after it."""
        tree = self.primary()
        while True:
            word = self.peek()[1]
            if word == "!":
                self.position += 1
                tree = ("fact", tree)
            elif word == "%":
                self.position += 1
                tree = ("div", tree, ("num", Fraction(100)))
            elif word == "^":
                self.position += 1
                if self.degrees():
                    tree = ("mul", tree, ("div", ("sym", "\\pi"), ("num", Fraction(180))))
                else:
                    tree = ("pow", tree, self.exponent())
                    if self.peek()[1] == "^":
                        raise Unreadable("double exponent")
            else:
                return tree

    def degrees(self) -> bool:
        """Consumes `\\circ`, with or without braces; returns whether it was there."""
        if self.take("\\circ"):
            return True
        if self.peek()[1] == "{" and self.peek(1)[1] == "\\circ" and self.peek(2)[1] == "}":
            self.position += 3
            return True
        return False

    def exponent(self) -> Tree:
        """After ^: a group in braces, or one primary with a sign."""
        if self.peek()[1] == "{":
            return self.group()
        if self.take("-"):
            return ("neg", self.primary())
        self.take("+")
        return self.primary()

    def group(self) -> Tree:
        """`{…}`."""
        self.expect("{")
        tree = self.enclosed()
        self.expect("}")
        return tree

    def enclosed(self) -> Tree:
        """An expression inside brackets, in which the next bar opens a new pair."""
        bars, self.bars = self.bars, 0
        tree = self.sum()
        self.bars = bars
        return tree

    def argument(self, single_digit: bool) -> Tree:
        """An argument as TeX reads it: a group or one token.

        single_digit: whether only the first digit of a number belongs to it, as in `\\frac12`, which is 1/2. People
        who write `\\sqrt12` want the root of 12.
        """
        kind, word, space = self.peek()
        if word == "{":
            return self.group()
        if kind == "num":
            if single_digit and word.isdigit() and len(word) > 1:
                self.tokens[self.position] = (kind, word[1:], space)
                return number(word[0])
            self.position += 1
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
        """A primary; `primary` counts the depth."""
        kind, word, _ = self.peek()
        self.position += 1
        if kind == "num":
            return number(word)
        if kind == "sym":
            name = word + self.subscript()
            return ("sym", name + self.value_at(name))
        if word in ("(", "[", "{", "\\{"):
            tree = self.enclosed()
            self.expect({"(": ")", "[": "]", "{": "}", "\\{": "\\}"}[word])
            return tree
        if word == "|":
            self.bars += 1
            tree = self.sum()
            self.expect("|")
            self.bars -= 1
            return ("call", "abs", tree)
        if kind == "cmd":
            return self.command(ALIAS.get(word[1:], word[1:]))
        raise Unreadable(f"unexpected {word!r}")

    def value_at(self, name: str) -> str:
        """The argument of `f(2)` and of any `I(0)`, which are values of functions rather than products; else ""."""
        (_, opening, space), (kind, argument, _) = self.peek(), self.peek(1)
        if opening != "(" or space or kind != "num" or self.peek(2)[1] != ")" or not (argument == "0" or name in "fgh"):
            return ""
        self.position += 3
        return f"({argument})"

    def command(self, name: str) -> Tree:
        """The expression that a LaTeX command or the name of a function begins."""
        if name in ("frac", "binom"):
            top = self.argument(single_digit=True)
            bottom = self.argument(single_digit=True)
            return ("div", top, bottom) if name == "frac" else ("call", "binom", top, bottom)
        if name == "sqrt":
            index: Tree = ("num", Fraction(2))
            if self.take("["):
                index = self.enclosed()
                self.expect("]")
            return ("call", "root", self.argument(single_digit=False), index)
        if name in ("lfloor", "lceil"):
            tree = self.enclosed()
            self.expect("\\r" + name[1:])
            return ("call", name[1:], tree)
        if name == "abs":
            return ("call", "abs", self.primary())
        if name in FUNCTIONS:
            return self.function(name)
        if name in GREEK:
            return ("sym", "\\" + name + self.subscript())
        raise Unreadable(f"unknown command \\{name}")

    def function(self, name: str) -> Tree:
        """`\\sin x`, `\\sin^2(x)`, `\\log_2 8`; an argument without brackets ends before the next + or -."""
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
        """Primes and a subscript after a symbol, such as `_1` or `_{ab}`: they are part of its name."""
        name = ""
        while self.peek()[1] == "'":
            self.position += 1
            name += "'"
        if not self.take("_"):
            return name
        name += "_"
        if not self.take("{"):
            name += self.peek()[1]
            self.position += 1
            return name
        while self.peek()[0] != "end" and not self.take("}"):
            if self.peek()[1] in ("{", "^"):
                raise Unreadable("subscript")
            name += self.peek()[1]
            self.position += 1
        return name
