"""Learning rates equal those of torch's LambdaLR with transformers' schedules, and depend on the step alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from primecli.core.schedules import DECAYS, learning_rate

PEAK, WARMUP, TOTAL, LOWEST = 3e-4, 7, 40, 2e-5


def rates_of(schedule_for: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
    """The rates of an optimizer under a scheduler of torch, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))], lr=PEAK)
    scheduler = schedule_for(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


LENGTHS: dict[str, Any] = {"num_warmup_steps": WARMUP, "num_training_steps": TOTAL}
THEIRS = [
    ("constant", 0.0, partial(get_constant_schedule_with_warmup, num_warmup_steps=WARMUP)),
    ("linear", 0.0, partial(get_linear_schedule_with_warmup, **LENGTHS)),
    ("cosine", 0.0, partial(get_cosine_schedule_with_warmup, **LENGTHS)),
    ("cosine", LOWEST, partial(get_cosine_with_min_lr_schedule_with_warmup, **LENGTHS, min_lr=LOWEST)),
]


@pytest.mark.parametrize(("schedule", "lowest", "theirs"), THEIRS)
def test_rates_are_those_of_transformers(schedule: str, lowest: float, theirs: Any) -> None:
    """Whose warm-up starts at 0: it has our rate one step later. The decay starts at the same step."""
    settings: dict[str, Any] = {"schedule": schedule, "warmup_steps": WARMUP, "min_lr": lowest}
    settings |= {} if schedule == "constant" else {"total_steps": TOTAL}
    found = [learning_rate(step, PEAK, **settings) for step in range(TOTAL + 1)]
    expected = rates_of(theirs, TOTAL + 1)
    if lowest:
        floor = lowest / PEAK  # theirs starts the warm-up there
        assert found[:WARMUP] == pytest.approx([PEAK * (step + 1) / WARMUP for step in range(WARMUP)], rel=1e-14)
        assert expected[0] <= floor * PEAK + 1e-18
    else:
        assert found[:WARMUP] == pytest.approx(expected[1 : WARMUP + 1], rel=1e-14, abs=0)
    assert found[WARMUP:] == pytest.approx(expected[WARMUP:], rel=1e-12, abs=1e-19)


@pytest.mark.parametrize("schedule", DECAYS)
def test_rates_are_those_of_the_closed_form(schedule: str) -> None:
    for step in range(TOTAL + 5):
        if step < WARMUP:
            expected = PEAK * (step + 1) / WARMUP
        elif step >= TOTAL:
            expected = LOWEST
        else:
            over = (step - WARMUP) / (TOTAL - WARMUP)
            left = 1 - over if schedule == "linear" else math.cos(math.pi * over / 2) ** 2
            expected = LOWEST + (PEAK - LOWEST) * left
        found = learning_rate(step, PEAK, warmup_steps=WARMUP, schedule=schedule, total_steps=TOTAL, min_lr=LOWEST)
        assert found == pytest.approx(expected, rel=1e-13, abs=0)


@given(
    schedule=st.sampled_from(sorted(DECAYS)),
    total=st.integers(1, 10_000),
    warmup=st.floats(0, 0.999),
    peak=st.floats(1e-9, 1.0),
    share=st.floats(0, 1),
)
def test_rates_rise_to_the_peak_and_then_fall_to_the_lowest(
    schedule: str, total: int, warmup: float, peak: float, share: float
) -> None:
    settings: dict[str, Any] = {
        "warmup_steps": int(warmup * total),
        "schedule": schedule,
        "total_steps": total,
        "min_lr": share * peak,
    }
    turn = settings["warmup_steps"]
    around = sorted({0, 1, max(turn - 1, 0), turn, turn + 1, (turn + total) // 2, total - 1, total, total + 1})
    rates = {step: learning_rate(step, peak, **settings) for step in around}
    rising = [rate for step, rate in rates.items() if step < turn]
    falling = [rate for step, rate in rates.items() if step >= turn]
    assert rising == sorted(rising)
    assert all(later <= rate * (1 + 1e-12) for rate, later in itertools.pairwise(falling))
    assert rates[turn] == pytest.approx(peak, rel=1e-12)
    assert turn == 0 or rates[turn - 1] == pytest.approx(peak, rel=1e-12)
    assert rates[total] == rates[total + 1] == settings["min_lr"]
    assert all(rate >= settings["min_lr"] * (1 - 1e-12) for rate in falling)
