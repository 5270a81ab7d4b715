from __future__ import annotations

from pathlib import Path

import pytest

from primecli.errors import InputError
from primecli.files import LOCK_NAME, lock
from primecli.pipeline.summary import Status, Summary, check_producer, read_summary
from primecli.shards.parquet import shard_name

SHARDS = {shard_name(0, 2), shard_name(1, 2)}


def write(directory: Path, status: Status, error: str | None = None) -> Path:
    for name in SHARDS:
        (directory / name).touch()
    Summary("generate", status, shards=sorted(SHARDS), error=error).write(directory)
    return directory


@pytest.mark.parametrize("status", ["complete", "stopped-by-reader"])
def test_a_finished_producer_is_accepted(tmp_path: Path, status: Status) -> None:
    check_producer(write(tmp_path, status), SHARDS)
    check_producer(tmp_path, None)


def test_a_directory_of_another_tool_is_accepted(tmp_path: Path) -> None:
    check_producer(tmp_path, {"a"})


def test_a_failed_producer_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generate failed after 2 shards: no space"):
        check_producer(write(tmp_path, "failed", "no space"), SHARDS)


def test_killed_and_running_producers_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "running")
    with pytest.raises(InputError, match="generate was killed after 2 shards"):
        check_producer(tmp_path, SHARDS)
    with lock(tmp_path / LOCK_NAME, "x"), pytest.raises(InputError, match="generate is still running"):
        check_producer(tmp_path, SHARDS)


def test_missing_shards_of_a_complete_producer_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of the 2 shards of generate did not come through the pipe, rollouts-00001"):
        check_producer(write(tmp_path, "complete"), {shard_name(0, 2)})
    check_producer(tmp_path, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"stage": "verify"}', "lacks status"),
        ('{"stage": "verify", "status": "done"}', "status: expected one of running, complete"),
        ('{"stage": "verify", "status": "complete", "rows": 1e400}', "rows: expected a whole number, found inf"),
        ('{"stage": "verify", "status": "complete", "shards": "a"}', "shards: expected a list, found a text"),
        ('{"stage": "verify", "status": "complete", "shards": ["../a"]}', r"shards\[0\]: '../a' is not the name of a"),
        ('{"stage": "verify", "status": "complete", "shards": [".."]}', r"shards\[0\]: '..' is not the name of a"),
        ('{"stage": "verify", "status": "complete", "shards": ["\\u0000"]}', r"shards\[0\]: a text with a NUL"),
        ('{"stage": "verify", "status": "failed", "error": ["a"]}', "error: expected a text, found a list"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "_summary.json").write_text(text)
    with pytest.raises(InputError, match=rf"_summary\.json: {message}"):
        read_summary(tmp_path)
