"""Finds the program in a response."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CODE_CHARS = 200_000
"""A longer program is garbage; reading it would cost more than it is worth."""

_FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^`\n]*$", re.MULTILINE)
_PYTHON = {"python", "python3", "py", "py3", "python2", "ipython"}


@dataclass(frozen=True, slots=True)
class Found:
    """text: the code. fenced: whether it stood in a block; else it is code only if it compiles."""

    text: str
    fenced: bool


def extract_code(response: str) -> Found | None:
    """The last ```python block, or the only block, or the whole text; None where that cannot be a program.

    A block that is not closed reaches to the end: the response was cut.

    >>> extract_code("Use\\n```python\\nprint(1)\\n```\\nor so.")
    Found(text='print(1)\\n', fenced=True)
    >>> extract_code("print(1)")
    Found(text='print(1)', fenced=False)
    """
    blocks = _blocks(response)
    labelled = [text for language, text in blocks if language.lower() in _PYTHON]
    if labelled:
        found = Found(labelled[-1], True)
    elif len(blocks) == 1:
        found = Found(blocks[0][1], True)
    elif not blocks:
        found = Found(response.strip("\r\n"), False)
    else:
        return None
    if not found.text.strip() or len(found.text) > MAX_CODE_CHARS:
        return None
    return found


def _blocks(response: str) -> list[tuple[str, str]]:
    """The fenced blocks in order: (language, text)."""
    blocks = []
    place = 0
    while opening := _FENCE.search(response, place):
        fence = opening["fence"]
        start = min(opening.end() + 1, len(response))
        closing = re.compile(rf"^[ \t]*{re.escape(fence)}{re.escape(fence[0])}*[ \t\r]*$", re.MULTILINE)
        end = closing.search(response, start)
        if end is None:  # some close a block at the end of its last line
            end = re.compile(rf"{re.escape(fence)}[ \t\r]*$", re.MULTILINE).search(response, start)
        stop, place = (end.start(), end.end()) if end else (len(response), len(response))
        blocks.append((opening["language"], response[start:stop].replace("\r\n", "\n")))
    return blocks
