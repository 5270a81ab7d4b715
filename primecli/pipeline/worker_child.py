"""A child of `LocalWorkers`: reads jobs from the pipe that was its stdin, and reports to the one that was its stdout.

Both are moved away at once: stdin is then empty, and what a library prints to stdout goes to stderr, so nothing gets
between the reports, nor among the paths that the stage passes on. The child ends when its parent does, or closes the
pipe.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, BinaryIO

LENGTH = struct.Struct("<Q")  # of a message, before it
REPORT_SECONDS = 0.2  # between two reports of rows


def message(content: Any) -> bytes:
    """A message as it is sent: its length, and what is pickled."""
    data = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(data)) + data


def messages(unread: bytearray) -> Iterator[Any]:
    """The whole messages at the beginning of what was read, which are removed from it."""
    while len(unread) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(unread)
        if len(unread) < LENGTH.size + length:
            return
        data = bytes(unread[LENGTH.size : LENGTH.size + length])
        del unread[: LENGTH.size + length]
        yield pickle.loads(data)


class _Reports:
    """The pipe to the parent, and the rows done since the last report."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.rows = 0
        self.last = time.monotonic()

    def send(self, content: Any) -> None:
        try:
            self.stream.write(message(content))
            self.stream.flush()
        except BrokenPipeError:
            os._exit(0)  # the parent has gone

    def advance(self, rows: int) -> None:
        self.rows += rows
        if self.rows and time.monotonic() - self.last >= REPORT_SECONDS:
            self.send({"rows": self.rows})
            self.rows, self.last = 0, time.monotonic()

    def done(self, result: Any) -> None:
        self.send({"rows": self.rows, "done": result})
        self.rows = 0


def main() -> None:
    """Opens the worker that the first message names, then does jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # so that messages reach the terminal from another process group
    jobs, reports = os.fdopen(os.dup(0), "rb"), _Reports(os.fdopen(os.dup(1), "wb"))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the parent ends this process by killing it
    first = pickle.loads(_read(jobs))
    _die_with_parent(first["parent"])
    queue: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_all, args=(jobs, queue), daemon=True).start()
    reports.send({"ready": True})
    from primecli.pipeline.workers import portable

    try:
        worker = pickle.loads(first["opener"])()
        if first["prepare"]:
            worker.prepare()
        while True:
            reports.done(worker.work(pickle.loads(queue.get())["item"], reports.advance))
    except Exception as error:
        if os.environ.get("PRIMECLI_DEBUG"):
            import traceback

            traceback.print_exception(error)
        reports.send({"failed": portable(error)})
        while True:  # it may have no job yet, and then does not begin one; the parent ends this process
            queue.get()


def _read(stream: BinaryIO) -> bytes:
    """The next message, still pickled; ends this process at the end of the pipe, even in the middle of a job."""
    head = stream.read(LENGTH.size)
    data = stream.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
    if not data:
        os._exit(0)
    return data


def _read_all(stream: BinaryIO, queue: SimpleQueue[bytes]) -> None:
    """Reads ahead, above all to notice the end. It unpickles nothing: two threads that import can block each other."""
    while True:
        queue.put(_read(stream))


def _die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the parent ends; elsewhere the end of the pipe does that."""
    if sys.platform == "linux":
        from primecli.verifiers.sandbox.seccomp import die_with_parent

        die_with_parent(parent)
