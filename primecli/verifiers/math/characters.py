"""Typographic and foreign characters, in ASCII and LaTeX."""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = {
    **dict.fromkeys("−–—‐‑‒﹣－", "-"),
    **dict.fromkeys("×·⋅∙", r"\cdot "),
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "π": r"\pi ",
    "√": r"\sqrt",
    "∞": r"\infty ",
    "≤": r"\leq ",
    "⩽": r"\leq ",
    "≥": r"\geq ",
    "⩾": r"\geq ",
    "≠": r"\neq ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "≦": r"\leq ",
    "≧": r"\geq ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "…": r"\ldots ",
    "⋯": r"\ldots ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^{\circ}",
    "º": r"^{\circ}",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "µ": r"\mu ",
    "ω": r"\omega ",
    "Ω": r"\Omega ",
    "φ": r"\phi ",
    "σ": r"\sigma ",
    "″": "''",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "′": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "€": "",
    "£": "",
    "¥": "",
    "₹": "",
    "¢": r"\text{ cents}",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
# Unicode categories: invisible characters, check marks and the like, and signs of currencies
_DROPPED = {"Cf", "Cc", "Co", "Cn", "So", "Sc"}


def plain_characters(text: str) -> str:
    """A text with its typographic characters and foreign digits in ASCII and LaTeX, and its invisible ones dropped.

    >>> plain_characters("−３\\u200b½")
    '-3\\\\frac{1}{2}'
    """
    if text.isascii():
        return text
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run.group().translate(_SUPERSCRIPTS) + "}", text)
    out = []
    for char in text:
        if char in _CHARACTERS:
            out.append(_CHARACTERS[char])
        elif char.isascii() or char.isspace():
            out.append(char)
        elif unicodedata.category(char) in _DROPPED:
            continue
        elif (digit := unicodedata.decimal(char, None)) is not None:
            out.append(str(digit))
        else:
            folded = unicodedata.normalize("NFKC", char)
            if "⁄" in folded:  # of ½ this makes 1⁄2; a \frac, because 2½ is not 21/2
                top, _, bottom = folded.partition("⁄")
                folded = f"\\frac{{{top}}}{{{bottom}}}" if bottom else folded
            out.append(folded)
    return "".join(out)
