from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli import cli
from primecli.analysis.audit import METRICS, SECTIONS
from primecli.models.token_text import Speller
from primecli.shards import schema
from tests.builders import rollout, rollouts, write_shards
from tests.conftest import read_rows, shell
from tests.test_cli import imported


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
    assert report["metrics"]["pair-accuracy"]["unit"] == "pairs"
    assert (report["metrics"]["pair-accuracy"]["items"], report["metrics"]["pair-accuracy"]["groups"]) == (80, 20)
    assert sum(part["items"] for part in report["calibration"]) == 80
    assert report["disagreements"] == []
    assert run("audit", tmp_path / "a") == 0
    out = capfd.readouterr().out
    assert re.search(r"pair-accuracy +1\.000 +0\.839 … 1\.000 +80 pairs +20\b", out)
    assert "ok     pair-accuracy is 1.000 (watch below 0.6, bad below 0.5)" in out
    assert "no response is degenerate or truncated or duplicate" in out


def test_a_reward_that_is_gamed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = scored(tmp_path / "a", sign=-1)
    (report,) = read(capfd, directory, "--top", 2)
    assert report["metrics"]["pair-accuracy"]["value"] == 0
    assert report["health"]["pair-accuracy"]["verdict"] == "bad"
    assert len(report["disagreements"]) == 2
    for found in report["disagreements"]:
        for which, outcome in (("wrong", 0.0), ("right", 1.0)):
            row = read_rows(Path(found[which]["shard"]))[found[which]["row"]]
            assert (row[schema.GROUP_ID], row[schema.OUTCOME_REWARD]) == (found["group_id"], outcome)
            assert sum(row[schema.PROCESS_REWARDS]) == pytest.approx(found[which]["score"])
        assert found["gap"] == found["wrong"]["score"] - found["right"]["score"]
        assert found["prompt"] == row[schema.PROMPT]
    assert run("audit", directory) == 0
    assert "bad    pair-accuracy is 0.000" in capfd.readouterr().out


def test_gates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = scored(tmp_path / "a", sign=-1)
    conditions = ("pair-accuracy<0.6", "truncation>0.5", " auc < 1e-1 ")
    assert run("audit", directory, *(word for text in conditions for word in ("--fail-on", text))) == 5
    captured = capfd.readouterr()
    assert captured.err.splitlines() == [
        "primecli audit: pair-accuracy is 0, below the bound 0.6",
        "primecli audit: auc is 0, below the bound 0.1",
    ]
    assert "pair-accuracy" in captured.out  # the report comes first
    assert run("audit", directory, "--fail-on", "pair-accuracy>0.6") == 0
    capfd.readouterr()
    for text, words in [
        ("pairs<1", "there is no metric pairs"),
        ("auc=1", "is not METRIC<VALUE"),
        ("auc<=1", "is not METRIC<VALUE"),
        ("auc<x", "is not METRIC<VALUE"),
        ("auc<nan", "with a finite number"),  # a comparison with nan is never true
        ("auc", "quote it, or the shell takes < and > for files"),
    ]:
        assert run("audit", directory, "--fail-on", text) == 2
        captured = capfd.readouterr()
        assert words in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out  # before anything is read


def test_a_gate_on_a_metric_that_cannot_be_computed_does_not_pass(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = rollouts(2, 2, outcome_reward=1.0)
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.0] * len(row[schema.RESPONSE_IDS])
    directory = write_shards(tmp_path / "a", rows)
    assert run("audit", directory, "--fail-on", "pair-accuracy<0.6") == 3
    assert "pair-accuracy cannot be computed, and --fail-on asks for pair-accuracy<0.6" in capfd.readouterr().err
    assert run("audit", directory, "--fail-on", "repeats-preferred>0") == 3
    assert "it needs a group that holds both such a response and another" in capfd.readouterr().err
    assert run("audit", directory, "--fail-on", "reward-right<1", "--fail-on", "pair-accuracy<0.6") == 5
    assert [line.split(" ")[2] for line in capfd.readouterr().err.splitlines()] == ["pair-accuracy", "reward-right"]


def test_several_directories_are_audited_separately(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directories = [scored(tmp_path / "1", sign=1), scored(tmp_path / "2", sign=-1)]
    reports = read(capfd, *directories)
    assert [report["input"] for report in reports] == [str(directory) for directory in directories]
    assert [report["metrics"]["pair-accuracy"]["value"] for report in reports] == [1, 0]
    assert run("audit", *directories, "--fail-on", "pair-accuracy<0.6") == 5
    assert capfd.readouterr().err == f"primecli audit: {directories[1]}: pair-accuracy is 0, below the bound 0.6\n"


def test_iterations_are_in_the_order_of_their_numbers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, sign in ((10, -1.0), (9, 1.0), (1, 1.0)):
        scored(tmp_path / "runs" / str(number) / "score-prm", sign=sign)
    quoted = tmp_path / "runs" / "*" / "score-prm"
    assert [Path(report["input"]).parts[-2] for report in read(capfd, quoted)] == ["1", "9", "10"]
    assert run("audit", quoted, "--top", 0) == 0
    out = capfd.readouterr().out
    assert re.search(r"^ metric +1 +9 +10 +change", out, flags=re.MULTILINE)
    assert re.search(r"^ pair-accuracy +1\.000 +1\.000 +0\.000 !! +-1\.000 \*", out, flags=re.MULTILINE)
    assert "bad    10: pair-accuracy is 0.000" in out
    assert "bad    9: pair-accuracy" not in out


def test_many_iterations_are_split_into_tables(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        scored(tmp_path / str(number) / "score-prm")
    monkeypatch.setenv("COLUMNS", "80")
    assert run("audit", tmp_path / "*" / "score-prm") == 0
    heads = [line.split()[1:] for line in capfd.readouterr().out.splitlines() if line.startswith(" metric ")]
    assert [head for line in heads for head in line] == [*map(str, range(12)), "change"]
    assert max(map(len, heads)) < 6


def test_a_narrow_terminal_cuts_no_number_short(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = scored(tmp_path / "a")
    monkeypatch.setenv("COLUMNS", "40")
    assert run("audit", directory, "--top", 0) == 0
    assert re.search(r"pair-accuracy +1\.000 +0\.839 … 1\.000 +80 pairs +20\b", capfd.readouterr().out)


def test_paths_come_through_the_pipe(tmp_path: Path) -> None:
    scored(tmp_path / "score-prm")
    done = shell("ls score-prm/*.parquet | primecli audit --json --top 0", tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["responses"] == 80
    assert shell("primecli audit score-prm | head -1", tmp_path).returncode == 0


def test_it_needs_no_torch(tmp_path: Path) -> None:
    modules = imported("audit", str(scored(tmp_path / "a")))
    assert "primecli.analysis.audit_view" in modules
    assert not {"torch", "transformers", "vllm"} & modules


def test_help_names_every_metric(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("audit", "--help") == 0
    words = capfd.readouterr().out.partition("explains each):")[2].partition("If a metric")[0].split()
    for heading in SECTIONS:
        words.remove(heading)
    assert words == list(METRICS)


def test_sharding_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (whole,), (parts,) = (
        read(capfd, scored(tmp_path / name, per_shard=size)) for name, size in (("a", None), ("b", 4))
    )
    for metric, found in whole["metrics"].items():
        assert parts["metrics"][metric] == pytest.approx(found, abs=1e-9)


def test_ungraded_rows_are_left_out_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(3, 4)
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.1] * len(row[schema.RESPONSE_IDS])
    rows[0][schema.OUTCOME_REWARD] = None
    assert run("audit", write_shards(tmp_path / "a", rows)) == 0
    assert "11 responses in 3 groups (1 without an outcome reward left out)\n" in capfd.readouterr().out
    for row in rows:
        row[schema.OUTCOME_REWARD] = None
    assert run("audit", write_shards(tmp_path / "b", rows)) == 3
    assert "no response has an outcome reward" in capfd.readouterr().err


def test_shards_that_were_not_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("audit", write_shards(tmp_path / "a", rollouts(2, 2))) == 3
    assert "lacks the column process_rewards (made by `primecli score-prm`)" in capfd.readouterr().err
    assert run("audit", tmp_path / "nowhere") == 3
    assert "no such file or directory" in capfd.readouterr().err


def test_how_often_the_last_step_is_the_lowest(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    def metric(directory: Path, *options: object) -> Any:
        (report,) = json.loads("\n".join(map(str, primecli("audit", directory, "--json", *options).paths)))
        return report["metrics"]["last-lowest"]["value"]

    ids = Speller(tiny).tokenizer.encode("a\nb\nc").ids
    rewards = [[0.5, 0.5, -1.0, 0.0, -2.0], [0.0, -2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 1.0, 0.0, 0.0]]
    given = [[1, 3, 4], [1, 3, 4], [4]]
    rows = [
        rollout(0, index, 3, response_ids=ids, rollout_logprobs=[0.0] * 5, process_rewards=rewards[index])
        for index in range(3)
    ]
    plain = write_shards(tmp_path / "plain", rows)
    steps = write_shards(tmp_path / "steps", [{**row, "step_ends": given[row["sample_index"]]} for row in rows])
    assert metric(plain) is None
    assert metric(steps) == 1 / 2  # the third response has one step
    assert metric(plain, "--step-separator", "\\n", "--tokenizer", tiny) == 1 / 3  # and here three, with a tie
    refused = primecli("audit", plain, "--fail-on", "last-lowest>0.9", check=False)
    assert (refused.code, "it needs responses of several steps: --step-separator" in refused.err) == (3, True)
    lost = primecli("audit", plain, "--step-separator", "\\n", check=False)
    assert (lost.code, "--step-separator needs the tokenizer" in lost.line()) == (3, True)
