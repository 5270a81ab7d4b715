"""What primecli reads back, JSON and TOML, as typed structures, so that no other code meets a value it cannot use.

A file is walked along the annotations of a dataclass or a TypedDict. What does not fit is an `InputError` that names
the file and the place in it, such as `provenance[3].stage: expected a text, found a number`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, Required, TypeVar, Union, overload

from primecli.errors import InputError
from primecli.files import read_bytes

T = TypeVar("T")

LARGEST_FILE = 256 << 20  # bytes; the record of a checkpoint after a thousand iterations has about 30 MB
DEEPEST = 64  # levels of arrays and objects; what the tools of this field write has fewer than 10
LARGEST_WHOLE = 2**63  # of a field that holds a whole number: what Arrow and NumPy can hold
LONGEST_NUMBER = 310  # digits, as many as the largest float has; Python needs quadratic time for longer ones
SHOWN_LETTERS = 60  # of a value or a key that a message shows


@overload
def read_json(path: Path, kind: type[T], hint: str | None = None) -> T: ...
@overload
def read_json(path: Path, kind: object, hint: str | None = None) -> Any: ...
def read_json(path: Path, kind: object, hint: str | None = None) -> Any:
    """The value of a JSON file as `kind`; see `parse_json`.

    Raises InputError, MissingFileError among them, for a file that cannot be read, is not UTF-8, not JSON, or has
    something else than `kind` says. hint: what to do about it.
    """
    return parse_json(read_bytes(path, LARGEST_FILE), kind, str(path), hint)


@overload
def parse_json(data: bytes | str, kind: type[T], source: str, hint: str | None = None) -> T: ...
@overload
def parse_json(data: bytes | str, kind: object, source: str, hint: str | None = None) -> Any: ...
def parse_json(data: bytes | str, kind: object, source: str, hint: str | None = None) -> Any:
    """The value of a JSON text as `kind`; see `typed`. source: what holds it, for the message of the InputError."""
    try:
        text = data if isinstance(data, str) else _decoded(data)
        value = json.loads(text, parse_int=_whole)
    except json.JSONDecodeError as error:
        what = f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})" if text.strip() else "is empty"
        raise InputError(f"{source}: {what}", hint) from None
    except _Misfit as error:
        raise InputError(f"{source}: {error.what}", hint) from None
    except RecursionError:
        raise InputError(f"{source}: is nested too deeply", hint) from None
    return typed(value, kind, source, hint)


def read_toml(path: Path, hint: str | None = None) -> dict[str, Any]:
    """The tables and values of a TOML file. Raises InputError where it cannot be read, is not UTF-8 or not TOML."""
    import tomllib

    try:
        return tomllib.loads(_decoded(read_bytes(path, LARGEST_FILE)).replace("\r\n", "\n"))
    except _Misfit as error:
        raise InputError(f"{path}: {error.what}", hint) from None
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply", hint) from None
    except ValueError as error:
        reason = "a number has too many digits" if "int_max_str_digits" in str(error) else error
        raise InputError(f"{path}: is not TOML: {reason}", hint) from None


@overload
def typed(value: object, kind: type[T], source: str, hint: str | None = None) -> T: ...
@overload
def typed(value: object, kind: object, source: str, hint: str | None = None) -> Any: ...
def typed(value: object, kind: object, source: str, hint: str | None = None) -> Any:
    """The value that JSON gave, as `kind`.

    kind: a dataclass, a TypedDict, str, int, float, bool, None, a Literal, a list, a tuple, a Mapping with keys of
    text, or a union of these. Any: what can be written as JSON again, so numbers are finite and texts are UTF-8.
    object: whatever JSON gave. Keys that a dataclass does not have are left out, since a newer version may have
    written them; a TypedDict keeps them. A str can be a path: it has no NUL. Nothing is nested deeper than DEEPEST.
    Raises InputError that names `source` and the place.

    >>> typed({"rows": 3}, dict[str, int], "a.json")
    {'rows': 3}
    >>> typed({"steps": [1, "2"]}, dict[str, list[int]], "a.json")
    Traceback (most recent call last):
    primecli.errors.InputError: a.json: steps[1]: expected a whole number, found a text
    """
    try:
        return _walk(value, kind, ())
    except _Misfit as error:
        where = _place(error.path)
        raise InputError(f"{source}: {where}{': ' if where else ''}{error.what}", hint) from None


class _Misfit(Exception):
    """Something does not fit. path: the keys and indices that lead to it."""

    def __init__(self, what: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(what)
        self.what = what
        self.path = path


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Misfit(f"is not UTF-8 (byte {data[error.start]:#04x} at position {error.start})") from None


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise _Misfit(f"holds a number of {len(text):,} digits")
    return int(text)


def _place(path: Sequence[str | int]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{_shown(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def _shown(text: str) -> str:
    """A key or value from a file for a message: without characters that steer a terminal, and not too long."""
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in text[: SHOWN_LETTERS + 1])
    return plain if len(plain) <= SHOWN_LETTERS else plain[:SHOWN_LETTERS] + "…"


def _name(value: object) -> str:
    """What a value is, in the words of a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number" if isinstance(value, int) or math.isfinite(value) else str(value)
        case str():
            return "a text"
        case list():
            return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _walk(value: object, kind: object, path: tuple[str | int, ...]) -> Any:
    if len(path) > DEEPEST:
        raise _Misfit(f"is nested more than {DEEPEST} levels deep", path[:3])
    if kind is Any:
        return _plain(value, path)
    if kind is object:
        return _free(value, path)
    if kind is None or kind is types.NoneType:
        return _expect(value is None, value, "null", path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Required, NotRequired):
        return _walk(value, arguments[0], path)
    if origin in (Union, types.UnionType):
        return _union(value, arguments, path)
    if origin is Literal:
        return _expect(value in arguments and type(value) in map(type, arguments), value, _choices(arguments), path)
    if isinstance(kind, type) and origin is None and (scalar := _SCALARS.get(kind)):
        return scalar(value, path)
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return _fields(value, kind, path)
    return _container(value, origin or kind, arguments, path)


def _expect(fits: bool, value: object, expected: str, path: tuple[str | int, ...]) -> Any:
    if not fits:
        raise _Misfit(f"expected {expected}, found {_name(value)}", path)
    return value


def _choices(arguments: Sequence[object]) -> str:
    return "one of " + ", ".join(map(str, arguments)) if len(arguments) > 1 else str(arguments[0])


def _text(value: object, path: tuple[str | int, ...]) -> str:
    if not isinstance(value, str):
        raise _Misfit(f"expected a text, found {_name(value)}", path)
    if "\0" in value:
        raise _Misfit("a text with a NUL in it", path)
    _check_letters(value, path)
    return value


def _check_letters(text: str, path: tuple[str | int, ...]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Misfit("a text with half of a surrogate pair in it, which is no character", path) from None


def _integer(value: object, path: tuple[str | int, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Misfit(f"expected a whole number, found {value if isinstance(value, float) else _name(value)}", path)
    if abs(value) >= LARGEST_WHOLE:
        raise _Misfit(f"a number of {len(str(abs(value)))} digits, which is too large", path)
    return value


def _number(value: object, path: tuple[str | int, ...]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Misfit(f"expected a number, found {_name(value)}", path)
    return _finite(value, path)


def _finite(value: float, path: tuple[str | int, ...]) -> float:
    """The number itself, so that a whole one stays whole."""
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        finite = False
    if not finite:
        found = f"{value}" if isinstance(value, float) else f"one of {len(str(abs(value)))} digits"
        raise _Misfit(f"expected a finite number, found {found}", path)
    return value


def _truth(value: object, path: tuple[str | int, ...]) -> bool:
    if not isinstance(value, bool):
        raise _Misfit(f"expected true or false, found {_name(value)}", path)
    return value


_SCALARS: dict[type, Any] = {str: _text, int: _integer, float: _number, bool: _truth}


def _union(value: object, kinds: Sequence[object], path: tuple[str | int, ...]) -> Any:
    """The value as the first of the kinds that it fits; if it fits none, the error of the one that came furthest."""
    furthest: _Misfit | None = None
    for kind in kinds:
        try:
            return _walk(value, kind, path)
        except _Misfit as error:
            if furthest is None or len(error.path) > len(furthest.path):
                furthest = error
    assert furthest is not None, "a union has members"
    raise furthest


def _free(value: object, path: tuple[str | int, ...]) -> Any:
    """Any value at all, if it is not nested too deeply."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _walk(item, object, (*path, key))
    return value


def _plain(value: object, path: tuple[str | int, ...]) -> Any:
    """Any value that can be written as JSON again: texts of whole characters, and finite numbers."""
    match value:
        case str():
            _check_letters(value, path)
        case bool() | None:
            pass
        case int() | float():
            _finite(value, path)
        case list():
            for index, item in enumerate(value):
                _walk(item, Any, (*path, index))
        case dict():
            for key, item in value.items():
                _check_letters(key, path)
                _walk(item, Any, (*path, key))
        case _:
            raise _Misfit(f"expected a value of JSON, found {_name(value)}", path)
    return value


def _container(value: object, origin: object, arguments: Sequence[object], path: tuple[str | int, ...]) -> Any:
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        fits = isinstance(value, list) and len(value) == len(arguments)
        items = _expect(fits, value, f"a list of {len(arguments)}", path)
        return tuple(_walk(item, arguments[index], (*path, index)) for index, item in enumerate(items))
    kind = arguments[-2 if origin is tuple else -1] if arguments else Any
    if isinstance(origin, type) and issubclass(origin, Mapping):
        pairs = _expect(isinstance(value, dict), value, "an object", path).items()
        return {_text(key, path): _walk(item, kind, (*path, key)) for key, item in pairs}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        items = _expect(isinstance(value, list), value, "a list", path)
        walked = [_walk(item, kind, (*path, index)) for index, item in enumerate(items)]
        return tuple(walked) if origin is tuple else walked
    raise TypeError(f"no structure is read as {origin}")


class _Field(NamedTuple):
    kind: object
    required: bool


@functools.cache
def _fields_of(kind: Any) -> dict[str, _Field]:
    """The fields of a dataclass or TypedDict by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if typing.is_typeddict(kind):
        return {name: _Field(hint, _is_required(kind, name, hint)) for name, hint in hints.items()}
    missing = dataclasses.MISSING
    return {
        field.name: _Field(hints[field.name], field.default is missing and field.default_factory is missing)
        for field in dataclasses.fields(kind)
    }


def _is_required(kind: Any, name: str, hint: object) -> bool:
    """Whether a TypedDict needs a key; where annotations are text, Python 3.11 overlooks Required in them."""
    origin = typing.get_origin(hint)
    return origin is Required or (origin is not NotRequired and name in kind.__required_keys__)


def _fields(value: object, kind: Any, path: tuple[str | int, ...]) -> Any:
    given = _expect(isinstance(value, dict), value, "an object", path)
    fields = _fields_of(kind)
    lacking = [name for name, field in fields.items() if field.required and name not in given]
    if lacking:
        raise _Misfit(f"lacks {', '.join(lacking)}", path)
    known = {name: _walk(given[name], field.kind, (*path, name)) for name, field in fields.items() if name in given}
    if not typing.is_typeddict(kind):
        return kind(**known)
    return {key: known[key] if key in known else _walk(item, Any, (*path, key)) for key, item in given.items()}
