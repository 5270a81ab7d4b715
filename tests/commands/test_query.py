from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from primecli import cli, schema
from tests.builders import rollouts, write_shards


def ask(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = cli.run(["query", *map(str, arguments)])
    out, err = capfd.readouterr()
    return code, out, err


def test_formats(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "verify", rollouts(2, 2), per_shard=2)
    columns = "verdict, count(*) AS n, max(tests_passed) AS none, list(sample_index ORDER BY sample_index) AS l"
    sql = f"SELECT {columns} FROM rollouts GROUP BY 1 ORDER BY 1"
    code, out, err = ask(capfd, directory, sql)
    assert (code, err) == (0, "2 rows\n")
    assert "NULL" in out
    code, out, _ = ask(capfd, directory, sql, "--format", "csv")
    assert out.splitlines()[:2] == ["verdict,n,none,l", 'correct,2,,"[0, 1]"']
    code, out, _ = ask(capfd, directory, sql, "--format", "json")
    assert json.loads(out.splitlines()[1]) == {"verdict": "wrong", "n": 2, "none": None, "l": [0, 1]}


def test_several_directories_and_where_a_row_is_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        write_shards(tmp_path / str(number) / "verify", rollouts(number, 2))
    sql = "SELECT filename, count(*), max(file_row_number) FROM rollouts GROUP BY 1 ORDER BY 1"
    code, out, _ = ask(capfd, tmp_path / "*" / "verify", sql, "--format", "csv")
    assert code == 0
    rows = [line.rsplit(",", 2)[1:] for line in out.splitlines()[1:]]
    assert rows == [["2", "1"], ["4", "3"]]


def test_columns_of_one_stage_are_null_where_it_has_not_been(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(1, 2)
    write_shards(tmp_path / "a", rows)
    scored = [{**row, schema.PROCESS_REWARDS: [1.0] * len(row[schema.RESPONSE_IDS])} for row in rows]
    write_shards(tmp_path / "b", scored)
    sql = "SELECT count(process_rewards) FROM rollouts"
    assert ask(capfd, tmp_path / "a", tmp_path / "b", sql, "--format", "csv")[1].split() == [
        "count(process_rewards)",
        "2",
    ]


def test_bad_input(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2))
    for arguments, code, words in [
        (
            (directory, "SELECT nothing FROM rollouts"),
            2,
            'the SQL does not work: Binder Error: Referenced column "nothing"',
        ),
        ((directory,), 2, "takes shards and, last, the SQL"),
        ((tmp_path / "nowhere", "SELECT 1"), 3, "no such file or directory"),
    ]:
        found, out, err = ask(capfd, *arguments)
        assert (found, out) == (code, "")
        assert words in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "duckdb", None)
    code, _, err = ask(capfd, directory, "SELECT 1")
    assert (code, "pip install 'primecli[duckdb]'" in err) == (1, True)


def test_what_a_model_wrote_does_not_reach_the_terminal_raw(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2, response="\x1b[31mred[bold]"))
    _, out, _ = ask(capfd, directory, "SELECT response FROM rollouts")
    assert "\x1b[31m" not in out
    assert "red[bold]" in out
