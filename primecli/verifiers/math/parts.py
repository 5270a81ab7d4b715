"""Splits a normalised answer into lists, intervals, sets and matrices, down to single values.

Everything here works on strings and is linear in the length of its input, which the caller bounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from primecli.verifiers.math.compound import is_compound
from primecli.verifiers.math.normalize import COMMAND, strip_braces

MAX_PARTS = 200
"""Of one answer; a longer list is read as a single value."""

MAX_NESTING = 6
"""Of lists and sets; anything deeper is read as a single value."""

_BEGIN = re.compile(r"\\begin\{[a-zA-Z]+\*?\}")
_END = re.compile(r"\\end\{[a-zA-Z]+\*?\}")


def split_top(s: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]] | None:
    """The parts of `s` between separators outside all brackets, and those separators.

    Any closing bracket closes any opening one, since `[1,2)` is an interval. None where brackets do not balance, or
    where there are more than MAX_PARTS parts.

    >>> split_top("1, (2, 3)", re.compile(","))
    (['1', ' (2, 3)'], [','])
    """
    depth = 0
    parts: list[str] = []
    separators: list[str] = []
    start = index = 0
    while index < len(s):
        if depth == 0 and (match := separator.match(s, index)) and match.end() > index:
            parts.append(s[start:index])
            separators.append(match.group())
            start = index = match.end()
            if len(parts) > MAX_PARTS:
                return None
            continue
        char = s[index]
        if char == "\\":
            if _BEGIN.match(s, index):
                depth += 1
            elif _END.match(s, index):
                depth -= 1
            elif s.startswith(("\\{", "\\langle"), index):
                depth += 1
            elif s.startswith(("\\}", "\\rangle"), index):
                depth -= 1
            command = COMMAND.match(s, index)
            index = command.end() if command else index + 2
        else:
            if char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
            index += 1
        if depth < 0:
            return None
    if depth != 0:
        return None
    parts.append(s[start:])
    return parts, separators


@dataclass(frozen=True, slots=True)
class Part:
    """An answer, or a part of one.

    kind: leaf (a single value), list (in any order), tuple (in this order; also an interval), set, union, matrix, or
        except (all real numbers but the items).
    text: the part as it was written.
    items: its own parts; the cells of a matrix row by row; none for a leaf.
    brackets: of a tuple its two brackets, such as "[)"; of a matrix the number of columns, such as "2"; of a list the
        word between its items, "and", "or" or "".
    """

    kind: str
    text: str
    items: tuple[Part, ...] = ()
    brackets: str = ""


_AND_OR = r"(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*,?"
_SEPARATOR = re.compile(rf"\s*[,;]\s*(?:{_AND_OR}\s*)?|\s*{_AND_OR}\s*")
_COMMA = re.compile(r"\s*[,;]\s*")
_EQUALS = re.compile("=")
_CUP = re.compile(r"\\cup(?![a-zA-Z])|\bU\b")
_MATRIX = re.compile(r"(.*?)\\begin\{([pb]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\2\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[[^\]]{0,12}\])?")
_CELL = re.compile("&")
_PM = re.compile(r"\\pm(?![a-zA-Z])")
# "x \in" before a set or an interval
_MEMBER = re.compile(r"^[a-zA-Z](?:_\{?\w\}?)?\s*\\in(?![a-zA-Z])\s*")
_BIG_NUMBER = re.compile(r"^[-+]?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])")
# "2 and 3/4"
_MIXED_IN_WORDS = re.compile(
    r"(\d{1,9})\s*(?:\\text\{\s*and\s*\}|and)\s*(\\frac\{\d{1,9}\}\{\d{1,9}\}|\d{1,9}/\d{1,9})"
)
# "]1,2["
_REVERSED = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")
# the inside of "\{x \in \mathbb{R} | x > 1\}"
_BUILDER = re.compile(r"([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\||:)(?!\|)\s*(.+)", re.DOTALL)
# "\mathbb{R} \setminus \{0\}"
_ALL_BUT = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\\setminus|\\backslash|-)\s*(\\\{.*\\\})", re.DOTALL)
_POINT_LABEL = re.compile(r"[A-Z]\s*(?=\()")  # the A of "A(5,-3)"
_TUPLE_OF_NAMES = re.compile(r"\(\s*([a-zA-Z]|\\[a-z]+)(\s*,\s*(?:[a-zA-Z]|\\[a-z]+))+\s*\)")


def read_parts(s: str, depth: int = 0) -> list[Part]:
    """The ways to read a normalised answer, the likeliest first: `1,234` is a number, or else a list of two.

    >>> [part.kind for part in read_parts(r"(1,2) \\cup [3,4)")], read_parts("1,234")[1].items[1].text
    (['union'], '234')
    """
    s = strip_braces(_MEMBER.sub("", s.strip()))
    if depth > MAX_NESTING:
        return [Part("leaf", s)]
    if s.startswith("]") or s.endswith("["):  # the French notation for open intervals
        s = _REVERSED.sub(lambda m: ("[" if m[1] == "[" else "(") + m[2] + ("]" if m[3] == "]" else ")"), s)
    listed = split_top(s, _SEPARATOR)
    if listed is None:
        return [Part("leaf", s)]
    pieces = [piece for piece in listed[0] if piece.strip()]
    if len(pieces) <= 1:
        return [_read_one(pieces[0].strip() if pieces else s, depth)]
    readings: list[Part] = []
    if _BIG_NUMBER.match(s) and not _COMMA.search(s[_BIG_NUMBER.match(s).end() :]):  # type: ignore[union-attr]
        readings.append(Part("leaf", s.replace(",", "")))
    elif "=" in s and (number := re.search(r"=\s*(-?\d{1,3}(?:,\d{3})+(?:\.\d+)?)$", s)):
        head = s[: number.start(1)]
        if "," not in head:
            readings.append(Part("leaf", head + number.group(1).replace(",", "")))
    elif (mixed := _MIXED_IN_WORDS.fullmatch(s)) is not None:
        readings.append(Part("leaf", f"{mixed.group(1)} {mixed.group(2)}"))
    elif len(pieces) < 5 and is_compound(s):
        readings.append(Part("leaf", s))
    if readings and any(re.fullmatch(r"0\d+", piece.strip()) for piece in pieces):
        return readings  # 1,000 is not a list of 1 and 000
    items: list[Part] = []
    for piece in pieces:
        item = read_parts(piece, depth + 1)[0]
        items.extend(item.items if item.kind == "list" else (item,))
    words = {word for word in ("and", "or") if any(word in separator for separator in listed[1])}
    readings.append(Part("list", s, tuple(items), words.pop() if len(words) == 1 else ""))
    return readings


def _read_one(s: str, depth: int) -> Part:
    """Reads an answer that is not a list."""
    united = split_top(s, _CUP)
    if united is not None and len(united[0]) > 1:
        return Part("union", s, tuple(read_parts(piece, depth + 1)[0] for piece in united[0]))
    named = split_top(s, _EQUALS) if "=" in s else None
    if named is not None and len(named[0]) == 2 and (part := _named(named[0][0], named[0][1], depth)) is not None:
        return part
    matrix = _MATRIX.fullmatch(s)
    if matrix and "\\begin" not in matrix.group(1):
        return _matrix(s, matrix.group(3), matrix.group(1).strip())
    if (all_but := _ALL_BUT.fullmatch(s)) is not None:
        points = _read_one(all_but.group(1), depth + 1)
        return Part("except", s, points.items) if points.kind == "set" else Part("leaf", s)
    if s.startswith("\\{") and s.endswith("\\}"):
        inside = s[2:-2]
        if (builder := _BUILDER.fullmatch(inside.strip())) is not None:
            return read_parts(builder.group(2), depth + 1)[0]
        inner = split_top(inside, _SEPARATOR)
        if inner is not None:
            members: list[Part] = []
            for piece in inner[0]:
                member = read_parts(piece, depth + 1)[0]
                members.extend(member.items if member.kind == "list" else (member,) if piece.strip() else ())
            return Part("set", s, tuple(members))
    return _bracketed(s, depth)


def _bracketed(s: str, depth: int) -> Part:
    """Reads a tuple, an interval, a point with a label, or what is left: ± and single values."""
    opening = "\\langle" if s.startswith("\\langle") else s[:1]
    closing = "\\rangle" if s.endswith("\\rangle") else s[-1:]
    if opening and opening in ("(", "[", "\\langle") and closing in (")", "]", "\\rangle"):
        inner = split_top(s[len(opening) : len(s) - len(closing)], _COMMA)
        if inner is not None and len(inner[0]) > 1:
            items = tuple(read_parts(piece, depth + 1)[0] for piece in inner[0])
            ordered = opening == "\\langle" or (opening + closing == "[]" and len(items) > 2)
            return Part("tuple", s, items, "()" if ordered else opening + closing)
        if inner is not None and opening + closing in ("()", "[]") and s[1:-1].strip():
            # brackets around a single thing mean nothing, unless it is the letter of a choice, which `leaf` reads
            return read_parts(s[1:-1], depth + 1)[0] if len(s) > 3 else Part("leaf", s)
    if (label := _POINT_LABEL.match(s)) is not None and closing == ")":
        point = _bracketed(s[label.end() :], depth + 1)
        if point.kind == "tuple":
            return point
    if len(_PM.findall(s)) == 1:
        return Part("list", s, tuple(Part("leaf", _PM.sub(sign, s)) for sign in ("+", "-")))
    return Part("leaf", s)


def _named(name: str, value: str, depth: int) -> Part | None:
    """The value of `(x,y) = (1,2)` or `S = \\{1,2\\}`; None where the value is not a tuple, set, union or matrix."""
    name, value = name.strip(), value.strip()
    if not value.startswith(("(", "[", "\\{", "\\langle", "\\begin")) or depth > 4:
        return None
    part = read_parts(value, depth + 1)[0]
    if part.kind not in ("tuple", "set", "union", "matrix"):
        return None
    if _TUPLE_OF_NAMES.fullmatch(name):
        names = [each.strip() for each in name[1:-1].split(",")]
        if part.kind != "tuple" or len(names) != len(part.items):
            return None
        if depth == 0 and all(item.kind == "leaf" for item in part.items):
            pairs = zip(names, part.items, strict=True)
            return Part("list", value, tuple(Part("leaf", f"{each}={item.text}") for each, item in pairs))
        return part
    is_name = re.fullmatch(r"(?:\\text\{[^{}]*\}|\\?[a-zA-Z]+(?:_\{?\w+\}?)?'?)\s*(?:\([a-zA-Z]\))?", name)
    return part if is_name else None


def _matrix(s: str, body: str, factor: str) -> Part:
    """A matrix with the factor before it multiplied into each cell; a leaf where its rows differ in length."""
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
    factor = "-1" if factor == "-" else factor
    if "=" in factor:
        return Part("leaf", s)
    texts = [f"({factor})({cell.strip()})" if factor else cell.strip() for cell in cells]
    return Part("matrix", s, tuple(Part("leaf", text) for text in texts), str(width))
