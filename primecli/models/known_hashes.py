"""Hashes of large files, remembered from one process to the next, so that a reference is read once for its hash.

A hash is taken to be that of a file whose device, inode, size, and times of modification and of change are those that
it had when it was hashed. The kernel sets the last of them at every write, and no program can set it back. Two writes
within one tick of its clock would leave the same time, so nothing is remembered of a file that has only just changed.

The hashes are in `$XDG_CACHE_HOME/primecli/hashes`, or `~/.cache/primecli/hashes`. They can be removed at any time, and
where they cannot be written, files are hashed each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path
from typing import TypedDict

from primecli.errors import PrimecliError
from primecli.files import HASH_DIGITS, file_hash, fingerprint, require_regular_file, write_json_atomically
from primecli.structures import read_json

WORTH_IT = 16 << 20  # bytes; less is hashed in milliseconds
SETTLED = 2.0  # seconds since a file's last change: more than any file system's clock ticks


class _Known(TypedDict):
    """A file in the cache. stamp: device, inode, size, times of modification and change in nanoseconds. hash: its."""

    stamp: list[int]
    hash: str


def known_hash(path: Path) -> str:
    """As `files.file_hash`, which is remembered for a large file as long as that does not change."""
    require_regular_file(path)
    entry = None
    with open(path, "rb") as file:  # the status of an open file is up to date on a network's file system, too
        stamp = _stamp(file.fileno())
        if stamp[2] >= WORTH_IT:
            entry = _entry(stamp)
        if entry is None:
            return file_hash(path)
        found = _read(entry, stamp)
        if found is None:
            begun = time.time()
            found = hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
            if _stamp(file.fileno()) == stamp and begun - max(stamp[3:]) / 1e9 > SETTLED:
                _write(entry, stamp, found)
    return found


def _stamp(descriptor: int) -> list[int]:
    status = os.fstat(descriptor)
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _entry(stamp: list[int]) -> Path | None:
    """The file that may know the hash; None where there is no place for it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    return cache / "primecli" / "hashes" / f"{fingerprint(stamp[:2])}.json"


def _read(entry: Path, stamp: list[int]) -> str | None:
    if not entry.is_file():
        return None
    try:
        known = read_json(entry, _Known)
    except PrimecliError:  # as good as none: it is written again
        return None
    fits = known["stamp"] == stamp and re.fullmatch(f"[0-9a-f]{{{HASH_DIGITS}}}", known["hash"])
    return known["hash"] if fits else None


def _write(entry: Path, stamp: list[int], found: str) -> None:
    with contextlib.suppress(OSError, PrimecliError):  # a home that cannot be written to
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json_atomically(entry, {"stamp": stamp, "hash": found})
