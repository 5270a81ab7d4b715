from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli import cli, schema
from tests.builders import rollouts, write_shards


def scored(directory: Path, *, seed: int = 0, sign: float = 1.0, per_shard: int | None = 8) -> Path:
    """Twenty groups of four whose scores follow the outcome, or its opposite."""
    generator = np.random.default_rng(seed)
    rows = rollouts(20, 4)
    for row in rows:
        length = len(row[schema.RESPONSE_IDS])
        level = sign * (row[schema.OUTCOME_REWARD] - 0.5) + 0.05 * generator.normal()
        row[schema.PROCESS_REWARDS] = [level / length] * length
    return write_shards(directory, rows, per_shard=per_shard)


def run(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


def read(capfd: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capfd.readouterr()
    assert run("audit", *arguments, "--json") == 0
    return list(json.loads(capfd.readouterr().out))


def test_a_reward_that_follows_the_outcome(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (report,) = read(capfd, scored(tmp_path / "a"))
    assert (report["responses"], report["groups"], report["ungraded"]) == (80, 20, 0)
    assert report["metrics"]["pair-accuracy"]["value"] == 1
    assert report["metrics"]["reward-right"]["value"] == pytest.approx(0.5, abs=0.02)
    assert report["disagreements"] == []
    assert run("audit", tmp_path / "a") == 0
    out = capfd.readouterr().out
    assert "pair-accuracy" in out
    assert "1.000" in out


def test_a_reward_that_is_gamed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = scored(tmp_path / "a", sign=-1)
    (report,) = read(capfd, directory, "--top", 2)
    assert report["metrics"]["pair-accuracy"]["value"] == 0
    assert report["health"]["pair-accuracy"] == "bad"
    assert len(report["disagreements"]) == 2
    wrong = report["disagreements"][0]["wrong"]
    assert Path(wrong["shard"]).exists()
    assert run("audit", directory) == 0
    assert "bad: pair-accuracy is 0" in capfd.readouterr().out


def test_gates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = scored(tmp_path / "a", sign=-1)
    assert run("audit", directory, "--fail-on", "pair-accuracy<0.6", "--fail-on", "truncation>0.5") == 5
    captured = capfd.readouterr()
    assert captured.err == "primecli audit: pair-accuracy is 0, below 0.6\n"
    assert "pair-accuracy" in captured.out  # the report comes first
    assert run("audit", directory, "--fail-on", "pair-accuracy>0.6") == 0
    capfd.readouterr()
    for text, words in [("pairs<1", "there is no metric pairs"), ("auc=1", "is not METRIC<VALUE"), ("auc<x", "is not")]:
        assert run("audit", directory, "--fail-on", text) == 2
        assert words in capfd.readouterr().err


def test_a_gate_that_cannot_be_told_does_not_pass(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(2, 2, outcome_reward=1.0)
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.0] * len(row[schema.RESPONSE_IDS])
    directory = write_shards(tmp_path / "a", rows)
    assert run("audit", directory, "--fail-on", "pair-accuracy<0.6") == 3
    assert "pair-accuracy cannot be computed" in capfd.readouterr().err


def test_several_directories_are_beside_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directories = [scored(tmp_path / "1", sign=1), scored(tmp_path / "2", sign=-1)]
    reports = read(capfd, *directories)
    assert [report["input"] for report in reports] == [str(directory) for directory in directories]
    assert [report["metrics"]["pair-accuracy"]["value"] for report in reports] == [1, 0]
    assert run("audit", *directories, "--fail-on", "pair-accuracy<0.6") == 5
    assert capfd.readouterr().err == f"primecli audit: {directories[1]}: pair-accuracy is 0, below 0.6\n"


def test_sharding_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (whole,), (parts,) = (
        read(capfd, scored(tmp_path / name, per_shard=size)) for name, size in (("a", None), ("b", 4))
    )
    for metric, found in whole["metrics"].items():
        assert parts["metrics"][metric] == pytest.approx(found, abs=1e-9)


def test_ungraded_rows_are_left_out_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(3, 4)
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.1] * len(row[schema.RESPONSE_IDS])
    rows[0][schema.OUTCOME_REWARD] = None
    assert run("audit", write_shards(tmp_path / "a", rows)) == 0
    assert "1 responses without an outcome reward were left out" in capfd.readouterr().out
    for row in rows:
        row[schema.OUTCOME_REWARD] = None
    assert run("audit", write_shards(tmp_path / "b", rows)) == 3
    assert "no response has an outcome reward" in capfd.readouterr().err


def test_shards_that_were_not_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("audit", write_shards(tmp_path / "a", rollouts(2, 2))) == 3
    assert "lacks the column process_rewards (made by `primecli score-prm`)" in capfd.readouterr().err
    assert run("audit", tmp_path / "nowhere") == 3
    assert "no such file or directory" in capfd.readouterr().err
