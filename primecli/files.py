"""Files that appear whole or not at all, locks, and hashes of content and of configuration."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeAlias

from primecli.errors import InputError, MissingFileError, PrimecliError
from primecli.printable import printable

TEMPORARY_PREFIX = ".tmp-primecli-"
LOCK_NAME = ".primecli.lock"
HASH_DIGITS = 32  # of SHA-256's 64
SYNC_FILE_RANGE_WRITE = 2  # of Linux
PIECE = 1 << 20  # bytes that are read at once
LONGEST_HOLDER = 300  # bytes of a lock file that say who holds it

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def fingerprint(value: Json) -> str:
    """SHA-256 (first 32 hex digits) of a value's canonical JSON, so the order of keys does not matter.

    >>> fingerprint({"a": 1, "b": [2.5]}) == fingerprint({"b": [2.5], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def file_hash(path: Path) -> str:
    """SHA-256 (first 32 hex digits) of a file's bytes. Raises InputError where it is not a regular file."""
    require_regular_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]


def disk_error(error: OSError, action: str, path: Path) -> PrimecliError:
    """An operating-system error as one line: what could not be done, where, why, and what to do about it."""
    hints = {
        errno.ENOSPC: "free some space or choose another --out, then run the same command again",
        errno.EDQUOT: "free some space or choose another --out, then run the same command again",
        errno.EACCES: "check the permissions of the directory or choose another one",
        errno.EPERM: "check the permissions of the directory or choose another one",
        errno.EROFS: "the file system is read-only; choose another directory",
        errno.EFBIG: "`ulimit -f` limits the size of files here, or the file system does",
        errno.ENOTDIR: "part of the path is a file, not a directory",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return PrimecliError(f"cannot {action} {path}: {reason}", hints.get(error.errno or 0))


@contextlib.contextmanager
def reporting_disk_errors(action: str, path: Path) -> Iterator[None]:
    """Turns an OSError in the block into a PrimecliError about this path. action: as in "cannot {action} {path}"."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, action, path) from error


def begin_writing(descriptor: int, start: int, size: int) -> None:
    """Has the system begin to write part of an open file to the disk, without waiting for it; fsync still has to.

    Otherwise Linux begins when memory is full of what is to be written, or fsync asks, and the disk is idle until then.
    Does nothing on other systems.
    """
    advise = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if advise is not None:
        advise.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        advise(descriptor, start, size, SYNC_FILE_RANGE_WRITE)  # a failure is fsync's to report


def fsync_directory(directory: Path) -> None:
    """Makes changes to the entries of a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Calls `write` with a temporary file beside `path`, makes the file durable and renames it to `path`.

    If anything goes wrong, `path` is as it was before and nothing is left beside it.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}.{os.getpid()}")
    with reporting_disk_errors("write", path):
        try:
            with open(temporary, "wb") as file:
                with contextlib.suppress(OSError):  # not every file system has locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells `remove_abandoned` that it is in use
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_json_atomically(path: Path, value: Json) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Writes text in UTF-8, whole or not at all."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_atomically(path, write)


@contextlib.contextmanager
def directory_atomically(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `target`, which becomes `target` when the block ends without an exception.

    With `replace`, an existing `target` is removed once the new one is complete. If the block raises, what it wrote is
    removed and `target` is as it was before.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}.{os.getpid()}")
    with reporting_disk_errors("write", target):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for path in sorted(temporary.rglob("*")):
                if path.is_file():
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
                else:
                    fsync_directory(path)
            fsync_directory(temporary)
            if replace and target.exists():
                old = target.with_name(f"{TEMPORARY_PREFIX}{target.name}.old.{os.getpid()}")
                os.rename(target, old)
                os.rename(temporary, target)
                shutil.rmtree(old)
            else:
                os.rename(temporary, target)
            fsync_directory(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(directory: Path, of: str | None = None) -> None:
    """Removes what killed processes left half-written. Call it while holding the lock of what they wrote.

    Where a process was killed while it replaced a directory, the old version is put back. of: the name of the target
    whose leftovers to remove; None for all targets.
    """
    name = ".+?" if of is None else re.escape(of)
    pattern = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}({name})(\.old)?\.\d+")
    for path in sorted(directory.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        if match[2] and not (directory / match[1]).exists():
            os.rename(path, directory / match[1])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_abandoned(path: Path) -> None:
    """Removes what killed processes left half-written beside this file, for files that are written without a lock."""
    pattern = re.compile(rf"{re.escape(TEMPORARY_PREFIX + path.name)}\.\d+")
    for leftover in path.parent.iterdir() if path.parent.is_dir() else ():
        if pattern.fullmatch(leftover.name) and leftover.is_file():
            # whoever is still writing it holds its lock
            with contextlib.suppress(OSError), open(leftover, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()


def make_directory(directory: Path) -> None:
    """Makes a directory and its parents. Raises PrimecliError where it cannot."""
    with reporting_disk_errors("make the directory", directory):
        directory.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`, which the kernel releases when the process ends, however it ends.

    what: what it protects, for the error. Raises PrimecliError at once where another process holds it.
    """
    with reporting_disk_errors("write in", path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        with reporting_disk_errors("lock", path):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PrimecliError(f"{path}: is not a file, and so no lock", "remove it")
            if not _try_lock(descriptor):
                holder = os.pread(descriptor, LONGEST_HOLDER, 0).decode(errors="replace").strip() or "another process"
                raise PrimecliError(
                    f"{what} is being written by {holder}", "wait until it ends, or write somewhere else"
                )
        with contextlib.suppress(OSError):  # a full disk: the name is only for the message that others get
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"primecli, process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Takes the lock. It retries for a moment, since `is_locked` holds the lock for an instant too."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def is_locked(path: Path) -> bool:
    """Whether a running process holds this lock file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe has no writer to wait for
    except (OSError, ValueError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def require_utf8(path: Path) -> None:
    """Raises InputError where a path has bytes that are not UTF-8: records and the pipe have paths as text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{printable(str(path))}: its name has bytes that are not UTF-8", "rename it") from None


def require_regular_file(path: Path) -> None:
    """Raises InputError unless a path leads to a regular file, MissingFileError where there is nothing, or no UTF-8.

    Reading anything else may wait for ever, as a named pipe does, or never end, as /dev/zero does. So this comes before
    every read of a file that somebody named.
    """
    require_utf8(path)
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None
    except ValueError:
        raise InputError(f"{str(path)!r}: a path cannot hold a NUL") from None
    mode = status.st_mode
    is_null = stat.S_ISCHR(mode) and status.st_rdev == os.stat(os.devnull).st_rdev  # an empty file to everybody
    if not stat.S_ISREG(mode) and not is_null:
        kinds = {
            stat.S_IFDIR: ("a directory", None),
            stat.S_IFIFO: ("a pipe", "it could be read only once: write what comes through it to a file"),
            stat.S_IFSOCK: ("a socket", None),
            stat.S_IFCHR: ("a device", None),
            stat.S_IFBLK: ("a device", None),
        }
        what, hint = kinds.get(stat.S_IFMT(mode), ("no regular file", None))
        raise InputError(f"{path}: is {what}, not a file", hint)


def read_bytes(path: Path, most: int) -> bytes:
    """All bytes of a regular file. Raises InputError where there is none, or it has more than `most` bytes."""
    require_regular_file(path)
    try:
        with open(path, "rb") as file:  # in pieces: a buffer of `most` bytes at once may be more than there is memory
            data = b"".join(itertools.takewhile(bool, (file.read(PIECE) for _ in range(most // PIECE + 1))))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from error
    if len(data) > most:
        raise InputError(f"{path}: has more than {most:,} bytes, too many for what it is")
    return data
