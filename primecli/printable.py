"""Text that others wrote, made harmless for a terminal: no escapes, no reordering, nothing that cannot be encoded.

Whatever goes to a terminal and may hold a name, a message or a value from a file passes through here. Standard library
only: every start of primecli waits for this file.
"""

from __future__ import annotations

REPLACEMENT = "\ufffd"  # stands for a character that has no picture


def printable(text: str) -> str:
    """The text with every character that could steer a terminal or reorder what it shows replaced, one for one.

    Control characters become their pictures, unusual spaces become a space, and whatever has no picture, halves of
    surrogate pairs among them, becomes U+FFFD; newlines stay.

    >>> printable("a\\x1b[31mb\\u202ec")
    'a␛[31mb\ufffdc'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _picture(letter) for letter in text)


def _picture(letter: str) -> str:
    if letter in "\t\u00a0" or (letter.isspace() and letter > "\u1000"):
        return " "
    if letter < " ":
        return chr(0x2400 + ord(letter))
    return "\u2421" if letter == "\x7f" else REPLACEMENT


def one_line(text: str) -> str:
    """The text on one line, harmless on a terminal: runs of white space become a space.

    >>> one_line("first\\n  second\\x1b[2J")
    'first second␛[2J'
    """
    return printable(" ".join(text.split()))


def clipped(line: str, most: int = 2000) -> str:
    """The line, its middle left out if it is longer than this; a message says what to do at its end.

    >>> clipped("0123456789" * 3, most=12)
    '01234567 … 6789'
    """
    kept = most // 3
    return line if len(line) <= most else f"{line[: most - kept]} … {line[-kept:]}"
