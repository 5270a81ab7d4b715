from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli import schema
from tests.builders import rollout, rollouts, write_shards
from tests.conftest import read_rows, summary
from tests.core.reference import CASES, NAMES

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)


def shard_of(case: dict[str, Any], directory: Path, *, per_shard: int | None = None) -> Path:
    """A reference case as rollout shards: its process rewards and outcomes, in groups."""
    rows = []
    for row, length in enumerate(case["lengths"]):
        group, index = divmod(row, case["group_size"])
        rows.append(
            rollout(
                group,
                index,
                case["group_size"],
                response_ids=[1] * length,
                rollout_logprobs=[-1.0] * length,
                process_rewards=case["inputs"]["prm_minus_ref_logprobs"][row][:length],
                outcome_reward=case["inputs"]["outcome_reward"][row],
            )
        )
    return write_shards(directory, rows, per_shard=per_shard)


def check(directory: Path, column: str, expected: list[list[float]], tolerance: float = 1e-5) -> None:
    for row, reference in zip(read_rows(directory), expected, strict=True):
        ours = np.array(row[column])
        np.testing.assert_allclose(ours, reference[: len(ours)], atol=tolerance, rtol=1e-6)


@each_case
def test_the_papers_advantages_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    directory = shard_of(case, tmp_path / "score-prm")
    primecli("compute-advantages", directory, "--process-norm", "none", "--no-whiten")
    expected = case["expected"]["prime_paper_rloo"]["advantages_unwhitened"]
    check(tmp_path / "compute-advantages", schema.ADVANTAGES, expected)
    check(tmp_path / "compute-advantages", schema.RETURNS, expected)


@each_case
def test_the_recipes_advantages_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    expected = case["expected"]["prime_recipe_rloo"]
    directory = shard_of(case, tmp_path / "score-prm", per_shard=case["group_size"])
    options = ["--process-coef", expected["process_coef"], "--outcome-coef", expected["outcome_coef"]]
    primecli("compute-advantages", directory, *options, "--process-norm", "none", "--process-baseline", "recipe")
    check(tmp_path / "compute-advantages", schema.RETURNS, expected["returns"])
    check(tmp_path / "compute-advantages", schema.ADVANTAGES, expected["advantages_whitened"])


@each_case
def test_batch_scaling_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    """Advantages are linear in process rewards: with scaling they are those of the reference's scaled rewards."""
    scaled = {**case, "inputs": {**case["inputs"], "prm_minus_ref_logprobs": case["expected"]["process_norm_batch"]}}
    raw, ready = shard_of(case, tmp_path / "1" / "score-prm"), shard_of(scaled, tmp_path / "2" / "score-prm")
    primecli("compute-advantages", raw, "--no-whiten", "--process-norm", "batch")
    primecli("compute-advantages", ready, "--no-whiten", "--process-norm", "none")
    expected = [row[schema.RETURNS] for row in read_rows(tmp_path / "2" / "compute-advantages")]
    check(tmp_path / "1" / "compute-advantages", schema.RETURNS, expected)


@pytest.mark.parametrize("per_shard", [4, 8])
def test_sharding_changes_nothing(per_shard: int, tmp_path: Path, primecli: Any) -> None:
    case = CASES[0]
    whole = shard_of(case, tmp_path / "whole" / "score-prm")
    parts = shard_of(case, tmp_path / "parts" / "score-prm", per_shard=per_shard)
    for directory in (whole, parts):
        primecli("compute-advantages", directory)
    first, second = (read_rows(tmp_path / name / "compute-advantages") for name in ("whole", "parts"))
    assert [row[schema.ADVANTAGES] for row in first] == [row[schema.ADVANTAGES] for row in second]


def test_outcome_only_needs_no_process_rewards(tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "filter", rollouts(3, 4))
    primecli("compute-advantages", directory, "--process-coef", "0", "--no-whiten")
    rows = read_rows(tmp_path / "compute-advantages")
    assert rows[1][schema.ADVANTAGES] == pytest.approx([2 / 3] * len(rows[1][schema.RESPONSE_IDS]))
    failed = primecli("compute-advantages", directory, "--out", tmp_path / "x", check=False)
    assert failed.code == 3
    assert "lacks the column process_rewards (made by `primecli score-prm`)" in failed.line()


def test_an_ungraded_row_is_refused(tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(2, 2)
    rows[1][schema.OUTCOME_REWARD] = None
    result = primecli("compute-advantages", write_shards(tmp_path / "a", rows), "--process-coef", 0, check=False)
    assert (result.code, "outcome_reward is null in 1 rows" in result.line()) == (3, True)


def test_a_single_sample_has_no_baseline(tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "a", rollouts(2, 1))
    result = primecli("compute-advantages", directory, "--process-coef", 0, check=False)
    assert (result.code, "one response only" in result.line()) == (3, True)


def test_a_group_in_two_shards_is_refused(tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(2, 4)
    for row in rows:
        row.pop(schema.GROUP_SIZE)
        row[schema.SAMPLE_INDEX] %= 2
    directory = write_shards(tmp_path / "a", rows, per_shard=2)
    result = primecli("compute-advantages", directory, "--process-coef", 0, check=False)
    assert result.code == 3
    assert "group p0@0 stands in two shards" in result.line()


def test_values_that_are_not_finite_are_named(tmp_path: Path, primecli: Any) -> None:
    rows = [{**row, schema.PROCESS_REWARDS: [0.0] * len(row[schema.RESPONSE_IDS])} for row in rollouts(1, 3)]
    rows[2][schema.PROCESS_REWARDS][0] = float("nan")
    result = primecli("compute-advantages", write_shards(tmp_path / "a", rows), check=False)
    assert (result.code, "process_rewards is nan at row 2" in result.line()) == (3, True)
    assert summary(tmp_path / "compute-advantages")["status"] == "failed"
