"""Splits a normalised answer into lists, intervals, sets and matrices, down to single values.

Everything here works on strings and is linear in the length of its input, which the caller bounds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from primecli.verifiers.math.compound import is_compound
from primecli.verifiers.math.matrices import TRANSPOSED, has_matrix, read_matrix
from primecli.verifiers.math.normalize import COMMAND, squeeze, strip_braces

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

    kind: leaf (a single value), list (in any order), tuple (in this order; also an interval), set, union, matrix,
        except (all real numbers but the items), or cases (a piecewise function, whose items are lists of a value and
        the condition for it).
    text: the part as it was written.
    items: its own parts; the cells of a matrix row by row; none for a leaf.
    brackets: of a tuple its two brackets, such as "[)"; of a matrix the number of columns, such as "2"; of a list the
        word between its items, "and", "or" or "".
    name: the variable that lies in it, such as the x of `x \\in (1,2)`; of cases what they define, such as f(x); or "".
    """

    kind: str
    text: str
    items: tuple[Part, ...] = ()
    brackets: str = ""
    name: str = ""


_AND_OR = r"(?:\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*,?"
SEPARATOR = re.compile(rf"\s*[,;]\s*(?:{_AND_OR}\s*)?|\s*{_AND_OR}\s*")
_COMMA = re.compile(r"\s*[,;]\s*")
_EQUALS = re.compile("=")
_CUP = re.compile(r"\\cup(?![a-zA-Z])|\bU\b")
_CASES = re.compile(r"(?:([^=]{1,40})=\s*)?\\begin\{cases\}(.*)\\end\{cases\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\[[^\]]{0,12}\])?")
_CELL = re.compile("&")
# what joins a value and its condition where no & does
_IF = re.compile(r",?\s*\\text\{\s*,?\s*(?=(?:if|for|when|where|otherwise|else)\b)")
_RELATION = re.compile(r"[=<>]|\\(?:leq|geq|neq|in)(?![a-zA-Z])")
_SIGN = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
MAX_SIGNS = 3
"""Signs ± in one value, each of which may be + or -."""
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
# a number before a point or vector
_ARGUMENT = r"(?:\{[^{}]{1,40}(?:\{[^{}]{0,40}\}[^{}]{0,40})?\}|\d)"
_FACTOR = rf"(?:\d{{1,9}}(?:\.\d{{1,9}})?)?\s?(?:\\(?:frac|sqrt)\s*{_ARGUMENT}{{1,2}})?"
_SCALED = re.compile(rf"(-|-?(?=[\d\\]){_FACTOR})\s*(?:\\cdot\s*)?((?:\(|\\langle).*)", re.DOTALL)
_TUPLE_OF_NAMES = re.compile(r"\(\s*([a-zA-Z]|\\[a-z]+)(\s*,\s*(?:[a-zA-Z]|\\[a-z]+))+\s*\)")


def read_parts(s: str, depth: int = 0) -> list[Part]:
    """The ways to read a normalised answer, the likeliest first: `1,234` is a number, or else a list of two.

    >>> [part.kind for part in read_parts(r"(1,2) \\cup [3,4)")], read_parts("1,234")[1].items[1].text
    (['union'], '234')
    """
    if (member := _MEMBER.match(s.strip())) is not None and depth == 0:
        name = squeeze(member.group().split("\\in")[0])
        return [replace(part, name=name) for part in read_parts(s.strip()[member.end() :], 1)]
    s = strip_braces(_MEMBER.sub("", s.strip()))
    if depth > MAX_NESTING:
        return [Part("leaf", s)]
    if s.startswith("]") or s.endswith("["):  # the French notation for open intervals
        s = _REVERSED.sub(lambda m: ("[" if m[1] == "[" else "(") + m[2] + ("]" if m[3] == "]" else ")"), s)
    listed = split_top(s, SEPARATOR)
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


def with_variable_of(gold: str, answer: str) -> str:
    """The set `\\{y | y > 1\\}` with the variable of another such set: its name means nothing outside.

    >>> with_variable_of(r"\\{x | x > 1\\}", r"\\{y | y > 1\\}")
    '\\\\{x | x > 1\\\\}'
    """
    one, other = (_BUILDER.fullmatch(text[2:-2].strip()) for text in (gold, answer))
    if one is None or other is None or one.group(1) == other.group(1) or one.group(1) in other.group():
        return answer
    return re.sub(rf"(?<![a-zA-Z\\]){other.group(1)}(?![a-zA-Z])", one.group(1), answer)


def _read_one(s: str, depth: int) -> Part:
    """Reads an answer that is not a list."""
    united = split_top(s, _CUP)
    if united is not None and len(united[0]) > 1:
        return Part("union", s, tuple(read_parts(piece, depth + 1)[0] for piece in united[0]))
    named = split_top(s, _EQUALS) if "=" in s else None
    if named is not None and len(named[0]) == 2 and (part := _named(named[0][0], named[0][1], depth)) is not None:
        return part
    if (cases := _CASES.fullmatch(s)) is not None:
        return _cases(s, cases.group(2), squeeze(cases.group(1) or ""), depth)
    if has_matrix(s):
        rows = read_matrix(s)
        cells = [Part("leaf", cell) for row in rows for cell in row] if rows else []
        return Part("matrix", s, tuple(cells), str(len(rows[0]))) if rows else Part("leaf", s)
    if (all_but := _ALL_BUT.fullmatch(s)) is not None:
        points = _read_one(all_but.group(1), depth + 1)
        return Part("except", s, points.items) if points.kind == "set" else Part("leaf", s)
    if s.startswith("\\{") and s.endswith("\\}"):
        inside = s[2:-2]
        if (builder := _BUILDER.fullmatch(inside.strip())) is not None:
            return read_parts(builder.group(2), depth + 1)[0]
        inner = split_top(inside, SEPARATOR)
        if inner is not None:
            members: list[Part] = []
            for piece in inner[0]:
                member = read_parts(piece, depth + 1)[0]
                members.extend(member.items if member.kind == "list" else (member,) if piece.strip() else ())
            return Part("set", s, tuple(members))
    return _bracketed(s, depth)


def _bracketed(s: str, depth: int) -> Part:
    """Reads a tuple, an interval, a point with a label, or what is left: ± and single values."""
    transpose = TRANSPOSED.search(s)
    if transpose is not None and s[: transpose.start()].rstrip().endswith((")", "]")):
        s = s[: transpose.start()].rstrip()
    opening = "\\langle" if s.startswith("\\langle") else s[:1]
    closing = "\\rangle" if s.endswith("\\rangle") else s[-1:]
    if opening and opening in ("(", "[", "\\langle") and closing in (")", "]", "\\rangle"):
        inner = split_top(s[len(opening) : len(s) - len(closing)], _COMMA)
        if inner is not None and len(inner[0]) > 1:
            if opening + closing == "()" and len(_SIGN.findall(s)) == 1:  # (\pm 1, 0): two points
                points = (_bracketed(_SIGN.sub(sign, s), depth + 1) for sign in "+-")
                return Part("list", s, tuple(points), "or")
            items = tuple(read_parts(piece, depth + 1)[0] for piece in inner[0])
            ordered = opening == "\\langle" or (opening + closing == "[]" and len(items) > 2)
            return Part("tuple", s, items, "()" if ordered else opening + closing)
        if inner is not None and opening + closing in ("()", "[]") and s[1:-1].strip():
            # brackets around a single thing mean nothing, unless it is the letter of a choice, which `leaf` reads
            return read_parts(s[1:-1], depth + 1)[0] if len(s) > 3 else Part("leaf", s)
    if (scaled := _SCALED.fullmatch(s)) is not None and scaled.group(1):  # \\frac12 (1, 3)
        point = _bracketed(scaled.group(2), depth + 1)
        factor = "-1" if scaled.group(1) == "-" else scaled.group(1)
        if point.kind == "tuple" and point.brackets == "()" and all(item.kind == "leaf" for item in point.items):
            items = tuple(replace(item, text=f"({factor})({item.text})") for item in point.items)
            return replace(point, text=s, items=items)
    if (label := _POINT_LABEL.match(s)) is not None and closing == ")":
        point = _bracketed(s[label.end() :], depth + 1)
        if point.kind == "tuple":
            return point
    return _with_signs(s)


def _with_signs(s: str) -> Part:
    """A value with ± as the list of its values, else a leaf. Each ± is + or -; a ∓ goes with the ±."""
    signs = _SIGN.findall(s) if "\\pm" in s or "\\mp" in s else []
    if not signs or len(signs) > MAX_SIGNS:
        return Part("leaf", s)
    if "mp" in signs:
        choices = [{"pm": plus, "mp": minus} for plus, minus in ("+-", "-+")]
        texts = [_SIGN.sub(lambda sign, choice=choice: choice[sign.group(1)], s) for choice in choices]  # type: ignore[misc]
    else:
        texts = [s]
        for _ in signs:
            texts = [_SIGN.sub(sign, text, count=1) for text in texts for sign in "+-"]
    return Part("list", s, tuple(Part("leaf", text) for text in texts), "or")


def _named(name: str, value: str, depth: int) -> Part | None:
    """The value of `(x,y) = (1,2)` or `S = \\{1,2\\}`; None where the value is not a tuple, set, union or matrix."""
    name, value = name.strip(), value.strip()
    if not value.startswith(("(", "[", "\\{", "\\langle", "\\begin")) or depth > 4:
        return None
    part = read_parts(value, depth + 1)[0]
    if part.kind == "list" and part.brackets == "or" and _TUPLE_OF_NAMES.fullmatch(name):  # (x,y) = (\pm 1, 2)
        return part if all(item.kind == "tuple" and item.brackets == "()" for item in part.items) else None
    if part.kind not in ("tuple", "set", "union", "matrix"):
        return None
    if _TUPLE_OF_NAMES.fullmatch(name):
        names = [each.strip() for each in name[1:-1].split(",")]
        if part.kind != "tuple" or len(names) != len(part.items) or part.brackets != "()":
            return None
        if depth == 0 and all(item.kind == "leaf" for item in part.items):
            pairs = zip(names, part.items, strict=True)
            return Part("list", value, tuple(Part("leaf", f"{each}={item.text}") for each, item in pairs))
        return part
    is_name = re.fullmatch(r"(?:\\text\{[^{}]*\}|\\?[a-zA-Z]+(?:_\{?\w+\}?)?'?)\s*(?:\([a-zA-Z]\))?", name)
    return part if is_name else None


def _cases(s: str, body: str, name: str, depth: int) -> Part:
    """A piecewise function, or a system of equations as a list; a leaf where its rows cannot be told apart."""
    rows = split_top(body.strip(), _ROW)
    if rows is None or depth > 2:
        return Part("leaf", s)
    found: list[Part] = []
    for row in rows[0]:
        cells = split_top(row.strip().rstrip(".,;"), _CELL)
        if cells is None:
            return Part("leaf", s)
        value, *condition = cells[0]
        if not condition and (joined := _IF.search(row)) is not None:
            value, condition = row[: joined.start()], [row[joined.start() :]]
        elif not condition and (pair := split_top(row, _COMMA)) is not None and not _RELATION.search(pair[0][0]):
            value, condition = pair[0][0], [", ".join(pair[0][1:])]
        if row.strip():
            items = (read_parts(value.strip(" ,;"), depth + 1)[0], Part("leaf", " ".join(condition).strip(" ,;.")))
            found.append(Part("list", row, items))
    if not name and all(not row.items[1].text and "=" in row.text for row in found):
        return Part("list", s, tuple(row.items[0] for row in found), "and")
    return Part("cases", s, tuple(found), name=name) if found else Part("leaf", s)
