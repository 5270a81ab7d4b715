from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.shards import schema
from tests.builders import rollouts, write_shards


def read(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capfd.readouterr()
    assert cli.run(["stats", *map(str, arguments), "--json"]) == 0
    return dict(json.loads(capfd.readouterr().out))


def two_sources(directory: Path, per_shard: int | None = None) -> Path:
    rows = rollouts(6, 4)
    for number, row in enumerate(rows):
        row[schema.DATA_SOURCE] = "easy" if number < 16 else "hard"
        row[schema.OUTCOME_REWARD] = float(number % 4 < (2 if number < 16 else 1))
        row[schema.VERDICT] = "correct" if row[schema.OUTCOME_REWARD] else "wrong"
        row[schema.PROCESS_REWARDS] = [0.5] * len(row[schema.RESPONSE_IDS])
    rows[-1][schema.OUTCOME_REWARD], rows[-1][schema.VERDICT] = None, "error"
    rows[0][schema.FINISH_REASON] = "length"
    return write_shards(directory, rows, per_shard=per_shard)


def test_by_data_source(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = read(capfd, two_sources(tmp_path / "a"))
    assert list(found) == ["all", "easy", "hard"]
    easy, hard, whole = found["easy"], found["hard"], found["all"]
    assert (easy["rollouts"], easy["groups"], easy["accuracy"]) == (16, 4, 0.5)
    assert (easy["pass@1"], easy["pass@2"], easy["pass@4"]) == (0.5, pytest.approx(5 / 6), 1)
    assert (hard["ungraded"], hard["accuracy"]) == (1, pytest.approx(2 / 7))
    assert whole["verdicts"] == {"wrong": 13, "correct": 10, "error": 1}
    assert whole["truncated"] == pytest.approx(1 / 24)
    lengths = [2 + (3 * group + index) % 5 for group in range(6) for index in range(4)]
    assert whole["length"]["mean"] == pytest.approx(sum(lengths) / 24)
    assert whole["process_reward"]["max"] == pytest.approx(0.5 * max(lengths))
    assert {"process_reward_right", "process_reward_wrong"} <= set(whole)


def test_sharding_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole, parts = (read(capfd, two_sources(tmp_path / name, size)) for name, size in (("a", None), ("b", 4)))
    assert whole == parts


def test_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = two_sources(tmp_path / "a")
    capfd.readouterr()
    assert cli.run(["stats", str(directory)]) == 0
    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert out.startswith("24 rollouts in 6 groups, 94 tokens\n")
    assert "1 without an outcome reward" in out
    assert ["hard", "0.286", "±", "0.041", "0.292", "0.583", "1.000", "0.0%", "100.0%", "0.0%"] in lines
    assert ["", "wrong", "correct", "error", "truncated"][1:] in lines
    assert ["tokens", "3.917", "2", "2", "3", "4", "5", "6", "6"] in lines
    assert max(map(len, out.splitlines())) <= 80


def test_no_number_is_cut_on_a_narrow_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = two_sources(tmp_path / "a")
    tables = []
    for columns in ("200", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        capfd.readouterr()
        assert cli.run(["stats", str(directory)]) == 0
        tables.append([line.split() for line in capfd.readouterr().out.splitlines()])
    assert tables[0] == tables[1]
    assert any("max" in line for line in tables[1])


def test_several_directories(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Shards of two iterations have the same names."""
    for number in (1, 2):
        two_sources(tmp_path / str(number) / "verify")
    found = read(capfd, tmp_path / "*" / "verify")
    assert (found["all"]["rollouts"], found["all"]["groups"]) == (48, 12)


def test_escape_sequences_do_not_reach_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path / "a", [*rollouts(1, 2, data_source="\x1b[31m[bold]"), *rollouts(2, 2)[2:]])
    capfd.readouterr()
    assert cli.run(["stats", str(tmp_path / "a")]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert "␛[31m[bold]" in out


def test_only_rollouts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = (schema.GROUP_ID, schema.RESPONSE_IDS)
    rows = [{name: row[name] for name in names} for row in rollouts(2, 2)]
    assert read(capfd, write_shards(tmp_path / "a", rows))["all"]["rollouts"] == 4
    assert cli.run(["stats", str(tmp_path / "nowhere")]) == 3
