"""A child of the helper of `primecli warm`: takes on everything that its front was started with."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypedDict

from primecli.warm.protocol import FORKED, REFUSED, end_with_parent

Request = dict[str, Any]
"""What a front sends: see `primecli.warm.front`."""


class RequestFields(TypedDict):
    """The fields of a request. Words and values of variables may have bytes that are not UTF-8, so they are objects."""

    stage: str
    argv: list[object]
    orig_argv: list[object]
    path: list[object]
    environment: dict[str, object]
    umask: int
    ignored: list[int]
    mask: list[int]
    group: int
    descriptors: list[int]
    surroundings: dict[str, object]


def become(
    request: Request,
    descriptors: Sequence[int],
    connection: socket.socket,
    helper: int,
    environment: Mapping[str, str],
) -> Request:
    """Makes this process, just forked and with all signals blocked, what the request asks for; returns the request.

    descriptors: as received, the working directory last. connection: to the front. helper: its process number.
    environment: the one in which the libraries were imported. If something fails, tells the front and exits.
    """
    above = max(request["descriptors"], default=2) + 1  # so that the answer's descriptor takes no number of the front's
    answer = fcntl.fcntl(connection.detach(), fcntl.F_DUPFD_CLOEXEC, above)
    try:
        end_with_parent()
        _join_group(request["group"])
        os.fchdir(descriptors[-1])
        os.umask(request["umask"])
        take_descriptors(descriptors[:-1], request["descriptors"])
        take_signals(request["ignored"])
        take_environment(request["environment"], environment)
    except (OSError, ValueError) as error:
        os.write(answer, f"{REFUSED} a child of the helper cannot take over: {error}\n".encode())
        os._exit(1)
    sys.argv, sys.orig_argv, sys.path = request["argv"], request["orig_argv"], request["path"]
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(request["stage"])
    if os.getppid() != helper:  # it exited before prctl was called
        os._exit(1)
    os.write(answer, f"{FORKED}\n".encode())
    os.close(answer)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
    return request


def _join_group(group: int) -> None:
    """Joins the front's process group, so that the terminal's signals reach both.

    A front in a session of its own, such as a rank that torch's launcher has started, has no terminal, and forwards its
    signals.
    """
    try:
        os.setpgid(0, group)
    except PermissionError:
        os.setsid()


def take_descriptors(received: Sequence[int], numbers: Sequence[int]) -> None:
    """Gives the received descriptors their numbers in the front; closes those of 0, 1 and 2 that are closed there."""
    above = max(numbers, default=2) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number not in numbers:
            os.close(number)
        stream = _stream(number, getattr(sys, name)) if number in numbers else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _stream(number: int, before: TextIO) -> TextIO:
    """A standard stream as Python opens it: the helper's own was set up for another file (a terminal? a pipe?)."""
    stream = open(  # noqa: SIM115
        number,
        "w" if number else "r",
        buffering=1 if number == 2 else -1,
        encoding=before.encoding,
        errors=before.errors,
        newline="\n",
        closefd=False,
    )
    if number and isinstance(before, io.TextIOWrapper):
        stream.reconfigure(write_through=before.write_through)  # with PYTHONUNBUFFERED
    return stream


def take_signals(ignored: Sequence[int]) -> None:
    """Ignores the signals that the front ignores; all others are handled as in a fresh Python."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number in ignored:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) is not None:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


def take_environment(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Adopts the front's environment, and what follows from variables that libraries have already read.

    theirs: the environment of the front. ours: that of the imports.
    """
    os.environ.clear()
    os.environ.update(theirs)
    time.tzset()
    threads = theirs.get("OMP_NUM_THREADS")
    if threads and threads != ours.get("OMP_NUM_THREADS"):
        sys.modules["torch"].set_num_threads(int(threads))
    sys.modules["numpy"].random.seed()  # or all children would share a state; `random` reseeds itself after a fork
