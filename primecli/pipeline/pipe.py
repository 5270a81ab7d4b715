"""The pipe: shard paths come in on stdin and go out on stdout; a reader that has gone is noticed early."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from primecli.errors import InputError, PrimecliError, ReaderClosed

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LONGEST_LINE = 1 << 20  # bytes; far more than the longest path, which has 4 KiB
SAID_BYTES = 32768  # the size of a pipe whose writer has said why nothing comes; pipes have 65536, or far less
IDLE_SECONDS = 1.0  # if no line comes for this long, the stage before is still working


class Watched(Protocol):
    """Something that goes on while a stage waits for its input, such as the work of other processes.

    busy: whether anything goes on. idle_since: since when nothing did, on the monotonic clock.
    """

    @property
    def busy(self) -> bool: ...  # noqa: D102
    @property
    def idle_since(self) -> float: ...  # noqa: D102
    def fileno(self) -> int:
        """A descriptor that can be read from when there is something to handle."""
        ...

    def handle(self) -> None:
        """Handles it, without waiting."""
        ...


def _descriptor(stream: object) -> int | None:
    try:
        return stream.fileno()  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, OSError, ValueError):
        return None


class _Stdout(io.FileIO):
    """The descriptor of stdout. A failed write raises an error of primecli, which no handler of OSError catches."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _abandon(self.fileno())
            raise ReaderClosed from None
        except OSError as error:
            _abandon(self.fileno())
            hints = {
                errno.ENOSPC: "free some space, or redirect it elsewhere",
                errno.EDQUOT: "your disk quota is used up",
            }
            raise PrimecliError(f"cannot write to stdout: {error.strerror}", hints.get(error.errno or 0)) from error


class _Stderr(io.FileIO):
    """The descriptor of stderr. What cannot be written is dropped: no work is worth losing for a message about it."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _writer(descriptor: int, stream: io.TextIOWrapper, *, owned: bool = False) -> io.TextIOWrapper:
    """A buffered text stream to a descriptor of stdout, with the encoding of `stream`.

    owned: close the descriptor together with the stream.
    """
    raw = _Stdout(descriptor, "wb", closefd=owned)
    # a text that the terminal's encoding lacks is shown in another way, and fails no command
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=stream.encoding, errors=errors, line_buffering=stream.line_buffering
    )


def _error_writer(descriptor: int, stream: io.TextIOWrapper, *, owned: bool = False) -> io.TextIOWrapper:
    """A text stream to a descriptor of stderr, which is written line by line. owned: as in `_writer`."""
    raw = _Stderr(descriptor, "wb", closefd=owned)
    errors = "backslashreplace"  # as Python has it: a message about a text must not fail because of the text
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=stream.encoding, errors=errors, line_buffering=True)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Makes a write to stdout raise ReaderClosed if its reader has gone, and PrimecliError if it fails otherwise.

    A write to stderr never fails. If one of them was closed when the process started, what is written to it is
    discarded.
    """
    original = sys.stderr
    if original is None:  # `print` would write to stdout instead, among the paths
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it stays open as long as the process)
    elif isinstance(original, io.TextIOWrapper) and _descriptor(original) is not None:
        sys.stderr = _error_writer(original.fileno(), original)
    guarded = sys.stderr
    try:
        with _guarded_stdout():
            yield
    finally:
        if sys.stderr is guarded and original is not None:
            sys.stderr = original


@contextlib.contextmanager
def _guarded_stdout() -> Iterator[None]:
    original = sys.stdout
    if original is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it stays open as long as the process)
        yield
        return
    if not isinstance(original, io.TextIOWrapper) or _descriptor(original) is None:
        yield
        return
    original.flush()
    guarded = _writer(original.fileno(), original)
    sys.stdout = guarded
    try:
        yield
    finally:
        if sys.stdout is guarded:
            sys.stdout = original


class _OfOneThread(io.TextIOWrapper):
    """A text stream that drops what any thread but its maker writes."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering
        )
        self._owner = threading.get_ident()

    def write(self, text: str, /) -> int:
        return super().write(text) if threading.get_ident() == self._owner else len(text)


@contextlib.contextmanager
def stdout_of_this_thread() -> Iterator[None]:
    """Keeps what the threads of a library print from getting among the paths."""
    original = sys.stdout
    if not isinstance(original, io.TextIOWrapper):
        yield
        return
    original.flush()
    own = _OfOneThread(original)
    sys.stdout = own
    try:
        yield
    finally:
        if sys.stdout is own:
            sys.stdout = original
        with contextlib.suppress(ReaderClosed, PrimecliError):  # it has been said
            own.flush()
        own.detach()  # or the buffer, which is also the original's, would be closed together with it


def _is_pipe(stream: object) -> bool:
    descriptor = _descriptor(stream)
    return descriptor is not None and stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def in_pipeline() -> bool:
    """Whether stdin or stdout is a pipe, so that other stages write to the same terminal."""
    return _is_pipe(sys.stdin) or _is_pipe(sys.stdout)


def stdin_is_terminal() -> bool:
    """Whether stdin is a terminal, or closed, so that no paths can come from it."""
    return sys.stdin is None or sys.stdin.isatty()


def reader_gone() -> bool:
    """Whether the process that read our stdout has closed it. Costs one system call and writes nothing."""
    descriptor = _descriptor(sys.stdout)
    if descriptor is None or not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poller.poll(0))


def check_reader() -> None:
    """Raises ReaderClosed if the reader of stdout has gone. Long computations call it now and then."""
    if reader_gone():
        _abandon(sys.stdout.fileno())
        raise ReaderClosed


def keep_streams(*, show: bool) -> None:
    """Moves our stdout and stderr to new descriptors, which no child process inherits.

    Libraries and their processes still write to descriptors 1 and 2. That goes to stderr if `show`, else nowhere, so
    it does not get among the paths, and a process that outlives this one does not hold the pipe open.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.fileno() in (1, 2):
            stream.flush()
            duplicate = os.dup(stream.fileno())
            if name == "stdout":
                sys.stdout = _writer(duplicate, stream, owned=True)
            else:
                sys.stderr = _error_writer(duplicate, stream, owned=True)
    target = os.dup(2) if show else os.open(os.devnull, os.O_WRONLY)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def emit(path: Path) -> None:
    """Writes one path to stdout and flushes it. Raises ReaderClosed if nobody reads it; see `guarded_streams`."""
    emit_all([path])


def emit_all(paths: list[Path]) -> None:
    """Writes several paths to stdout with one flush. Raises ReaderClosed if nobody reads them."""
    if not paths:
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path may contain any bytes
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    sys.stdout.flush()


def _abandon(descriptor: int) -> None:
    """Redirects a descriptor to nowhere, so that flushing what is still buffered cannot fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def mark_said() -> None:
    """Tells the stage after this one that a message has said why no path comes, by the size of the pipe to it.

    Otherwise each stage of a pipeline would say again that nothing came. A pipe carries paths alone, so it cannot tell
    by a line. Does nothing where stdout is no pipe, and where pipes have no size (they do on Linux).
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):
        fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, SAID_BYTES)


def was_said() -> bool:
    """Whether the stage before has said why no path comes; see `mark_said`."""
    try:
        return fcntl.fcntl(0, fcntl.F_GETPIPE_SZ) == SAID_BYTES
    except (OSError, AttributeError, ValueError):
        return False


def close_stdin() -> None:
    """Closes our end of the pipe, so that the stage before notices and stops."""
    descriptor = _descriptor(sys.stdin)
    if descriptor is not None:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, descriptor)
        os.close(null)


def stdin_lines(while_idle: Callable[[], None] | None = None, watched: Watched | None = None) -> Iterator[str]:
    """The lines of stdin without their newlines, each as soon as it arrives.

    while_idle: called once, when nothing has come for IDLE_SECONDS. watched: handled while nothing comes.

    Watches the reader of our stdout while it waits, and raises ReaderClosed as soon as that has gone.
    """
    descriptor = _descriptor(sys.stdin)
    if descriptor is None:
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    pending = b""
    while True:
        if not _wait_for_input(descriptor, IDLE_SECONDS if while_idle else None, watched):
            if while_idle:
                while_idle()
                while_idle = None
            continue
        chunk = os.read(descriptor, 65536)
        *lines, pending = (pending + chunk).split(b"\n")
        if len(pending) > LONGEST_LINE:
            raise InputError("stdin has a line that is longer than any path", "pipe paths, one a line, into this stage")
        yield from (os.fsdecode(line) for line in lines)
        if not chunk:
            if pending:
                yield os.fsdecode(pending)
            return


def _wait_for_input(descriptor: int, seconds: float | None, watched: Watched | None = None) -> bool:
    """Waits for input or its end; False if `seconds` have passed without either. Raises ReaderClosed."""
    if not hasattr(select, "poll"):
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLIN | select.POLLHUP)
    output = _descriptor(sys.stdout)
    if output is not None and output != descriptor:
        poller.register(output, 0)
    if watched is not None:
        poller.register(watched.fileno(), select.POLLIN)
    end = None if seconds is None else time.monotonic() + seconds
    with _readable_on_signals() as signals:
        if signals is not None:
            poller.register(signals, select.POLLIN)
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            events = dict(poller.poll(None if left is None else left * 1000))
            if signals in events:
                os.read(signals, 1024)  # the signal's handler has run by now, and has not raised
                continue
            if output is not None and events.get(output, 0) & select.POLLERR:
                _abandon(output)
                raise ReaderClosed
            if descriptor in events or not events:
                return descriptor in events
            if watched is not None and watched.fileno() in events:
                watched.handle()


@contextlib.contextmanager
def _readable_on_signals() -> Iterator[int | None]:
    """A descriptor that can be read from once a signal has come; None in a thread, which signals do not interrupt.

    A signal that comes just before a system call that waits would otherwise be handled only after it: Python handles
    signals between its own instructions.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(previous)
    finally:
        os.close(reading)
        os.close(writing)
