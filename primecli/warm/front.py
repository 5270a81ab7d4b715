"""The front of a stage under `primecli warm`: has the helper fork the stage, and stands in for it in the shell.

Imports the standard library and small modules of primecli alone: a warm stage waits for them before it is forked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

from primecli import catalog
from primecli.errors import Interrupted, PrimecliError
from primecli.printable import one_line
from primecli.warm.protocol import (
    EXIT,
    FAILURES,
    FORKED,
    LENGTH_BYTES,
    MOST_DESCRIPTORS,
    READY,
    SIGNAL,
    VARIABLE,
    end_with_parent,
    first_word,
    ready_file,
    same_user,
    surroundings,
)

FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTERM,
    signal.SIGTSTP,
    signal.SIGCONT,
)


def run(arguments: Sequence[str]) -> int | None:
    """Runs a stage in a child of the helper; returns its exit code, or None if this process has to run it.

    None for a command that is never forked, and for one without torch while the helper is still importing; also, with
    a line on stderr, if the helper does not answer, or differs from this process in a way that a child cannot adopt.
    """
    stage = first_word(arguments)
    command = catalog.command(stage)
    if command is None or not command.forked:
        return None
    front = _Front(command)
    try:
        return front.run(os.environ[VARIABLE])
    except Interrupted as error:
        front.say(str(error))
        return Interrupted.exit_code
    except PrimecliError as error:
        front.say(str(error))
        return error.exit_code
    except _NotReady:
        return None
    except _Refused as error:
        front.say(f"starting without the warm helper: {error}")
        return None
    finally:
        front.close()


class _Refused(Exception):
    """This process has to run the stage, for this reason."""


class _NotReady(Exception):
    """The helper is still importing what this stage does not need."""


class _Front:
    """This process: what it was started with, its connection to the helper, and the signals it forwards."""

    def __init__(self, command: catalog.Command) -> None:
        self.command = command
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.received = b""
        self.requested = False  # from then on, signals are forwarded to the child
        self.forwarded: list[int] = []  # signals
        self.ignored = [int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
        self.mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        self.descriptors = _inherited_descriptors()
        # signals wake the loop through a pipe, so that none is missed between checking and waiting
        if os.environ.get(FAILURES):
            end_with_parent()  # the launcher of ranks, which nobody else would end
        self.signals, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers = {}  # as they were before
        for number in FORWARDED:
            if number not in self.ignored or number in (signal.SIGINT, signal.SIGTERM):  # a stage always catches these
                self._handlers[number] = signal.signal(number, _do_nothing)
        signal.set_wakeup_fd(self._wakeup)

    def close(self) -> None:
        """Restores the process to what it was before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self.signals)
        os.close(self._wakeup)
        self.connection.close()

    def say(self, text: str) -> None:
        """Writes a line to stderr, if that takes it: no stage fails for a message."""
        with contextlib.suppress(OSError):
            os.write(2, f"primecli {self.command.name}: {one_line(text)}\n".encode())

    def run(self, path: str) -> int:
        """Runs the stage; returns its exit code. path: the helper's socket.

        Raises _Refused or _NotReady if this process has to run it, Interrupted for a signal before it has started.
        """
        try:
            self.connection.connect(path)
            if not same_user(self.connection):
                raise _Refused("the helper of `primecli warm` belongs to another user")
            if not self.command.torch and not os.path.exists(ready_file(path)):
                raise _NotReady
            if self._line() != READY:
                raise _Refused("the helper of `primecli warm` has exited")
            self._send_request()
            answer = self._line()
        except OSError as error:
            raise _Refused(f"the helper of `primecli warm` does not answer ({error.strerror})") from error
        if answer != FORKED:
            self.requested = False
            for number in self.forwarded:  # no child has received them
                self._handle(number)
            raise _Refused((answer or "").partition(" ")[2] or "the helper of `primecli warm` has exited")
        self._close_descriptors()
        how, _, value = (self._line() or "").partition(" ")
        if how == EXIT:
            return int(value)
        if how == SIGNAL:
            return _exit_by(int(value))
        raise PrimecliError(
            "stopped, because the helper of `primecli warm` has exited", "run the same command again to continue"
        )

    def _send_request(self) -> None:
        """Sends what the child has to become, with the open descriptors and, last, one of the working directory."""
        umask = os.umask(0o077)
        os.umask(umask)
        request = {
            "stage": self.command.name,
            "argv": sys.argv,
            "orig_argv": sys.orig_argv,
            "path": sys.path,
            "environment": dict(os.environ),
            "umask": umask,
            "ignored": self.ignored,
            "mask": self.mask,
            "group": os.getpgrp(),
            "descriptors": self.descriptors,
            "surroundings": surroundings(),
        }
        if len(self.descriptors) >= MOST_DESCRIPTORS:
            raise _Refused(f"{len(self.descriptors)} open files are too many to pass on")
        data = json.dumps(request).encode()
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY)
        self.requested = True
        socket.send_fds(self.connection, [len(data).to_bytes(LENGTH_BYTES)], [*self.descriptors, directory])
        os.close(directory)
        self.connection.sendall(data)

    def _close_descriptors(self) -> None:
        """Closes this process's copies of the child's descriptors, so that the child alone holds the ends of pipes."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in self.descriptors:
            if descriptor != 2:  # this process may still have something to report
                os.dup2(null, descriptor) if descriptor < 2 else os.close(descriptor)
        os.close(null)

    def _line(self) -> str | None:
        """The next line from the helper or the child, None when the connection is closed. Handles signals meanwhile."""
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        poller.register(self.signals, select.POLLIN)
        while b"\n" not in self.received:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self.signals in ready:
                for number in os.read(self.signals, 64):
                    self._handle(number)
            if self.connection.fileno() in ready:
                chunk = self.connection.recv(4096)
                if not chunk:
                    return None
                self.received += chunk
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()

    def _handle(self, number: int) -> None:
        """Forwards a signal to the child, or, before there is one, does what a stage would do."""
        if self.requested:
            self.forwarded.append(number)
            try:
                self.connection.send(bytes([number]))
            except OSError:
                return  # _line notices that the connection is closed
        elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            name = signal.Signals(number).name
            raise Interrupted.by_signal(name)
        elif number not in (signal.SIGTSTP, signal.SIGCONT):
            _exit_by(number)
        if number == signal.SIGTSTP:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # stops here, until SIGCONT
            signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A handler for signals whose numbers are read from the wake-up pipe."""


def _inherited_descriptors() -> list[int]:
    """The descriptors that this process was started with; those that Python opened are not inheritable."""
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                descriptors.append(int(name))
        except OSError:
            continue  # that of the listing itself
    return sorted(descriptors)


def _exit_by(number: int) -> int:
    """Ends this process by a signal, so that the shell sees what it would see of the child.

    Returns the exit code for a signal that does not end this process.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return 128 + number
