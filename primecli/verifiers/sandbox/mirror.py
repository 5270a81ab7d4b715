"""Does in the tests' process what the program did in its own: raises its exceptions, changes the arguments of calls."""

from __future__ import annotations

import builtins
import contextlib
from typing import Any


class ProgramError(Exception):
    """An exception of the program whose type is not a builtin."""


def exception(type_name: str, text: str, iterating: bool) -> Exception:
    """The exception of the program, of the same builtin type. iterating: whether an iterator of its raised it."""
    kind = getattr(builtins, type_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = ProgramError
    if issubclass(kind, StopIteration) and not iterating:
        kind = ProgramError  # otherwise `all(map(f, cases))` would end early and be true
    error: Exception = ProgramError(text)
    with contextlib.suppress(Exception):  # some types need more than a text, such as UnicodeDecodeError
        error = kind(text)
    with contextlib.suppress(Exception):
        error._of_the_program = True  # type: ignore[attr-defined]
    return error


def overwrite(original: Any, new: Any) -> None:
    """Makes a mutable argument equal to the program's copy of it; objects inside it stay the same objects."""
    if type(original) is not type(new) or original is new:
        return
    if isinstance(original, (list, tuple)):
        kept = list(original)
        for index, item in enumerate(new):
            if index < len(kept) and type(kept[index]) is type(item) and isinstance(item, (list, dict, set)):
                overwrite(kept[index], item)
            elif isinstance(original, list):
                kept[index : index + 1] = [item]
        if isinstance(original, list):
            original[:] = kept[: len(new)]
    elif isinstance(original, (dict, set)):
        original.clear()
        original.update(new)
    elif isinstance(original, bytearray):
        original[:] = new
    elif hasattr(original, "extend") and hasattr(original, "clear"):  # a deque
        original.clear()
        original.extend(new)


def is_mirrored(error: BaseException) -> bool:
    """Whether this is an exception of the program."""
    return getattr(error, "_of_the_program", False) is True
