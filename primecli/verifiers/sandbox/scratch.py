"""The directory in which a program may write: how many files it has room for, and how it is emptied."""

from __future__ import annotations

import contextlib
import math
import os
import time

MAX_FILES = 10_000  # files and directories at a time, in bubblewrap; an inode takes about a kilobyte of kernel memory

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_MOUNTS, _NO_SUID, _NO_DEVICES = 0x00020000, 2, 4  # CLONE_NEWNS, MS_NOSUID, MS_NODEV


def mount(size: int) -> None:
    """Mounts a file system for `size` bytes in MAX_FILES files at /tmp, goes there, and drops all capabilities.

    For bubblewrap, which bounds the size of its own /tmp but not the number of files. Where the kernel does not allow
    this mount, such as when bubblewrap is a setuid program, that /tmp stays.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) == 0:
        options = f"size={size},nr_inodes={MAX_FILES},mode=0755".encode()
        libc.mount(b"tmpfs", b"/tmp", b"tmpfs", _NO_SUID | _NO_DEVICES, options)
        os.chdir("/tmp")
    version_3, this_process = 0x20080522, 0
    header = (ctypes.c_uint32 * 2)(version_3, this_process)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities were not dropped")


def open_file() -> int:
    """An open file in the working directory, without a name."""
    name = f".scratch-{os.getpid()}-{os.urandom(6).hex()}"
    number = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return number


def clear(directory: str, end: float = math.inf) -> None:
    """Empties a directory, however deep its directories are nested and whatever their permissions.

    It goes from one directory to the next, so that no path is long and one is open at a time; nobody may be changing
    them. What cannot be deleted stays: nobody but the program that made it finds it.

    end: when to give up, on the monotonic clock: on a disk, each directory may take milliseconds.
    """
    with contextlib.suppress(OSError):
        os.chmod(directory, 0o700)
        _clear_below(os.open(directory, _FOLDER), end)


def remove(directory: str, seconds: float, interpreter: str) -> None:
    """Deletes a directory. What is left of it after so many seconds, a process of its own deletes, and nobody waits."""
    clear(directory, time.monotonic() + seconds)
    try:
        os.rmdir(directory)
    except OSError:
        program = [interpreter, "-I", "-S", __file__, directory]
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
        os.posix_spawn(interpreter, program, {}, file_actions=null, setsid=True)


def _clear_below(at: int, end: float) -> None:
    """Empties the directory that is open as `at`, and closes it."""
    names: list[str] = []  # of the directories on the way to where it is
    waiting = [_delete_files(at, end)]  # those that are still to be emptied, at each level
    while (names or waiting[-1]) and time.monotonic() < end:
        if waiting[-1]:
            name = waiting[-1].pop()
            try:
                os.chmod(name, 0o700, dir_fd=at)
                below = os.open(name, _FOLDER, dir_fd=at)
            except OSError:
                continue
            os.close(at)
            at = below
            names.append(name)
            waiting.append(_delete_files(at, end))
        else:
            below, at = at, os.open("..", _FOLDER, dir_fd=at)
            os.close(below)
            waiting.pop()
            with contextlib.suppress(OSError):
                os.rmdir(names.pop(), dir_fd=at)
    os.close(at)


def _delete_files(at: int, end: float) -> list[str]:
    """Deletes all but the directories in an open directory; returns their names."""
    folders = []
    with os.scandir(at) as listing:
        entries = list(listing)
    for entry in entries:
        if time.monotonic() >= end:
            break
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.name)
        else:
            with contextlib.suppress(OSError):
                os.unlink(entry.name, dir_fd=at)
    return folders


if __name__ == "__main__":
    import sys

    clear(sys.argv[1])
    os.rmdir(sys.argv[1])
