from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from primecli.shards import schema
from tests.builders import rollout, rollouts, write_shards
from tests.conftest import read_rows, summary
from tests.core.reference import CASES, NAMES

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)


def shard_of(case: dict[str, Any], directory: Path, *, per_shard: int | None = None) -> Path:
    """A reference case as rollout shards, with its process rewards, outcomes and groups."""
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
    """Advantages are linear in the process rewards, so scaling gives those of the reference's scaled rewards."""
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
    assert (result.code, "only one response" in result.line()) == (3, True)


def test_a_group_in_two_shards_is_refused(tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(2, 4)
    for row in rows:
        row.pop(schema.GROUP_SIZE)
        row[schema.SAMPLE_INDEX] %= 2
    directory = write_shards(tmp_path / "a", rows, per_shard=2)
    result = primecli("compute-advantages", directory, "--process-coef", 0, check=False)
    assert result.code == 3
    assert "group p0@0 is in two shards" in result.line()


def test_values_that_are_not_finite_are_named(tmp_path: Path, primecli: Any) -> None:
    rows = [{**row, schema.PROCESS_REWARDS: [0.0] * len(row[schema.RESPONSE_IDS])} for row in rollouts(1, 3)]
    rows[2][schema.PROCESS_REWARDS][0] = float("nan")
    result = primecli("compute-advantages", write_shards(tmp_path / "a", rows), check=False)
    assert (result.code, "process_rewards is nan at row 2" in result.line()) == (3, True)
    assert summary(tmp_path / "compute-advantages")["status"] == "failed"


@each_case
@pytest.mark.parametrize(("estimator", "name"), [("rloo", "rloo_outcome"), ("grpo", "grpo_outcome")])
def test_outcome_estimators_through_the_command(
    case: dict[str, Any], estimator: str, name: str, tmp_path: Path, primecli: Any
) -> None:
    directory = shard_of(case, tmp_path / "score-prm")
    primecli("compute-advantages", directory, "--estimator", estimator, "--process-coef", 0, "--no-whiten")
    expected = case["expected"][name]
    expected = expected["advantages"] if isinstance(expected, dict) else expected
    check(tmp_path / "compute-advantages", schema.ADVANTAGES, expected)
    check(tmp_path / "compute-advantages", schema.OUTCOME_ADVANTAGES, expected)


@each_case
def test_gae_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    expected = case["expected"]["gae"]
    rows = read_rows(shard_of(case, tmp_path / "in"))
    for number, row in enumerate(rows):
        row[schema.VALUES] = case["inputs"]["values"][number][: case["lengths"][number]]
    directory = write_shards(tmp_path / "score-values", rows, per_shard=case["group_size"])
    options = ["--estimator", "gae", "--lam", expected["lam"], "--outcome-coef", 0, "--process-norm", "none"]
    primecli("compute-advantages", directory, *options)
    check(tmp_path / "compute-advantages", schema.ADVANTAGES, expected["advantages_whitened"])
    check(tmp_path / "compute-advantages", schema.RETURNS, expected["returns"])


@each_case
def test_whitening_through_the_command(case: dict[str, Any], tmp_path: Path, primecli: Any) -> None:
    """Without a baseline, rewards whose discounted sums are the case's advantages give its whitened advantages."""
    plain = {**case, "inputs": {**case["inputs"]}}
    rewards = [[here - after for here, after in zip(row, [*row[1:], 0.0], strict=True)] for row in cut_off(case)]
    plain["inputs"]["prm_minus_ref_logprobs"] = rewards
    options = ["--estimator", "reinforce", "--outcome-coef", 0, "--process-norm", "none"]
    primecli("compute-advantages", shard_of(plain, tmp_path / "score-prm"), *options)
    check(tmp_path / "compute-advantages", schema.ADVANTAGES, case["expected"]["whiten"])


def cut_off(case: dict[str, Any]) -> list[list[float]]:
    """The case's advantages, 0 after each response."""
    rows = zip(case["inputs"]["advantages"], case["lengths"], strict=True)
    return [[*row[:length], *[0.0] * (len(row) - length)] for row, length in rows]


@pytest.mark.parametrize("estimator", ["rloo", "reinforce", "grpo", "dr-grpo", "gae"])
def test_the_parts_add_up_and_their_shares_are_reported(estimator: str, tmp_path: Path, primecli: Any) -> None:
    rows = read_rows(shard_of(CASES[3], tmp_path / "in"))
    for number, row in enumerate(rows):
        row[schema.VALUES] = [0.1 * number] * len(row[schema.RESPONSE_IDS])
    directory = write_shards(tmp_path / "score-values", rows, per_shard=8)
    options = ["--estimator", estimator, "--outcome-coef", 0.5, "--process-coef", 2]
    primecli("compute-advantages", directory, *options)
    found = read_rows(tmp_path / "compute-advantages")
    columns = (schema.ADVANTAGES, schema.RETURNS, schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES)
    advantages, returns, outcome, process = (np.concatenate([row[name] for row in found]) for name in columns)
    assert advantages.mean() == pytest.approx(0, abs=1e-6)
    assert advantages.std(ddof=1) == pytest.approx(1, abs=1e-5)
    metrics = summary(tmp_path / "compute-advantages")["metrics"]
    for name, part in (("outcome", outcome), ("process", process)):
        share = np.cov(part, advantages, ddof=1)[0, 1] / advantages.var(ddof=1)
        assert metrics[f"{name}_variance_share"] == pytest.approx(share, abs=1e-5)
    if estimator != "gae":
        np.testing.assert_allclose(outcome + process - (outcome + process).mean(), advantages, atol=1e-5)
        assert metrics["outcome_variance_share"] + metrics["process_variance_share"] == pytest.approx(1, abs=1e-5)
        scale = returns.std(ddof=1)
        np.testing.assert_allclose((outcome + process) * scale, returns, atol=1e-4)


def spelled(directory: Path, texts: list[str], rewards: list[list[float]]) -> Path:
    """One group of these responses, one token per byte, with process rewards; the outcomes are 1, 0, 0, …"""
    rows = []
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for index, (text, given) in enumerate(zip(texts, rewards, strict=True)):
        ids = [alphabet.index("Ċ" if letter == "\n" else letter) for letter in text]
        made = {schema.RESPONSE_IDS: ids, schema.ROLLOUT_LOGPROBS: [-1.0] * len(ids), schema.PROCESS_REWARDS: given}
        rows.append(rollout(0, index, len(texts), outcome_reward=float(index == 0), **made))
    return write_shards(directory, rows)


def test_step_granularity(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = spelled(tmp_path / "score-prm", ["a\nbc", "xyz"], [[1, 2, 3, 4], [5, 6, 7]])
    options = ["--outcome-coef", 0, "--process-norm", "none", "--no-whiten", "--granularity", "step"]
    failed = primecli("compute-advantages", directory, *options, check=False)
    assert (failed.code, "name it with --tokenizer" in failed.line()) == (3, True)
    primecli("compute-advantages", directory, *options, "--tokenizer", tiny)
    first, second = (row[schema.ADVANTAGES] for row in read_rows(tmp_path / "compute-advantages"))
    # steps: 3 and 7, mean 5; 18. Minus the other's mean: -15, -11; 13. Summed from each token on.
    assert first == [-26.0, -26.0, -11.0, -11.0]
    assert second == [13.0, 13.0, 13.0]
    again = primecli(
        "compute-advantages", directory, *options, "--tokenizer", tiny, "--step-separator", "b", check=False
    )
    assert "step_separator was" in again.line()


def test_whole_granularity(tmp_path: Path, primecli: Any) -> None:
    directory = spelled(tmp_path / "score-prm", ["abc", "xy"], [[1, 2, 3], [5, 5]])
    options = ["--outcome-coef", 0, "--process-norm", "none", "--no-whiten", "--granularity", "whole"]
    primecli("compute-advantages", directory, *options)
    first, second = (row[schema.ADVANTAGES] for row in read_rows(tmp_path / "compute-advantages"))
    assert (first, second) == ([-4.0] * 3, [4.0] * 2)


def test_each_source_has_its_discount(tmp_path: Path, primecli: Any) -> None:
    directory = spelled(tmp_path / "score-prm", ["ab", "x"], [[0.25, 1.0], [0.0]])
    common = ["--estimator", "reinforce", "--process-norm", "none", "--no-whiten"]
    primecli("compute-advantages", directory, *common, "--outcome-gamma", 0.5, "--process-gamma", 0.25)
    first, _ = (row[schema.ADVANTAGES] for row in read_rows(tmp_path / "compute-advantages"))
    assert first == [0.5 + 0.25 + 0.25, 1 + 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--estimator", "gae", "--process-gamma", "0.9"], "needs a single discount"),
        (["--estimator", "grpo", "--process-baseline", "recipe"], "works with --estimator rloo"),
        (["--outcome-coef", "0", "--process-coef", "0"], "nothing is rewarded"),
    ],
)
def test_contradictory_options_are_refused(options: list[str], words: str, tmp_path: Path, primecli: Any) -> None:
    directory = spelled(tmp_path / "score-prm", ["ab", "x"], [[0.25, 1.0], [0.0]])
    result = primecli("compute-advantages", directory, *options, check=False)
    assert result.code == 2
    assert words in result.line()


def test_gae_needs_values(tmp_path: Path, primecli: Any) -> None:
    directory = spelled(tmp_path / "score-prm", ["ab", "x"], [[0.25, 1.0], [0.0]])
    result = primecli("compute-advantages", directory, "--estimator", "gae", check=False)
    assert (result.code, "lacks the column values (made by `primecli score-values`)" in result.line()) == (3, True)
