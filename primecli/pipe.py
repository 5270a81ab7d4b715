"""The pipe: shard paths in on stdin, shard paths out on stdout, and knowing early that the reader has gone."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from primecli.errors import ReaderClosed

IDLE_SECONDS = 1.0  # no line for so long means that the stage before is at work


def _descriptor(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return None


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
        _abandon_stdout()
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
            own = os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", errors="surrogateescape")
            own.reconfigure(line_buffering=name == "stderr")
            setattr(sys, name, own)
    target = os.dup(2) if show else os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def emit(path: Path) -> None:
    """Writes one path to stdout and flushes it. Raises ReaderClosed when nobody reads."""
    emit_all([path])


def emit_all(paths: list[Path]) -> None:
    """Writes several paths with one flush. Raises ReaderClosed when nobody reads."""
    if sys.stdout is None or not paths:
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is any bytes
    try:
        sys.stdout.write("".join(f"{path}\n" for path in paths))
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_stdout()
        raise ReaderClosed from None


def _abandon_stdout() -> None:
    """Sends what is still buffered nowhere, so that the interpreter's last flush does not fail."""
    descriptor = _descriptor(sys.stdout)
    if descriptor is not None:
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
    if any(fd == output and event & select.POLLERR for fd, event in events):
        _abandon_stdout()
        raise ReaderClosed
    return any(fd == descriptor for fd, _ in events)
