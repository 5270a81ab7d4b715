"""How the score by which a response is selected is made of its process rewards."""

from __future__ import annotations

from enum import StrEnum


class Select(StrEnum):
    """Over the steps of a response, each of which is the sum over its tokens."""

    sum = "sum"
    min = "min"
    mean = "mean"
    last = "last"
