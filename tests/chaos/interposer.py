"""Counts the file operations of a process, and strikes at the k-th: a kill, a full disk, a broken one, or a signal.

Python announces what it opens, renames, removes, links and makes as audit events, whoever calls it. Writes and fsyncs
have no event; they are counted where `os.fsync` is called and where a file that was opened for writing is written to.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = ("open", "write", "fsync", "os.mkdir", "os.link")
"""Operations that need room on the disk."""

EVENTS = (
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.utime",
    "fcntl.flock",
    "shutil.copyfile",
)
"""Audit events that change files, or take a lock."""


def kill() -> None:
    """Ends this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    """The disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken() -> None:
    """The disk is broken."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def sending(number: signal.Signals) -> Callable[[], None]:
    """A strike that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


STRIKES: dict[str, Callable[[], None]] = {
    "kill": kill,
    "full": full,
    "broken": broken,
    "SIGTERM": sending(signal.SIGTERM),
    "SIGINT": sending(signal.SIGINT),
    "SIGHUP": sending(signal.SIGHUP),
}


class Interposer:
    """Counts file operations below a directory, and strikes before the k-th.

    root: operations elsewhere are not counted. at: which operation to strike before, from 1; 0 for none. strike: of
    `STRIKES`. once: whether later operations work again; otherwise they fail too, as on a disk that stays full.
    report: a descriptor to which the operations are written, one a line; -1 for none.
    """

    def __init__(self, root: Path, at: int, strike: str, *, once: bool = True, report: int = -1) -> None:
        self.root = str(root.resolve())
        self.at, self.strike, self.once, self.report = at, STRIKES[strike], once, report
        self.process = os.getpid()
        self.count = 0
        self.busy = False

    def install_here(self) -> None:
        """Starts counting in this process; it cannot be stopped."""
        self.process = os.getpid()
        sys.addaudithook(self._audit)
        fsync, opener = os.fsync, builtins.open

        def counted_fsync(fd: Any) -> None:
            self.operation("fsync", self._path_of(fd))
            fsync(fd)

        def counted_open(*arguments: Any, **keywords: Any) -> Any:
            file = opener(*arguments, **keywords)
            if getattr(file, "mode", "") in ("wb", "xb", "ab") and isinstance(file, io.BufferedWriter):
                return _Counted(file, self)
            return file

        os.fsync = counted_fsync
        builtins.open = counted_open

    def operation(self, what: str, path: object) -> None:
        """Counts an operation, and strikes if it is its turn."""
        if self.busy or os.getpid() != self.process:
            return
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not text or not os.path.abspath(text).startswith(self.root):
            return
        self.count += 1
        if self.report >= 0:
            os.write(self.report, f"{self.count} {what} {os.path.relpath(text, self.root)}\n".encode())
        if self.at and (self.count == self.at or (self.count > self.at and not self.once and what in WRITING)):
            self.strike()

    def _path_of(self, descriptor: Any) -> str:
        try:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            return os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            return ""

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.operation("open", path)
        elif event in EVENTS:
            self.operation(event, self._path_of(arguments[0]) if event == "fcntl.flock" else arguments[0])


class _Counted(io.BufferedWriter):
    """A file whose writes are counted, and reach the disk in two halves, so that a kill may fall between them."""

    def __init__(self, file: io.BufferedWriter, interposer: Interposer) -> None:
        super().__init__(file.detach(), buffer_size=1)
        self.interposer = interposer

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        self.interposer.operation("write", self.name)
        super().write(view[:half])
        self.flush()
        self.interposer.operation("write", self.name)
        super().write(view[half:])
        return len(view)
