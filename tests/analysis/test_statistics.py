from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primecli.analysis.statistics import describe, gather, mean_pass_at_k, quantiles
from primecli.pipeline.inputs import Inputs
from primecli.shards import schema
from tests.builders import rollouts, write_shards


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(samples: list[bool], k: int) -> None:
    ours = mean_pass_at_k(np.array([len(samples)]), np.array([sum(samples)]), k)
    draws = [any(drawn) for drawn in combinations(samples, k)]
    assert (ours and ours[0]) == (pytest.approx(np.mean(draws)) if draws else None)


def test_pass_at_k_is_the_mean_over_groups_with_enough_samples() -> None:
    graded, right = np.array([4, 2, 4]), np.array([4, 1, 0])
    value, error = mean_pass_at_k(graded, right, 1) or (0.0, 0.0)
    assert value == pytest.approx((1 + 0.5 + 0) / 3)
    assert error == pytest.approx(np.std([1, 0.5, 0], ddof=1) / 3**0.5)
    assert (mean_pass_at_k(graded, right, 4) or [0])[0] == 0.5
    assert mean_pass_at_k(graded, right, 5) is None


def test_quantiles_equal_those_of_numpy_without_nan() -> None:
    values = np.random.default_rng(0).normal(size=101)
    found = quantiles(np.append(values, np.nan))
    assert found["p25"] == np.quantile(values, 0.25)
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert found["mean"] == pytest.approx(values.mean())


def described(directory: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    return describe(gather(Inputs([str(write_shards(directory, rows))]), **options))


def test_the_error_of_the_accuracy_is_that_of_independent_groups(tmp_path: Path) -> None:
    """If all samples of a group are equal, four of them tell no more than one."""
    rows = rollouts(40, 4)
    outcomes = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    for number, row in enumerate(rows):
        row[schema.OUTCOME_REWARD] = outcomes[number // 4]
    found = described(tmp_path / "a", rows)
    assert found["accuracy"] == pytest.approx(outcomes.mean())
    assert found["standard_errors"]["accuracy"] == pytest.approx(outcomes.std(ddof=1) / 40**0.5)
    assert found["groups_right"] == pytest.approx({"none": 1 - outcomes.mean(), "some": 0, "all": outcomes.mean()})


def test_batches_of_a_shard_change_nothing(tmp_path: Path) -> None:
    """Batches cut through groups."""
    rows = rollouts(6, 4)
    assert described(tmp_path / "a", rows, batch_rows=3) == described(tmp_path / "a", rows)


def test_soft_rewards(tmp_path: Path) -> None:
    """Accuracy is the mean reward, as verify has it; right is a reward of 1."""
    found = described(tmp_path / "a", rollouts(6, 4, **{schema.OUTCOME_REWARD: 0.5}))
    assert (found["accuracy"], found["pass@1"], found["groups_right"]["none"]) == (0.5, 0, 1)


def test_statistics_without_a_column_are_left_out(tmp_path: Path) -> None:
    names = (schema.GROUP_ID, schema.RESPONSE_IDS)
    rows = [{name: row[name] for name in names} for row in rollouts(2, 2)]
    found = described(tmp_path / "a", rows)
    assert (found["rollouts"], found["groups"]) == (4, 2)
    assert set(found) == {"rollouts", "groups", "tokens", "length"}


def test_shards_of_different_stages_together(tmp_path: Path) -> None:
    bare = [{name: row[name] for name in (schema.GROUP_ID, schema.RESPONSE_IDS)} for row in rollouts(2, 2)]
    scored = rollouts(2, 2)
    for row in scored:
        row[schema.PROCESS_REWARDS] = [1.0] * len(row[schema.RESPONSE_IDS])
    places = [str(write_shards(tmp_path / name, rows)) for name, rows in (("a", bare), ("b", scored))]
    found = describe(gather(Inputs(places, together=True)))
    assert (found["rollouts"], found["ungraded"], found["accuracy"]) == (8, 0, 0.5)
    assert found["verdicts"] == {"correct": 2, "wrong": 2}
    assert found["length"]["max"] == found["process_reward"]["max"]
