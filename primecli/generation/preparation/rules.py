"""Marks that the text of a prompt gives by itself. docs/data.md lists the rules in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

BEFORE_OPTION = r"(?:^|[^\pL\pN)}\]\\_])"  # not P(A), the probability of A
OPTIONS = (
    # (A) 3 (B) 4 (C) 5, in any mark-up
    rf"(?s){BEFORE_OPTION}\(\s*A\s*\).+?{BEFORE_OPTION}\(\s*B\s*\).+?{BEFORE_OPTION}\(\s*C\s*\)",
    # a line each: A. 3, A) 3 or A: 3
    r"(?m)^[\s*$]*A\s*[.):．、].*\S.*\n+[\s*$]*B\s*[.):．、].*\S.*\n+[\s*$]*C\s*[.):．、]",
    # in one line, up to D
    r"(?:^|\s)A[.)．、].+?\sB[.)．、].+?\sC[.)．、].+?\sD[.)．、]",
    r"(?i)\bwhich (?:one )?of the following\b",
)
FIGURES = (
    r"(?i)\b(?:in|from|using|see|to) (?:the|this) (?:figure|diagram|picture|drawing|illustration)s?\b",
    r"(?i)\b(?:figure|diagram|picture|image|graph|chart|illustration)s?,? "
    r"(?:shown|given|below|above|to the right|at right|on the right)\b",
    r"(?i)\b(?:shown|given|illustrated|pictured) (?:in|by|on) (?:the|this|a) "
    r"(?:(?:following|accompanying|adjacent|attached) )?(?:figure|diagram|picture|image|graph|chart)s?\b",
    r"(?i)\b(?:following|accompanying|adjacent|attached) (?:figure|diagram|picture|image|graph|chart)s?\b",
    r"!\[[^\]]*\]\(|<image|<img\b|\\includegraphics",
    "如图|下图",
)
DRAWN = r"\[asy\]|\\begin\{(?:asy|tikzpicture)\}"
"""The figure stands in the text as a program."""

PROOFS = (
    r"(?i)(?:^|[.!?:;,$]\s+|\n\s*|\b(?:and|then|to|\w\))\s+)(?:prove|disprove)\b",
    r"(?i)(?:^|[.!?:;,$]\s+|\n\s*|\b(?:and|then|\w\))\s+)(?:show|demonstrate|verify) that\b",
    "证明|求证",
)
ASKED = (
    r"(?i)\?|\b(?:find|determine|compute|calculate|evaluate|what|how many|how much|solve|simplify|express)\b|求[^证]"
)
"""A value is asked for as well."""


def any_of(texts: pa.ChunkedArray, patterns: tuple[str, ...]) -> np.ndarray:
    """(D,) bool: whether one of the patterns is found in each text."""
    import numpy as np
    import pyarrow.compute as pc

    found = np.zeros(len(texts), bool)
    for pattern in patterns:
        found |= np.asarray(pc.match_substring_regex(texts, pattern))
    return found


def multiple_choice(texts: pa.ChunkedArray) -> np.ndarray:
    """(D,) bool: whether options A, B, C are listed, or it is asked which of the following holds."""
    return any_of(texts, OPTIONS)


def needs_figure(texts: pa.ChunkedArray) -> np.ndarray:
    """(D,) bool: whether the text refers to a figure that it does not hold."""
    found: np.ndarray = any_of(texts, FIGURES) & ~any_of(texts, (DRAWN,))
    return found


def asks_for_proof(texts: pa.ChunkedArray) -> np.ndarray:
    """(D,) bool: whether a proof is asked for, and no value."""
    found: np.ndarray = any_of(texts, PROOFS) & ~any_of(texts, (ASKED,))
    return found
