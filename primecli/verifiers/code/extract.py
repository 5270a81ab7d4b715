"""Finds the program in a response."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_CODE_CHARS = 200_000
"""Longer programs are not run: no solution is that long, and reading one costs more than it is worth."""

# possessive throughout (*+): with backtracking, one long line after a fence takes quadratic time
_FENCE = re.compile(r"^[ \t]*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<language>[\w+#.-]*+)[^`\n]*+$", re.MULTILINE)
_PYTHON = {"python", "python3", "py", "py3", "python2", "ipython"}


@dataclass(frozen=True, slots=True)
class Program:
    """The program in a response.

    text: its source.
    fenced: whether it was in a fenced block. Other text is a program only if it compiles.
    """

    text: str
    fenced: bool


def extract_program(response: str) -> Program | None:
    """The last Python block, else the only block, else the whole text; None where that cannot be a program.

    A block that is not closed ends with the response, which was cut.

    >>> extract_program("Use\\n```python\\nprint(1)\\n```\\nor so.")
    Program(text='print(1)\\n', fenced=True)
    >>> extract_program("print(1)")
    Program(text='print(1)', fenced=False)
    """
    blocks = _blocks(response)
    labelled = [text for language, text in blocks if language.lower() in _PYTHON]
    if labelled:
        program = Program(labelled[-1], True)
    elif len(blocks) == 1:
        program = Program(blocks[0][1], True)
    elif not blocks:
        program = Program(response.strip("\r\n"), False)
    else:
        return None
    if not program.text.strip() or len(program.text) > MAX_CODE_CHARS:
        return None
    return program


def _blocks(response: str) -> list[tuple[str, str]]:
    """The fenced blocks in order, each as (language, text)."""
    blocks = []
    position = 0
    not_on_a_line: set[str] = set()  # fences that close no block from here on, and are not searched for again
    while opening := _FENCE.search(response, position):
        fence = opening["fence"]
        start = min(opening.end() + 1, len(response))
        closing = re.compile(rf"^[ \t]*{re.escape(fence)}{re.escape(fence[0])}*[ \t\r]*$", re.MULTILINE)
        end = None if fence in not_on_a_line else closing.search(response, start)
        if end is None:  # some models close a block at the end of its last line
            not_on_a_line.add(fence)
            end = re.compile(rf"{re.escape(fence)}[ \t\r]*$", re.MULTILINE).search(response, start)
        stop, position = (end.start(), end.end()) if end else (len(response), len(response))
        blocks.append((opening["language"], response[start:stop].replace("\r\n", "\n")))
    return blocks
