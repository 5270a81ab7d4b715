"""Hashes that are remembered: as long as a file is the same, and no longer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from primecli.errors import InputError
from primecli.files import file_hash
from primecli.models import known_hashes
from primecli.models.known_hashes import WORTH_IT, known_hash

OTHER = "0123456789abcdef" * 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hashes are remembered, also of files that have only just been written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "SETTLED", -1.0)
    return tmp_path / "cache" / "primecli" / "hashes"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(b"x" * WORTH_IT)
    return path


def remember(cache: Path, given: str) -> None:
    """Puts another hash in the place of the only one, which shows whether it is used."""
    (entry,) = cache.iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "hash": given}))


def test_a_file_that_has_not_changed_is_not_read_again(cache: Path, large: Path) -> None:
    assert known_hash(large) == file_hash(large)
    remember(cache, OTHER)
    assert known_hash(large) == OTHER
    moved = large.with_name("moved")
    os.symlink(large, moved)  # as in the hub's cache
    assert known_hash(moved) == OTHER


@pytest.mark.parametrize("change", ["in place", "replaced", "longer", "times set back"])
def test_a_file_that_has_changed_is_read(change: str, cache: Path, large: Path) -> None:
    first = known_hash(large)
    remember(cache, OTHER)
    status = large.stat()
    if change == "replaced":
        large.with_name("new").write_bytes(b"y" * WORTH_IT)
        os.replace(large.with_name("new"), large)
    else:
        with open(large, "ab" if change == "longer" else "r+b") as file:
            file.write(b"y")
    if change == "times set back":
        os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_hash(large) == file_hash(large) != first


def test_nothing_is_remembered_of_a_file_that_may_still_be_written(
    cache: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_hashes, "SETTLED", 2.0)
    assert known_hash(large) == file_hash(large)
    assert not cache.exists()


@pytest.mark.parametrize("entry", ["", "[]", "{}", '{"stamp": [1], "hash": "0"}', '{"hash": 5}'])
def test_a_broken_memory_is_none(entry: str, cache: Path, large: Path) -> None:
    known_hash(large)
    (path,) = cache.iterdir()
    whole = path.read_text()
    path.write_text(entry)
    assert known_hash(large) == file_hash(large)
    assert path.read_text() == whole
    remember(cache, "no hash")
    assert known_hash(large) == file_hash(large)


def test_where_nothing_can_be_remembered_files_are_read(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(known_hashes, "SETTLED", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert known_hash(large) == file_hash(large)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert known_hash(large) == file_hash(large)
    assert len(list((tmp_path / "home/.cache/primecli/hashes").iterdir())) == 1


def test_small_files_are_read_each_time(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_text("x")
    assert known_hash(tmp_path / "small") == file_hash(tmp_path / "small")
    assert not cache.exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe"):
        known_hash(tmp_path / "pipe")
