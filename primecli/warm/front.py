"""The front process of a stage under `primecli warm`: has the helper fork the stage, and stands in for it.

Imports nothing of a third party: this is all that a warm stage waits for before its child is forked.
"""

from __future__ import annotations

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
from primecli.warm.protocol import (
    EXIT,
    FORKED,
    LENGTH_BYTES,
    MOST_DESCRIPTORS,
    READY,
    SIGNAL,
    VARIABLE,
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
    """Runs a stage in a child of the helper; returns its exit code, or None where the plain way is to be taken.

    None for a command that is no stage, and for one that needs no torch while the helper still imports it; also, with
    a line on stderr, where the helper does not answer or differs from this process in something that a child could
    not take over.
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
        front.say(f"not started warm, but in the plain way: {error}")
        return None
    finally:
        front.close()


class _Refused(Exception):
    """The stage is to be started in the plain way, for this reason."""


class _NotReady(Exception):
    """The helper still imports what this stage does not need."""


class _Front:
    def __init__(self, command: catalog.Command) -> None:
        self.command = command
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.received = b""
        self.asked = False  # from when on signals are the child's
        self.sent: list[int] = []  # signals sent on before it was known that there is a child
        self.ignored = [int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
        self.mask = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        self.descriptors = _inherited_descriptors()
        # signals wake the loop through a pipe, so that none is missed between looking and waiting
        self.signals, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {}
        for number in FORWARDED:
            if number not in self.ignored or number in (signal.SIGINT, signal.SIGTERM):  # those two a stage catches
                self._before[number] = signal.signal(number, _noted)
        signal.set_wakeup_fd(self._wakeup)

    def close(self) -> None:
        """Leaves the process as it was."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.signals)
        os.close(self._wakeup)
        self.connection.close()

    def say(self, text: str) -> None:
        """One line on stderr."""
        print(f"primecli {self.command.name}: {text}", file=sys.stderr, flush=True)

    def run(self, path: str) -> int:
        """The stage's exit code. Raises _Refused, and Interrupted as a stage does that has not begun."""
        try:
            self.connection.connect(path)
            if not same_user(self.connection):
                raise _Refused("the helper of `primecli warm` is of another user")
            if not self.command.torch and not os.path.exists(ready_file(path)):
                raise _NotReady
            if self._line() != READY:
                raise _Refused("the helper of `primecli warm` has ended")
            self._ask()
            answer = self._line()
        except OSError as error:
            raise _Refused(f"the helper of `primecli warm` does not answer ({error.strerror})") from error
        if answer != FORKED:
            self.asked = False
            for number in self.sent:  # nobody has obeyed them yet
                self._obey(number)
            raise _Refused((answer or "").partition(" ")[2] or "the helper of `primecli warm` has ended")
        self._let_go()
        how, _, value = (self._line() or "").partition(" ")
        if how == EXIT:
            return int(value)
        if how == SIGNAL:
            return _end_by(int(value))
        raise PrimecliError(
            "stopped, since the helper of `primecli warm` has ended", "run the same command again to continue"
        )

    def _ask(self) -> None:
        """Sends what the child is to be, with the descriptors; the last of these is the working directory."""
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
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        self.asked = True
        socket.send_fds(self.connection, [len(data).to_bytes(LENGTH_BYTES)], [*self.descriptors, here])
        os.close(here)
        self.connection.sendall(data)

    def _let_go(self) -> None:
        """Closes this process's copies of what the child now has: the ends of pipes are the child's alone."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in self.descriptors:
            if descriptor != 2:  # stderr stays for what this process may have to say
                os.dup2(null, descriptor) if descriptor < 2 else os.close(descriptor)
        os.close(null)

    def _line(self) -> str | None:
        """The next line from the other side, None at its end. Meanwhile signals are obeyed."""
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        poller.register(self.signals, select.POLLIN)
        while b"\n" not in self.received:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if self.signals in ready:
                for number in os.read(self.signals, 64):
                    self._obey(number)
            if self.connection.fileno() in ready:
                chunk = self.connection.recv(4096)
                if not chunk:
                    return None
                self.received += chunk
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()

    def _obey(self, number: int) -> None:
        """Passes a signal on to the child, or, before there is one, does what a stage would do."""
        if self.asked:
            self.sent.append(number)
            try:
                self.connection.send(bytes([number]))
            except OSError:
                return  # the end of the connection is seen where it is read
        elif number in (signal.SIGINT, signal.SIGTERM):
            name = signal.Signals(number).name
            raise Interrupted(f"interrupted by {name} (run the same command again to continue)")
        elif number not in (signal.SIGTSTP, signal.SIGCONT):
            _end_by(number)
        if number == signal.SIGTSTP:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)  # stops here, until SIGCONT
            signal.signal(number, _noted)


def _noted(number: int, frame: FrameType | None) -> None:
    """Nothing: the number has gone through the wake-up pipe."""


def _inherited_descriptors() -> list[int]:
    """The open files that whoever started this process gave it; what Python opened is not inheritable."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            continue  # that of the listing itself
    return sorted(found)


def _end_by(number: int) -> int:
    """Ends this process by the signal that ended the child, so that a shell sees the same."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    return 128 + number  # for a signal that ends the child only
