from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from primecli.shards import schema
from tests.builders import rollout, write_shards
from tests.conftest import read_rows, summary


def graded(
    directory: Path, rewards: list[list[float | None]], *, per_shard: int = 1, cut: Collection[int] = ()
) -> Path:
    """One group for each list of rewards; each of the groups `cut` has truncated responses."""
    rows = [
        rollout(group, index, len(found), outcome_reward=reward, finish_reason="length" if group in cut else "stop")
        for group, found in enumerate(rewards)
        for index, reward in enumerate(found)
    ]
    return write_shards(directory, rows, per_shard=per_shard * len(rewards[0]))


def groups(directory: Path) -> list[str]:
    return list(dict.fromkeys(row[schema.PROMPT_ID] for row in read_rows(directory)))


FIVE = [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]


def test_the_bounds_are_inclusive(tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "verify", FIVE, per_shard=5)  # type: ignore[arg-type]
    primecli("filter", directory, "--accuracy", 0.2, 0.8)
    assert groups(tmp_path / "filter") == ["p1", "p2", "p4"]
    found = summary(tmp_path / "filter")
    assert (found["rows"], found["groups"]) == (15, 3)
    assert found["metrics"] == {
        "kept": 3, "ungraded": 0, "truncated": 0, "too_hard": 1, "too_easy": 1, "not_needed": 0,
    }  # fmt: skip


def test_ungraded_and_truncated_groups_are_dropped_whole(tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "verify", [[1, 0], [1, None], [0, 1]], per_shard=3, cut=(2,))
    primecli("filter", directory)
    assert groups(tmp_path / "filter") == ["p0"]
    primecli("filter", directory, "--allow-truncated", "--out", tmp_path / "all")
    assert groups(tmp_path / "all") == ["p0", "p2"]
    assert summary(tmp_path / "filter")["metrics"]["ungraded"] == 1
    assert summary(tmp_path / "filter")["metrics"]["truncated"] == 1


def test_groups_stops_when_full_and_a_rerun_skips(tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "verify", [[1, 0]] * 7, per_shard=2)
    first = primecli("filter", directory, "--groups", 3)
    assert groups(tmp_path / "filter") == ["p0", "p1", "p2"]
    assert [path.name[:14] for path in first.paths] == ["rollouts-00000", "rollouts-00001"]
    assert summary(tmp_path / "filter")["metrics"]["not_needed"] == 1
    stamps = [path.stat().st_mtime_ns for path in first.paths]
    again = primecli("filter", directory, "--groups", 3)
    assert again.paths == first.paths
    assert [path.stat().st_mtime_ns for path in again.paths] == stamps
    assert summary(tmp_path / "filter")["metrics"]["kept"] == 3


def test_a_shard_without_a_kept_group_is_not_written(tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "verify", [[1, 1], [1, 0]])
    result = primecli("filter", directory)
    assert [path.name for path in result.paths] == ["rollouts-00001-of-00002.parquet"]
    assert summary(tmp_path / "filter")["metrics"]["too_easy"] == 1


def test_a_warning_if_no_group_passes(tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "verify", [[1, 1], [1, 1]])
    assert "no group has passed: widen --accuracy" in primecli("filter", directory).err
    directory = graded(tmp_path / "ungraded" / "verify", [[None, None], [1, None]])
    assert "no group has passed: all are ungraded" in primecli("filter", directory).err


def test_a_warning_if_most_groups_are_cut_off(tmp_path: Path, primecli: Any) -> None:
    said = "groups are dropped, since a response was cut off at the length limit: raise --max-tokens of generate"
    for name, number, cut, expected in (
        ("all", 2, (0, 1), f"no group has passed: 2 of 2 {said}"),
        ("most", 3, (0, 2), f"filter: 2 of 3 {said}"),
    ):
        directory = graded(tmp_path / name / "verify", [[1, 0]] * number, cut=cut)
        assert expected in primecli("filter", directory, "--quiet").err
        kept = primecli("filter", directory, "--allow-truncated", "--out", tmp_path / name / "kept")
        assert "cut off" not in kept.err
    directory = graded(tmp_path / "half" / "verify", [[1, 0], [1, 0]], cut=(1,))
    assert "cut off" not in primecli("filter", directory).err


def test_a_note_if_there_are_too_few_groups(tmp_path: Path, primecli: Any) -> None:
    directory = graded(tmp_path / "verify", [[1, 1], [1, 0]])
    assert "the input ended after 1 of 4 groups" in primecli("filter", directory, "--groups", 4).err


@pytest.mark.parametrize("bounds", [(0.8, 0.2), (-0.1, 0.5), (0.5, 1.5)])
def test_impossible_bounds_are_usage_errors(bounds: tuple[float, float], tmp_path: Path, primecli: Any) -> None:
    result = primecli("filter", tmp_path, "--accuracy", *bounds, check=False)
    assert (result.code, "--accuracy" in result.line()) == (2, True)


def test_min_std_drops_groups_that_are_all_about_equally_good(tmp_path: Path, primecli: Any) -> None:
    rewards: list[list[float | None]] = [
        [0.5, 0.5, 0.5, 0.5],
        [0.5, 0.5, 0.6, 0.4],
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [0.7, 0.3, 0.7, 0.3],
    ]
    directory = graded(tmp_path / "verify", rewards, per_shard=5)
    primecli("filter", directory)
    assert groups(tmp_path / "filter") == ["p0", "p1", "p2", "p4"]
    assert "too_uniform" not in summary(tmp_path / "filter")["metrics"]
    primecli("filter", directory, "--min-std", 0.2, "--out", tmp_path / "varied")  # the last has exactly 0.2
    assert groups(tmp_path / "varied") == ["p2", "p4"]
    found = summary(tmp_path / "varied")["metrics"]
    assert (found["kept"], found["too_uniform"], found["too_easy"]) == (2, 2, 1)
    primecli("filter", directory, "--min-std", 0.21, "--out", tmp_path / "more")  # though 0.23 as of a sample
    assert groups(tmp_path / "more") == ["p2"]
    directory = graded(tmp_path / "same" / "verify", [[0.5, 0.5]])
    result = primecli("filter", directory, "--min-std", 0.1)
    assert "no group has passed: lower --min-std" in result.err


@pytest.mark.parametrize("value", [0, -1, 0.6])
def test_an_impossible_min_std_is_a_usage_error(value: float, tmp_path: Path, primecli: Any) -> None:
    result = primecli("filter", tmp_path, "--min-std", value, check=False)
    assert (result.code, "--min-std" in result.err) == (2, True)
