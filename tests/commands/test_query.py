from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.pipeline import pipe
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import shell


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
    assert (code, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["verdict", "n", "none", "l"],
        ["correct", "2", "NULL", "[0,", "1]"],
        ["wrong", "2", "NULL", "[0,", "1]"],
    ]
    code, out, _ = ask(capfd, directory, sql, "--format", "csv")
    assert out.splitlines()[:2] == ["verdict,n,none,l", 'correct,2,,"[0, 1]"']
    code, out, _ = ask(capfd, directory, sql, "--format", "json")
    assert json.loads(out.splitlines()[1]) == {"verdict": "wrong", "n": 2, "none": None, "l": [0, 1]}


def test_several_directories_and_the_file_of_each_row(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        write_shards(tmp_path / str(number) / "verify", rollouts(number, 2))
    sql = "SELECT filename, count(*), max(file_row_number) FROM rollouts GROUP BY 1 ORDER BY 1"
    code, out, _ = ask(capfd, tmp_path / "*" / "verify", sql, "--format", "csv")
    assert code == 0
    rows = [line.rsplit(",", 2)[1:] for line in out.splitlines()[1:]]
    assert rows == [["2", "1"], ["4", "3"]]


def test_a_column_that_some_shards_lack_is_null_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(1, 2)
    write_shards(tmp_path / "a", rows)
    scored = [{**row, schema.PROCESS_REWARDS: [1.0] * len(row[schema.RESPONSE_IDS])} for row in rows]
    write_shards(tmp_path / "b", scored)
    sql = "SELECT count(process_rewards) FROM rollouts"
    assert ask(capfd, tmp_path / "a", tmp_path / "b", sql, "--format", "csv")[1].split() == [
        "count(process_rewards)",
        "2",
    ]


def test_values_of_every_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2))
    values = (
        "'nan'::FLOAT AS f, 1.50::DECIMAL(4, 2) AS d, true AS b, [1.5, NULL] AS l, {'x': 'inf'::FLOAT} AS s, NULL AS n"
    )
    sql = f"SELECT {values}, 'a,\"b' AS t, DATE '2026-01-02' AS day, sum(group_size) AS h FROM rollouts"
    (line,) = ask(capfd, directory, sql, "--format", "json")[1].splitlines()
    expected = {"f": None, "d": 1.5, "b": True, "l": [1.5, None], "s": {"x": None}, "n": None}
    assert json.loads(line) == {**expected, "t": 'a,"b', "day": "2026-01-02", "h": 4}
    (_, row) = csv.reader(ask(capfd, directory, sql, "--format", "csv")[1].splitlines())
    assert row == ["nan", "1.50", "true", "[1.5, null]", '{"x": null}', "", 'a,"b', "2026-01-02", "4"]
    cells = ask(capfd, directory, sql)[1].splitlines()[1].split()
    assert cells[:3] == ["nan", "1.50", "True"]


def test_only_the_table_is_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2))
    _, out, err = ask(capfd, directory, "SELECT * FROM range(5000)")
    assert len(out.splitlines()) == 1 + 200
    assert "the table ends after 200 rows" in err
    assert len(ask(capfd, directory, "SELECT * FROM range(5000)", "--format", "csv")[1].splitlines()) == 1 + 5000


def test_paths_from_the_pipe_and_paths_that_look_like_globs(tmp_path: Path) -> None:
    place = tmp_path / "it's [1] *"
    write_shards(place, rollouts(2, 2), per_shard=2)
    write_shards(tmp_path / "it's 1 *", rollouts(2, 2))
    for command in (
        """primecli query "it's [1] *" 'SELECT count(*) FROM rollouts' --format csv""",
        """ls "it's [1] *"/*.parquet | primecli query 'SELECT count(*) FROM rollouts' --format csv""",
    ):
        result = shell(command, tmp_path)
        assert (result.stdout.split(), result.stderr) == (["count_star()", "4"], "")


def test_only_copy_writes_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2))
    before = sorted(tmp_path.rglob("*"))
    assert ask(capfd, directory, "SELECT count(*) FROM rollouts")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert ask(capfd, directory, f"COPY (SELECT verdict FROM rollouts) TO '{tmp_path}/v.csv'")[0] == 0
    assert (tmp_path / "v.csv").read_text().split() == ["verdict", "wrong", "correct"]


def test_bad_input(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2))
    monkeypatch.setattr(pipe, "stdin_is_terminal", lambda: True)
    for arguments, code, words in [
        (
            (directory, "SELECT nothing FROM rollouts"),
            2,
            'the query failed: Binder Error: Referenced column "nothing"',
        ),
        ((directory,), 2, "shards come first, the query last"),
        ((directory, "SELECT * FROM 'https://example.invalid/a.parquet'"), 2, "requires the extension httpfs"),
        (("SELECT 1 AS one",), 2, "no shards given"),
        ((tmp_path / "nowhere", "SELECT 1"), 3, "no such file or directory"),
    ]:
        found, out, err = ask(capfd, *arguments)
        assert (found, out) == (code, "")
        assert words in err
        assert len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "duckdb", None)
    code, _, err = ask(capfd, directory, "SELECT 1")
    assert (code, "(pip install duckdb)" in err) == (1, True)


def test_escape_sequences_do_not_reach_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2, response="\x1b[31mred[bold]"))
    _, out, _ = ask(capfd, directory, "SELECT response FROM rollouts")
    assert "\x1b[31m" not in out
    assert "red[bold]" in out


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{place}/new.csv'",
        "COPY (SELECT 1 AS a) TO '{shard}' (FORMAT parquet, USE_TMP_FILE false)",
        "SELECT 1; COPY (SELECT 1) TO '{place}/new.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{place}/new.csv'",
        "EXPORT DATABASE '{place}/new.csv'",
        "ATTACH '{place}/new.csv'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "CREATE TABLE t AS SELECT * FROM rollouts",
        "INSERT INTO rollouts SELECT * FROM rollouts",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('{other}')",
        "SELECT * FROM read_parquet('{other}')",
        "SELECT * FROM '{other}'",
        "SELECT * FROM read_parquet('{place}/[[]a/../b/*.parquet')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_csv('https://localhost/a.csv')",
        "WITH a AS (SELECT * FROM read_text('/etc/passwd')) SELECT * FROM a",
    ],
)
def test_read_only_refuses_everything_but_reading_the_shards(tmp_path: Path, capfd: Any, sql: str) -> None:
    directory = write_shards(tmp_path / "a", rollouts(2, 2))
    other = next(write_shards(tmp_path / "b", rollouts(1, 2)).glob("*"))
    shard = next(directory.glob("*"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    query = sql.format(place=tmp_path, shard=shard, other=other)
    code, out, err = ask(capfd, directory, query, "--read-only")
    assert (code, out) == (2, "")
    assert err.startswith("primecli query: ")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["a", "a [1]*", "a'b"])
@pytest.mark.parametrize("relative", [False, True])
def test_read_only_reads_the_shards(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, name: str, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = write_shards(tmp_path / name, rollouts(2, 2), per_shard=2)
    place = name if relative else directory
    sql = "WITH a AS (SELECT count(*) AS n, count(DISTINCT filename) AS f FROM rollouts) SELECT * FROM a ORDER BY n"
    assert ask(capfd, place, sql, "--read-only", "--format", "csv") == (0, "n,f\n4,2\n", "")


def test_a_pipe_is_no_shard(tmp_path: Path, capfd: Any) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    code, _, err = ask(capfd, tmp_path / "a.parquet", "SELECT 1 FROM rollouts")
    assert (code, "is a pipe, not a file" in err) == (3, True)
