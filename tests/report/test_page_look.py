"""How the report looks: themes, contrast, on a phone, in print, focus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def test_the_theme_follows_the_system_and_the_button(report: Path, browse: Any) -> None:
    def brightness(page: Any, name: str) -> float:
        colour = page.evaluate(f"getComputedStyle(document.body).{name}")
        return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3

    for scheme in ("light", "dark"):
        page = browse(report, color_scheme=scheme)
        bright = brightness(page, "backgroundColor") > brightness(page, "color")
        assert bright == (scheme == "light")
        page.click("#theme")
        assert (brightness(page, "backgroundColor") > brightness(page, "color")) != bright
        page.click("#theme")
        assert (brightness(page, "backgroundColor") > brightness(page, "color")) == bright


def test_coloured_tokens_are_legible(spelled: Path, browse: Any) -> None:
    """The contrast between text and the strongest colours, by WCAG's formula, which asks for at least 4.5."""
    script = """(name) => {
      const box = document.createElement('div');
      document.body.append(box);
      const resolve = (text) => {
        box.style.color = `var(--${text})`;
        return getComputedStyle(box).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
      };
      const linear = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
      const luminance = (rgb) => rgb.map((part) => linear(part / 255))
        .reduce((sum, part, channel) => sum + part * [0.2126, 0.7152, 0.0722][channel], 0);
      const [a, b] = [luminance(resolve('ink')), luminance(resolve(name))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    for scheme in ("light", "dark"):
        page = browse(spelled, color_scheme=scheme)
        for name in ("plus", "minus", "rare"):
            assert page.evaluate(script, name) >= 4.5, (scheme, name)


def test_on_a_phone_the_page_fits_and_a_rollout_fills_the_screen(spelled: Path, report: Path, browse: Any) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    for path in (report, spelled):
        page = browse(path, **phone)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.locator("#detail").is_visible()
    page.locator(".row").nth(1).tap()
    box = page.locator("#detail").bounding_box()
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 390, 844)
    page.locator(".tokens [data-token]").nth(3).tap()
    assert "token 4 of" in page.inner_text(".readout")
    page.get_by_role("button", name="List").tap()
    assert not page.locator("#detail").is_visible()


def test_in_print_charts_stay_and_are_light(report: Path, browse: Any) -> None:
    page = browse(report, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("header.top").is_visible()
    assert not page.locator("#list").is_visible()
    assert page.locator('[data-chart="accuracy"] svg.plot').is_visible()
    ink = page.evaluate("getComputedStyle(document.querySelector('h1')).color")
    assert max(int(part) for part in re.findall(r"\d+", ink)[:3]) < 90


def test_focus_is_visible(report: Path, browse: Any) -> None:
    page = browse(report)
    for _ in range(3):
        page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"
