"""The learning rate of each optimizer step. This does not import torch: options are checked without it."""

from __future__ import annotations

import math
from collections.abc import Callable

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""The share of the way from the lowest to the highest rate that is left, by the share of the decay that is over."""


def learning_rate(
    step: int,
    peak: float,
    *,
    warmup_steps: int = 0,
    schedule: str = "constant",
    total_steps: int | None = None,
    min_lr: float = 0.0,
) -> float:
    """The learning rate of an optimizer step: it depends on the step's number alone, not on where a process began.

    step: optimizer steps taken before, over the whole training. peak: the rate after the warm-up. warmup_steps: steps
    over which it rises in a straight line; the last of them has the peak. schedule: constant, or a name in `DECAYS`.
    total_steps: steps of the whole training, more than `warmup_steps`; the next one has `min_lr`, as all after it.

    Warm-up as in `get_cosine_with_min_lr_schedule_with_warmup_lr_rate` of transformers, decay as in its
    `get_cosine_with_min_lr_schedule_with_warmup`: the first step after the warm-up has the peak, too.

    >>> [learning_rate(step, 1.0, warmup_steps=2, schedule="linear", total_steps=6, min_lr=0.5) for step in range(8)]
    [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    assert total_steps is not None, "a rate that decays does so over a number of steps"
    if step >= total_steps:
        return min_lr
    left = DECAYS[schedule]((step - warmup_steps) / (total_steps - warmup_steps))
    return min_lr + (peak - min_lr) * left
