from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from primecli.analysis import heatmap
from primecli.analysis.heatmap import Theme


def luminance(red: int, green: int, blue: int) -> float:
    """WCAG's relative luminance."""
    curve = np.where(
        np.arange(256) <= 10, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
    )
    return float(np.dot([0.2126, 0.7152, 0.0722], curve[[red, green, blue]]))


@pytest.mark.parametrize("theme", list(heatmap.PALETTES))
def test_text_is_legible_on_every_shade(theme: Theme) -> None:
    """WCAG asks for a contrast of 4.5."""
    paint = heatmap.Paint("full", heatmap.PALETTES[theme])
    shades = []
    for share in [sign * number / 20 for sign in (-1, 1) for number in range(2, 21)]:
        text, background = (tuple(bytes.fromhex(code)) for code in re.findall(r"#(\w{6})", paint.style(share)))
        high, low = sorted((luminance(*text), luminance(*background)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, (share, text, background)
        shades.append(background)
    assert len(set(shades)) == len(shades)


def test_shades_leave_the_background_as_values_grow() -> None:
    """Strong values are bright on a dark terminal, and dark on a light one."""
    for theme, sign in ((Theme.dark, 1), (Theme.light, -1)):
        paint = heatmap.Paint("full", heatmap.PALETTES[theme])
        for side in (-1, 1):
            codes = [re.findall(r"on #(\w{6})", paint.style(side * number / 10))[0] for number in range(1, 11)]
            found = [sign * luminance(*bytes.fromhex(code)) for code in codes]
            assert found == sorted(found)


def test_values_near_0_have_no_colour() -> None:
    for colors in ("none", "basic", "full"):
        assert heatmap.Paint(colors, heatmap.PALETTES[Theme.dark]).style(0.05) == ""
    assert heatmap.Paint("basic", heatmap.PALETTES[Theme.dark]).style(-1) == "white on red"


def test_colorfgbg_tells_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in [("0;15", "light"), ("15;0", "dark"), ("15;default;0", "dark"), ("", "dark")]:
        monkeypatch.setenv("COLORFGBG", value)
        assert heatmap.background() == expected


def joined(lines: list[list[heatmap.Letter]]) -> list[str]:
    return ["".join(letter for letter, _ in line) for line in lines]


def test_lines_break_after_spaces() -> None:
    assert joined(heatmap.wrap(heatmap.letters(["one two three"], [0.0]), 8)) == ["one two ", "three"]
    assert joined(heatmap.wrap(heatmap.letters(["abcdefghij"], [0.0]), 6)) == ["abcde", "fghij"]
    assert joined(heatmap.wrap(heatmap.letters(["a\nb\n\n"], [0.0]), 9)) == ["a", "b"]
    assert joined(heatmap.wrap(heatmap.letters(["a", "\n", "b", "\n"], [0, 1, 0, -1]), 9)) == ["a⏎", "b⏎"]
    assert joined(heatmap.wrap([], 9)) == [""]


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from("ab 数🎉\n"), max_size=60), st.integers(4, 20))
def test_lines_hold_every_letter_and_fit(text: str, width: int) -> None:
    lines = joined(heatmap.wrap(heatmap.letters([text], [0.0]), width))
    assert "".join(lines) == text.replace("\n", "")
    assert max(cell_len(line) for line in lines) <= width


def test_marks_are_below_their_tokens() -> None:
    paint = heatmap.Paint("none", heatmap.PALETTES[Theme.dark])
    lines = heatmap.wrap(heatmap.letters(["ab", "数", "c", " d"], [-0.2, 1.0, 0.0, -0.5]), 20)
    assert [line.plain for line in heatmap.paint_lines(lines, paint)] == ["ab数c d", "--## =="]
    plain = heatmap.wrap(heatmap.letters(["ab"], [0.01]), 20)
    assert [line.plain for line in heatmap.paint_lines(plain, paint)] == ["ab"]
