from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import IO, Any

import pytest

from primecli.errors import InputError, PrimecliError
from primecli.files import (
    TEMPORARY_PREFIX,
    Json,
    directory_atomically,
    fingerprint,
    is_locked,
    lock,
    read_bytes,
    remove_abandoned,
    remove_leftovers,
    write_atomically,
)


def test_fingerprint_sees_every_value_and_no_key_order() -> None:
    base: dict[str, Json] = {"a": 1, "b": [1.5, None], "c": {"d": "x"}}
    assert fingerprint(base) == fingerprint({"c": {"d": "x"}, "b": [1.5, None], "a": 1})
    changed: list[dict[str, Json]] = [
        {**base, "a": 2},
        {**base, "b": [None, 1.5]},
        {**base, "c": {"d": "y"}},
        {**base, "e": None},
    ]
    assert len({fingerprint(value) for value in [base, *changed]}) == 5


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def write(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_atomically(target, write)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_directory_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    target.mkdir()
    (target / "old").touch()

    def write() -> None:
        with directory_atomically(target, replace=True) as directory:
            (directory / "new").touch()
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["ckpt", "ckpt/old"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    target.mkdir()
    (target / "old").touch()
    with directory_atomically(target, replace=True) as directory:
        (directory / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["ckpt", "ckpt/new"]


def test_leftovers_of_another_target_stay(tmp_path: Path) -> None:
    for name in ("v1.77", "v1.1.77", "v1.old.77"):
        (tmp_path / f"{TEMPORARY_PREFIX}{name}").mkdir()
    remove_leftovers(tmp_path, of="v1")
    # the old v1 is put back: its replacement was killed between the two renames
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{TEMPORARY_PREFIX}v1.1.77", "v1"]


def test_the_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path, "runs/1"):
        assert is_locked(path)
        with (
            pytest.raises(PrimecliError, match=rf"runs/1 is being written by primecli, process {os.getpid()}"),
            lock(path, "runs/1"),
        ):
            pass
    assert not is_locked(path)


def test_a_killed_process_frees_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import os, signal, sys; from pathlib import Path; from primecli.files import lock\n"
        "with lock(Path(sys.argv[1]), 'x'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    with lock(path, "x"):
        pass


def test_a_full_disk_is_one_line_that_names_the_file() -> None:
    with pytest.raises(PrimecliError, match="cannot write /dev/full/x: Not a directory"):
        write_atomically(Path("/dev/full/x"), lambda file: None)


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    for name in ("report.html.1", "report.html.old", "report.html2.1"):
        (tmp_path / f"{TEMPORARY_PREFIX}{name}").touch()

    def write(file: IO[bytes]) -> None:
        remove_abandoned(target)
        file.write(b"new")

    write_atomically(target, write)
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == [
        f"{TEMPORARY_PREFIX}report.html.old",
        f"{TEMPORARY_PREFIX}report.html2.1",
        "report.html",
    ]


def test_a_lock_that_cannot_say_who_holds_it_on_a_full_disk_is_a_lock(mounted: Any) -> None:
    place = mounted("size=4k,nr_inodes=10")
    with contextlib.suppress(OSError), open(place / "full", "wb", buffering=0) as file:
        file.write(bytes(1 << 20))
    with lock(place / "lock", "runs/1"):
        assert is_locked(place / "lock")
        with (
            pytest.raises(PrimecliError, match="runs/1 is being written by another process"),
            lock(place / "lock", "runs/1"),
        ):
            pass
    for number in range(20):
        with contextlib.suppress(OSError):
            (place / str(number)).touch()
    with pytest.raises(PrimecliError, match=f"cannot write in {place}: No space left"), lock(place / "other", "runs/1"):
        pass


def test_what_is_no_file_is_no_lock_and_nothing_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")
    with pytest.raises(PrimecliError, match="lock: is not a file"), lock(tmp_path / "lock", "x"):
        pass


def test_reading_a_small_file_takes_little_memory_and_the_limit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * (10 * 1024)  # 2.5 MiB, which is read in several pieces
    path.write_bytes(content)
    tracemalloc.start()
    try:
        assert read_bytes(path, 1 << 30) == content
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content)
    finally:
        tracemalloc.stop()
    assert read_bytes(path, len(content)) == content
    with pytest.raises(InputError, match="has more than"):
        read_bytes(path, len(content) - 1)
