from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.statistics import Gathered, describe, pass_at_k, quantiles


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: list[bool], k: int) -> None:
    ours = pass_at_k(np.array([len(samples)]), np.array([sum(samples)]), k)
    draws = [any(drawn) for drawn in combinations(samples, k)]
    assert ours == (pytest.approx(np.mean(draws)) if draws else None)


def test_pass_at_k_is_a_mean_over_groups_that_have_so_many() -> None:
    graded, right = np.array([4, 2, 4]), np.array([4, 1, 0])
    assert pass_at_k(graded, right, 1) == pytest.approx((1 + 0.5 + 0) / 3)
    assert pass_at_k(graded, right, 4) == 0.5


def test_quantiles_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=101)
    found = quantiles(values)
    assert found["p25"] == np.quantile(values, 0.25)
    assert (found["min"], found["max"], found["mean"]) == (values.min(), values.max(), values.mean())


def test_what_is_not_there_is_not_described() -> None:
    bare = Gathered(lengths=[np.array([3, 5])], groups=[np.array([[2, 0, 0]])])
    found = describe(bare)
    assert (found["responses"], found["groups"], found["tokens"]) == (2, 1, 8)
    assert not {"accuracy", "pass@1", "verdicts", "process_reward"} & set(found)
