"""How the score by which a step is judged is made of its process rewards."""

from __future__ import annotations

from enum import StrEnum


class By(StrEnum):
    """The score of a step, in the unit of process rewards.

    prefix: the sum over all tokens up to its end, the protocol of Implicit PRM (arXiv 2412.01981).
    step: the sum over its own tokens.
    prefix_mean, step_mean: the mean over the same tokens.
    """

    prefix = "prefix"
    step = "step"
    prefix_mean = "prefix-mean"
    step_mean = "step-mean"
