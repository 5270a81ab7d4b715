"""The options of the optimizer: what contradicts itself, what goes into the recipe, the curve of the rate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from primecli.core.schedules import learning_rate
from primecli.errors import UsageError
from primecli.stages.update_critic import UpdateCriticOptions
from primecli.training.options import Schedule

CRITIC = UpdateCriticOptions(critic="model", checkpoint=Path("critic"), lr=1e-3)
FALLING: dict[str, Any] = {"schedule": Schedule.cosine, "total_steps": 100}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": Schedule.linear}, "--schedule linear needs --total-steps"),
        ({"total_steps": 9}, "--total-steps needs a learning rate that falls"),
        ({"min_lr": 1e-5}, "--min-lr needs a learning rate that falls"),
        ({**FALLING, "min_lr": 2e-3}, "--min-lr 0.002 is above --lr 0.001"),
        ({**FALLING, "warmup_steps": 100}, "--warmup-steps 100 leaves no step of --total-steps 100 to decay in"),
        ({"adam_betas": (0.9, 1.0)}, "--adam-betas 0.9 1: give two numbers"),
        ({"adam_betas": (-0.1, 0.9)}, "--adam-betas -0.1 0.9: give two numbers"),
        ({"adam_betas": (0.9, float("nan"))}, "--adam-betas 0.9 nan: give two numbers"),
        ({"no_decay_norms": True, "weight_decay": 0.0}, "--no-decay-norms needs a weight decay, and it is 0"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        replace(CRITIC, **given).check()
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {}),
        (FALLING, {"schedule": "cosine", "total_steps": 100, "min_lr": 0.0}),
        ({**FALLING, "min_lr": 1e-5}, {"schedule": "cosine", "total_steps": 100, "min_lr": 1e-5}),
        ({"adam_betas": (0.9, 0.95)}, {"adam_betas": [0.9, 0.95]}),
        ({"adam_eps": 1e-5}, {"adam_eps": 1e-5}),
        ({"no_decay_norms": True}, {"no_decay_norms": True}),
        ({"schedule": Schedule.constant, "adam_betas": (0.9, 0.999), "adam_eps": 1e-8}, {}),
    ],
)
def test_options_are_hashed_where_they_are_used(given: dict[str, Any], added: dict[str, Any]) -> None:
    options = replace(CRITIC, **given)
    options.check()
    assert options.recipe() == {**CRITIC.recipe(), **added}
    assert not set(added) & set(CRITIC.recipe())


def test_the_rate_is_that_of_the_options() -> None:
    options = replace(CRITIC, **FALLING, warmup_steps=10, min_lr=1e-5)
    expected = [
        learning_rate(step, 1e-3, warmup_steps=10, schedule="cosine", total_steps=100, min_lr=1e-5)
        for step in range(120)
    ]
    assert [options.learning_rate(step) for step in range(120)] == expected
    assert [CRITIC.learning_rate(step) for step in (0, 10**6)] == [1e-3, 1e-3]
