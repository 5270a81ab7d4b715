"""Labels of responses and of steps: as numbers, and what the numbers of a file mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from primecli.generation.values import unwrapped

WORDS = {
    **dict.fromkeys(("true", "correct", "right", "yes", "good", "positive", "chosen", "+"), 1.0),
    **dict.fromkeys(("false", "incorrect", "wrong", "no", "bad", "negative", "rejected", "-"), 0.0),
}
"""Words that people label with, in lower case."""

RIGHT_STEP = 0.5  # of labels between 0 and 1: a step is wrong below it
LONGEST_SHOWN = 40  # characters of a label that is none


def as_score(value: Any) -> float | None:
    """A label as a number; None for null and NaN. A truth value is 1 or 0, and so are the WORDS.

    >>> as_score(True), as_score("0.5"), as_score("Incorrect"), as_score(None)
    (1.0, 0.5, 0.0, None)

    Raises ValueError, which says what it is, for what is no number.
    """
    value = unwrapped(value)
    if value is None:
        return None
    if isinstance(value, str):
        word = value.strip().lower()
        if word in WORDS:
            return WORDS[word]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{str(value)[:LONGEST_SHOWN]!r}, which is no label") from None
    if math.isinf(number):
        raise ValueError("infinite")
    return None if math.isnan(number) else number


@dataclass(frozen=True, slots=True)
class Scale:
    """The labels that stand for a wrong and for a right response.

    low, high: the two, such as -1 and 1.
    """

    low: float
    high: float

    def reward(self, label: float) -> float | None:
        """The outcome reward that a label stands for, within 0 and 1; None for a label that is outside the scale.

        >>> Scale(-1, 1).reward(0.5), Scale(1, 5).reward(6)
        (0.75, None)
        """
        reward = (label - self.low) / (self.high - self.low)
        return reward if 0 <= reward <= 1 else None


def scale_of(labels: Iterable[float | None]) -> Scale:
    """The scale of responses' labels: -1 to 1 where one of them is negative and all are within that, else 0 to 1."""
    known = [label for label in labels if label is not None]
    return Scale(-1, 1) if min(known, default=0) < 0 and all(-1 <= label <= 1 for label in known) else Scale(0, 1)


def first_wrong_step(labels: Sequence[float | None], steps: int, *, signed: bool) -> int | None:
    """The index of the first wrong step, -1 where all are right; None where the labels do not say.

    labels: of the steps, as far as they were labelled. signed: whether a step is wrong below 0, so that 0 is neutral,
    rather than below 0.5.

    >>> first_wrong_step([1, 0, -1], 3, signed=True), first_wrong_step([1, 0], 3, signed=False)
    (2, 1)
    >>> first_wrong_step([1, 1], 3, signed=False)
    """
    for index, label in enumerate(labels[:steps]):
        if label is None:
            return None
        if label < (0 if signed else RIGHT_STEP):
            return index
    return -1 if len(labels) == steps else None
