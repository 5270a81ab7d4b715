"""The pipe: shard paths in on stdin, shard paths out on stdout, and knowing early that the reader has gone."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.errors import PrimecliError, ReaderClosed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

IDLE_SECONDS = 1.0  # no line for so long means that the stage before is at work


def _descriptor(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return None


class _Stdout(io.FileIO):
    """Descriptor of stdout, of which every failed write is one of ours: no handler of OSError on the way takes it."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _abandon(self.fileno())
            raise ReaderClosed from None
        except OSError as error:
            _abandon(self.fileno())
            hints = {errno.ENOSPC: "free some space, or send it elsewhere", errno.EDQUOT: "you have used up your quota"}
            raise PrimecliError(f"cannot write to stdout: {error.strerror}", hints.get(error.errno or 0)) from error


def _writer(descriptor: int, like: io.TextIOWrapper, *, closes: bool = False) -> io.TextIOWrapper:
    """Text to a descriptor of stdout, buffered, in the encoding of another stream."""
    raw = _Stdout(descriptor, "wb", closefd=closes)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=like.encoding, errors=like.errors, line_buffering=like.line_buffering
    )


@contextlib.contextmanager
def guarded_stdout() -> Iterator[None]:
    """Makes stdout raise ReaderClosed where its reader has gone, and PrimecliError where it takes no more otherwise.

    One that was closed from the start takes everything and keeps nothing; its number is no file's that is opened later.
    """
    before = sys.stdout
    if before is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it is for the life of the process)
        yield
        return
    if not isinstance(before, io.TextIOWrapper) or _descriptor(before) is None:
        yield
        return
    before.flush()
    guarded = _writer(before.fileno(), before)
    sys.stdout = guarded
    try:
        yield
    finally:
        if sys.stdout is guarded:
            sys.stdout = before


def _is_pipe(stream: object) -> bool:
    descriptor = _descriptor(stream)
    return descriptor is not None and stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def in_pipeline() -> bool:
    """Whether stdin or stdout is a pipe, so that other stages share the terminal."""
    return _is_pipe(sys.stdin) or _is_pipe(sys.stdout)


def stdin_is_terminal() -> bool:
    """Whether no paths can come from stdin."""
    return sys.stdin is None or sys.stdin.isatty()


def reader_gone() -> bool:
    """Whether the process that read our stdout has closed it. Costs a system call, no output."""
    descriptor = _descriptor(sys.stdout)
    if descriptor is None or not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poller.poll(0))


def check_reader() -> None:
    """Raises ReaderClosed when the reader of stdout has gone. Long work calls it now and then."""
    if reader_gone():
        _abandon(sys.stdout.fileno())
        raise ReaderClosed


def keep_streams(*, show: bool) -> None:
    """Gives our paths and our words descriptors of their own, which no child process has.

    What libraries and their processes write to descriptors 1 and 2 goes to stderr where `show`, else nowhere: it
    neither gets among the paths nor, in a process that lives longer, holds the pipe open.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.fileno() in (1, 2):
            stream.flush()
            own = os.dup(stream.fileno())
            if name == "stdout":
                sys.stdout = _writer(own, stream, closes=True)
            else:
                sys.stderr = os.fdopen(own, "w", encoding="utf-8", errors="surrogateescape")
                sys.stderr.reconfigure(line_buffering=True)
    target = os.dup(2) if show else os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def emit(path: Path) -> None:
    """Writes one path to stdout and flushes it. Raises ReaderClosed when nobody reads, as `guarded_stdout` does."""
    emit_all([path])


def emit_all(paths: list[Path]) -> None:
    """Writes several paths with one flush. Raises ReaderClosed when nobody reads."""
    if not paths:
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is any bytes
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    sys.stdout.flush()


def _abandon(descriptor: int) -> None:
    """Sends what is still buffered nowhere, so that no later flush fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def close_stdin() -> None:
    """Closes our end of the pipe, so that the stage before sees it and stops."""
    descriptor = _descriptor(sys.stdin)
    if descriptor is not None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, descriptor)
        os.close(null)


def stdin_lines(while_idle: Callable[[], None] | None = None) -> Iterator[str]:
    """Lines of stdin, each as soon as it is there, without the newline.

    `while_idle` is called once, when nothing has come for a second. While waiting, the reader of our
    stdout is watched: raises ReaderClosed as soon as it has gone.
    """
    descriptor = _descriptor(sys.stdin)
    if descriptor is None:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    pending = b""
    while True:
        if not _wait_for_input(descriptor, IDLE_SECONDS if while_idle else None) and while_idle:
            while_idle()
            while_idle = None
            continue
        chunk = os.read(descriptor, 65536)
        *lines, pending = (pending + chunk).split(b"\n")
        yield from (os.fsdecode(line) for line in lines)
        if not chunk:
            if pending:
                yield os.fsdecode(pending)
            return


def _wait_for_input(descriptor: int, seconds: float | None) -> bool:
    """Waits for input or its end; False when the time has passed. Raises ReaderClosed."""
    if not hasattr(select, "poll"):
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP)
    output = _descriptor(sys.stdout)
    if output is not None and output != descriptor:
        poller.register(output, 0)
    events = poller.poll(None if seconds is None else seconds * 1000)
    if output is not None and any(fd == output and event & select.POLLERR for fd, event in events):
        _abandon(output)
        raise ReaderClosed
    return any(fd == descriptor for fd, _ in events)
