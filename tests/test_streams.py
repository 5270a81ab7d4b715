"""What a process makes of closed and full standard streams, of a signal, and of odd arguments and paths."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.shards.parquet import read_footer
from tests.builders import rollouts, write_shards
from tests.conftest import shell
from tests.made_runs import write_summary

NAME = "rollouts-00000-of-00001.parquet"
LONG = "x" * 300


def test_a_closed_or_full_stream_takes_no_words_and_changes_no_exit_code(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", rollouts(2, 2))
    script = """
        primecli stats nothing 2>&- | wc -c || echo "${PIPESTATUS[0]}"
        primecli filter a --accuracy 0 1 --out b <&- 2>&-
        primecli filter a --accuracy 0 1 --out c <&- >&- 2>&-; ls c
        primecli filter a --accuracy 0 1 --out d 2>/dev/full
    """
    result = shell(script, tmp_path)
    assert result.stdout.split() == ["0", "3", f"b/{NAME}", "_summary.json", NAME, f"d/{NAME}"]
    assert (result.returncode, result.stderr) == (0, "")


def test_an_ignored_hangup_stays_ignored(primecli: Any, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        primecli("stats", write_shards(tmp_path / "a", rollouts(1, 2)))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["stats", "a\udcff"], 2, "a\ufffd: has bytes that are not UTF-8"),
        (["filter", "a", "--accuracy", "0", "1", "--out", "\udcff"], 2, "\ufffd: has bytes that are not UTF-8"),
        (["\udcff"], 2, "\ufffd: has bytes that are not UTF-8"),
        (["stats", "bad"], 3, "bad/x\ufffd.parquet: its name has bytes that are not UTF-8"),
        (["filter", "bad", "--accuracy", "0", "1"], 3, "bad/x\ufffd.parquet: its name has bytes that are not UTF-8"),
        (["query", "bad", "SELECT 1 FROM rollouts"], 3, "bad/x\ufffd.parquet: its name has bytes that are not UTF-8"),
        (["stats", LONG], 3, f"{LONG}: no such file or directory"),
        (["stats", "a", "--config", LONG], 2, f"{LONG}: cannot be read: File name too long"),
        (["lineage", "a", "--diff", LONG], 3, "another tool made it"),
        (["filter", "a", "--accuracy", "0", "1", "--out", LONG], 1, f"cannot make the directory {LONG}: File name too"),
        (["report", LONG], 3, f"{LONG}: no such file or directory"),
        (["watch", LONG, "--once"], 3, f"{LONG}: no such directory"),
        (["report", "run", "--out", LONG], 1, f"{LONG}: File name too long"),
        (["init", LONG], 1, f"{LONG}: File name too long"),
        (["update-prm", "--prm", LONG, "--ref", "a", "--checkpoint", "c", "a"], 3, f"{LONG}: no such model directory"),
        (["update-prm", "--prm", "a", "--ref", "a", "--checkpoint", "/", "a"], 2, "--checkpoint /: has no name"),
        (["update-prm", "--prm", "a", "--ref", "a", "--checkpoint", "a/..", "a"], 2, "--checkpoint a/..: has no name"),
        (["stats", "fifo"], 3, "fifo: is a pipe, not a file"),
        (["stats", "/dev/zero"], 3, "/dev/zero: is a device, not a file"),
        (["filter", "fifo", "--accuracy", "0", "1"], 3, "fifo: is a pipe, not a file"),
        (["stats", "/dev/null", "--config", "/dev/null"], 3, "/dev/null: is empty (0 bytes)"),
        (["stats", "a", "--config", "fifo"], 2, "fifo: is a pipe, not a file"),
        (["lineage", "fifo"], 3, "fifo: is a pipe, not a file"),
        (["inspect", "a", "--tokenizer", "fifo"], 3, "fifo: no tokenizer.json in it"),
        (["report", "run", "--out", "fifo"], 2, "--out fifo is not a file"),
        (["report", "run", "--out", "fifo", "--force"], 2, "--out fifo is not a file"),
        (["filter", "a", "--accuracy", "0", "1", "--out", "locked"], 1, "locked/.primecli.lock: is not a file"),
    ],
)
def test_odd_paths_are_one_line(
    primecli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "a", rollouts(2, 2))
    write_shards(tmp_path / "bad", rollouts(1, 2))
    os.rename(b"bad/" + NAME.encode(), b"bad/x\xff.parquet")
    os.mkfifo("fifo")
    os.mkdir("locked")
    os.mkfifo("locked/.primecli.lock")
    write_summary(tmp_path / "run", "verify")
    result = primecli(*arguments, check=False)
    assert result.code == code
    assert message in result.err
    assert "bug" not in result.err


def test_a_line_of_stdin_without_an_end_is_no_path(tmp_path: Path) -> None:
    result = shell("head -c 8000000 /dev/zero | primecli stats -", tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (3, 1)
    assert "stdin has a line that is longer than any path" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"a\xff", "a\ufffd: its name has bytes that are not UTF-8"),
        (b"a\0b", "a path cannot hold a NUL"),
        (LONG.encode(), "cannot be read: File name too long"),
        (b"\x1b]0;title\x07", "␛]0;title␇: no such file"),
    ],
)
def test_odd_lines_of_stdin_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, line: bytes, message: str
) -> None:
    (tmp_path / "in").write_bytes(line + b"\n")
    with open(tmp_path / "in", encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert cli.run(["stats"]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_variable_that_is_not_utf8_is_one_line(primecli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMECLI_DEVICE", "\udcff")
    assert "PRIMECLI_DEVICE: has bytes that are not UTF-8" in primecli("stats", "a", check=False).line()


@pytest.mark.parametrize("name", ["a\udcff", None])
def test_a_directory_that_is_gone_or_not_utf8_is_not_recorded(
    primecli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """name: None for a directory that is gone."""
    shards = write_shards(tmp_path / "a", rollouts(2, 2))
    here = tmp_path / (name or "gone")
    here.mkdir()
    monkeypatch.chdir(here)
    if name is None:
        here.rmdir()
    result = primecli("filter", shards, "--accuracy", 0, 1, "--out", tmp_path / "b")
    assert "directory" not in read_footer(result.paths[0]).provenance[-1]
    assert primecli("lineage", tmp_path / "b").paths
    assert primecli("lineage", tmp_path / "b", "--replay").paths
