from __future__ import annotations

import pytest

from primecli.core.overlong import overlong_penalty
from tests.core.reference_2 import CASES_2


def test_the_penalty_is_that_of_public_implementations() -> None:
    expected = CASES_2[0]["expected"]["soft_overlong"]
    limit, buffer = expected["max_length"], expected["buffer"]
    found = [overlong_penalty(length, limit, buffer) for length in expected["lengths"]]
    assert [-penalty for penalty in found] == pytest.approx(expected["trl"])
    # verl's has a weight, and goes on beyond the limit
    factor = expected["verl_penalty_factor"]
    for length, penalty, other in zip(expected["lengths"], found, expected["verl"], strict=True):
        assert length > limit or -factor * penalty == pytest.approx(other)
