"""Text and tables for a terminal: nothing that a file holds can steer it, and no number is cut short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from primecli.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

WIDEST_TABLE = 10_000  # columns that any table fits into


def safe_json(text: str) -> str:
    """JSON text in which the characters that `printable` replaces are escaped: the same JSON, safe on a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[start]:02x}{units[start + 1]:02x}" for start in range(0, len(units), 2))


def printable_text(text: str, style: str = "") -> Text:
    """What `printable` makes of a text, for rich to print without reading markup in it."""
    from rich.text import Text

    return Text(printable(text), style=style)


def plain_table() -> Table:
    """A table without lines: dim headings over columns that are two spaces apart."""
    from rich.table import Table

    return Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")


def print_in_full(console: Console, table: Table) -> None:
    """Prints a table at its full width: a narrower terminal folds its lines, and no number is cut short."""
    needed = console.measure(table, options=console.options.update(max_width=WIDEST_TABLE)).maximum
    width, console.width = console.width, max(console.width, needed)
    console.print(table)
    console.width = width
