"""Values as colours, or as marks under the text where there are no colours; text in lines of a width."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

Rgb = tuple[int, int, int]

LEVELS = (0.1, 0.35, 0.7)  # shares of the scale from which a value has one mark, two, three
MARKS = " -=≡", " +*#"  # under a text: below 0, above 0, by level
FAINTEST = 0.08  # share of the scale below which a value has no colour
CONTRAST = 0.9  # exponent of the share: lifts small values, which are the most common
NEWLINE = "⏎"
BLACK_FROM = 0.179  # luminance of a background on which black and white are equally legible


class Theme(StrEnum):
    """The terminal's background; auto looks for it."""

    auto = "auto"
    dark = "dark"
    light = "light"


@dataclass(frozen=True, slots=True)
class Palette:
    """Backgrounds of text: orange below 0 and blue above, which colour-blind readers can tell apart.

    They start near the terminal's own background, so that strong values stand out on it.

    below: the faintest and the strongest for values below 0.
    above: the faintest and the strongest for values above 0.
    """

    below: tuple[Rgb, Rgb]
    above: tuple[Rgb, Rgb]


PALETTES = {
    Theme.dark: Palette(below=((58, 40, 28), (255, 138, 48)), above=((26, 42, 60), (84, 174, 255))),
    Theme.light: Palette(below=((254, 240, 226), (214, 90, 10)), above=((231, 241, 250), (30, 98, 176))),
}

# the sixteen colours that every terminal has, below and above 0, by level
BASIC = ("", "yellow", "black on yellow", "white on red"), ("", "cyan", "black on cyan", "white on blue")


def background() -> Theme:
    """The background that COLORFGBG names, which some terminals set; dark where nothing says."""
    code = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return Theme.light if code in ("7", "15") else Theme.dark


def level(share: float) -> int:
    """How often a value is marked, from -3 to 3. share: of the scale, -1 to 1.

    >>> [level(share) for share in (-0.9, -0.05, 0.2, 0.5)]
    [-3, 0, 1, 2]
    """
    depth = sum(abs(share) >= bound for bound in LEVELS)
    return depth if share > 0 else -depth


def mark(share: float) -> str:
    """The character under a text of this value. share: of the scale, -1 to 1.

    >>> "".join(map(mark, (-1, -0.5, -0.2, 0, 0.2, 0.5, 1)))
    '≡=- +*#'
    """
    return MARKS[share > 0][abs(level(share))]


@dataclass(frozen=True, slots=True)
class Paint:
    """How values are shown.

    colors: `none` for marks, `basic` for the sixteen colours, or `full`.
    palette: the colours of `full`.
    """

    colors: str
    palette: Palette

    def style(self, share: float) -> str:
        """The rich style of a text of this value. share: of the scale, -1 to 1."""
        if self.colors == "none":
            return ""
        if self.colors == "basic":
            return BASIC[share > 0][abs(level(share))]
        if abs(share) < FAINTEST:
            return ""
        faint, strong = self.palette.above if share > 0 else self.palette.below
        weight = min(abs(share), 1.0) ** CONTRAST
        red, green, blue = (round(low + weight * (high - low)) for low, high in zip(faint, strong, strict=True))
        letters = "#000000" if _luminance(red, green, blue) > BLACK_FROM else "#ffffff"
        return f"{letters} on #{red:02x}{green:02x}{blue:02x}"

    def strongest(self, share: float) -> str:
        """The rich style of a bar: the strongest colour of its side, whatever its size."""
        if self.colors == "none":
            return ""
        if self.colors == "basic":
            return "cyan" if share > 0 else "yellow"
        red, green, blue = (self.palette.above if share > 0 else self.palette.below)[1]
        return f"#{red:02x}{green:02x}{blue:02x}"


def _luminance(*channels: int) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it. channels: red, green and blue, 0 to 255."""
    shares = [channel / 255 for channel in channels]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


Letter = tuple[str, float]  # a character and its value's share of the scale


def letters(texts: Sequence[str], shares: Iterable[float]) -> list[Letter]:
    """The characters of printable texts with the share of each text; a newline that has a colour is made visible."""
    characters: list[Letter] = []
    for text, share in zip(texts, shares, strict=True):
        for letter in text:
            if letter == "\n" and abs(share) >= LEVELS[0]:
                characters.append((NEWLINE, share))
            characters.append((letter, share))
    return characters


def wrap(characters: Sequence[Letter], width: int) -> list[list[Letter]]:
    """Lines of at most `width` cells, of which a space may take the last.

    Lines break at newlines, except those at the end; else after a space where one is near, or anywhere.
    """
    from rich.cells import cell_len

    lines: list[list[Letter]] = [[]]
    used = 0  # cells of the last line
    end = max((index for index, (letter, _) in enumerate(characters) if letter not in ("\n", NEWLINE)), default=-1)
    for index, (letter, share) in enumerate(characters):
        if letter == "\n":
            if index < end:
                lines.append([])
                used = 0
            continue
        size = cell_len(letter)
        if used + size > width - (letter != " ") and lines[-1]:
            line = lines[-1]
            spaces = [position for position in range(len(line) // 2, len(line)) if line[position][0] == " "]
            cut = spaces[-1] + 1 if spaces else len(line)
            lines[-1], rest = line[:cut], line[cut:]
            lines.append(rest)
            used = cell_len("".join(part for part, _ in rest))
        lines[-1].append((letter, share))
        used += size
    return lines


def paint_lines(lines: Iterable[Sequence[Letter]], paint: Paint) -> Iterator[Text]:
    """Lines in colour; without colours, each line with its marks on a line below, where it has any."""
    from rich.cells import cell_len
    from rich.text import Text

    for line in lines:
        text = Text(no_wrap=True, end="")
        for share, run in groupby(line, key=lambda letter: letter[1]):
            text.append("".join(letter for letter, _ in run), style=paint.style(share))
        yield text
        if paint.colors == "none":
            marks = "".join(mark(share) * cell_len(letter) for letter, share in line).rstrip()
            if marks:
                yield Text(marks, no_wrap=True, end="")
