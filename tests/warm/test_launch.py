from __future__ import annotations

import os
import socket
from pathlib import Path

from primecli.warm.launch import DIRECTORY_PREFIX, remove_dead


def test_directories_of_killed_helpers_are_removed_and_no_others(tmp_path: Path) -> None:
    names = ("alive", "killed", "starting", "never", "linked")
    for name in names[:4]:
        (tmp_path / f"{DIRECTORY_PREFIX}{name}").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / f"{DIRECTORY_PREFIX}linked").symlink_to(tmp_path / "other")
    os.utime(tmp_path / f"{DIRECTORY_PREFIX}never", (0, 0))
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as killed:
        alive.bind(str(tmp_path / f"{DIRECTORY_PREFIX}alive/socket"))
        alive.listen()
        killed.bind(str(tmp_path / f"{DIRECTORY_PREFIX}killed/socket"))
        killed.close()
        (tmp_path / f"{DIRECTORY_PREFIX}killed/ready").touch()
        remove_dead(tmp_path)
    left = sorted(path.name.removeprefix(DIRECTORY_PREFIX) for path in tmp_path.iterdir())
    assert left == ["alive", "linked", "other", "starting"]
