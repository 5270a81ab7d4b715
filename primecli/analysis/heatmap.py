"""Values as colours, or as marks under the text where there are none; text in lines of a width."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

Rgb = tuple[int, int, int]

LEVELS = (0.1, 0.35, 0.7)  # shares of the scale from which a value is marked once, twice, thrice
MARKS = " -=≡", " +*#"  # under a text: below 0, above 0, by level
FAINTEST = 0.08  # share of the scale below which a value has no colour
CONTRAST = 0.9  # exponent of the share: lifts small values, which are most
NEWLINE = "⏎"
BLACK_FROM = 0.179  # luminance of a background on which black and white are read equally well


@dataclass(frozen=True, slots=True)
class Theme:
    """Backgrounds from the faintest to the strongest, below and above 0; orange and blue, which the colour-blind tell
    apart. They start near the terminal's own background, so that strong values stand out on it."""

    below: tuple[Rgb, Rgb]
    above: tuple[Rgb, Rgb]


THEMES = {
    "dark": Theme(((58, 40, 28), (255, 138, 48)), ((26, 42, 60), (84, 174, 255))),
    "light": Theme(((254, 240, 226), (214, 90, 10)), ((231, 241, 250), (30, 98, 176))),
}

# the sixteen colours that every terminal has, by level
BASIC = ("", "yellow", "black on yellow", "white on red"), ("", "cyan", "black on cyan", "white on blue")


def background() -> str:
    """`light` or `dark`, as COLORFGBG says, which some terminals set; dark where nothing does."""
    code = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return "light" if code in ("7", "15") else "dark"


def level(share: float) -> int:
    """-3 to 3: how often a value is marked. share: of the scale, -1 to 1.

    >>> [level(share) for share in (-0.9, -0.05, 0.2, 0.5)]
    [-3, 0, 1, 2]
    """
    depth = sum(abs(share) >= bound for bound in LEVELS)
    return depth if share > 0 else -depth


def mark(share: float) -> str:
    """The character that stands under a text of this value.

    >>> "".join(map(mark, (-1, -0.5, -0.2, 0, 0.2, 0.5, 1)))
    '≡=- +*#'
    """
    return MARKS[share > 0][abs(level(share))]


@dataclass(frozen=True, slots=True)
class Paint:
    """How values are shown. colors: `none`, `basic` (sixteen) or `full`."""

    colors: str
    theme: Theme

    def style(self, share: float) -> str:
        """The rich style of a text of this value; share: of the scale, -1 to 1."""
        if self.colors == "none":
            return ""
        if self.colors == "basic":
            return BASIC[share > 0][abs(level(share))]
        if abs(share) < FAINTEST:
            return ""
        faint, strong = self.theme.above if share > 0 else self.theme.below
        weight = min(abs(share), 1.0) ** CONTRAST
        red, green, blue = (round(low + weight * (high - low)) for low, high in zip(faint, strong, strict=True))
        letters = "#000000" if _luminance(red, green, blue) > BLACK_FROM else "#ffffff"
        return f"{letters} on #{red:02x}{green:02x}{blue:02x}"

    def strong(self, share: float) -> str:
        """The rich style of a bar, in the strongest colour of its side."""
        if self.colors == "none":
            return ""
        if self.colors == "basic":
            return "cyan" if share > 0 else "yellow"
        red, green, blue = (self.theme.above if share > 0 else self.theme.below)[1]
        return f"#{red:02x}{green:02x}{blue:02x}"


def _luminance(*channels: int) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2 defines it."""
    shares = [channel / 255 for channel in channels]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


Letter = tuple[str, float]  # a character and its value's share of the scale


def letters(texts: Sequence[str], shares: Iterable[float]) -> list[Letter]:
    """The characters of printable texts with the share of each text; a newline that has a colour is made visible."""
    found: list[Letter] = []
    for text, share in zip(texts, shares, strict=True):
        for letter in text:
            if letter == "\n" and abs(share) >= LEVELS[0]:
                found.append((NEWLINE, share))
            found.append((letter, share))
    return found


def wrap(found: Sequence[Letter], width: int) -> list[list[Letter]]:
    """Lines of at most `width` cells, of which a space may take the last.

    Broken at newlines but those at the end, behind a space where one is near, else anywhere.
    """
    from rich.cells import cell_len

    lines: list[list[Letter]] = [[]]
    used = 0
    last = max((place for place, (letter, _) in enumerate(found) if letter not in ("\n", NEWLINE)), default=-1)
    for number, (letter, share) in enumerate(found):
        if letter == "\n":
            if number < last:
                lines.append([])
                used = 0
            continue
        size = cell_len(letter)
        if used + size > width - (letter != " ") and lines[-1]:
            line = lines[-1]
            spaces = [place for place in range(len(line) // 2, len(line)) if line[place][0] == " "]
            cut = spaces[-1] + 1 if spaces else len(line)
            lines[-1], rest = line[:cut], line[cut:]
            lines.append(rest)
            used = cell_len("".join(part for part, _ in rest))
        lines[-1].append((letter, share))
        used += size
    return lines


def paint_lines(lines: Iterable[Sequence[Letter]], paint: Paint) -> Iterator[Text]:
    """Lines in colour; or each with a line of marks under it, where it has any."""
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
