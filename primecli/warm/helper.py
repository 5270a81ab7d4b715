"""The helper of `primecli warm`: imports what stages need, then forks a child for each. See `primecli.__main__.serve`.

Forking is safe here because the helper has a single thread and has computed nothing: a child waits for no lock that
another thread held, misses no thread of a pool, and inherits no CUDA state (the driver does not survive a fork). The
helper checks this before every fork, and otherwise refuses.

It exits when COMMAND does, and takes its children with it. A child is killed at once when its front exits, for
whatever reason, and by the kernel when the helper exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from primecli.errors import PrimecliError
from primecli.structures import parse_json
from primecli.warm import child
from primecli.warm.differences import differing_variable, files_on_disk, fork_problem
from primecli.warm.imports import import_all
from primecli.warm.protocol import (
    EXIT,
    FAILURES,
    LENGTH_BYTES,
    MOST_DESCRIPTORS,
    READY,
    REFUSED,
    SESSION,
    SIGNAL,
    ready_file,
    same_user,
    surroundings,
)
from primecli.warm.quick_exit import QuickExit

RECEIVE_SECONDS = 10.0  # a front sends its request in one go, unless it is stopped in the middle
EXIT_SECONDS = 5.0  # for stages to write their summaries when COMMAND has exited; then they are killed


def main(import_primecli: Callable[[], object], run: Callable[[list[str]], int]) -> None:
    """Runs the helper, and in each of its children a stage.

    Command line: the listening socket's descriptor, COMMAND's pidfd, the socket's directory, which is removed at the
    end. import_primecli: imports what stages need of primecli. run: runs a command line and returns its exit code.
    """
    listening, command, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    process = os.getpid()
    quick_exit = QuickExit()
    signal.signal(signal.SIGTERM, _exit)
    for descriptor in open_descriptors() - {0, 1, 2, listening, command}:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    request = None
    try:
        environment = dict(os.environ)
        files = files_on_disk()
        read = import_all(command, import_primecli)
        os.chdir("/")
        helper = Helper(
            listener=socket.socket(fileno=listening), command=command, environment=environment, read=read, files=files
        )
        Path(ready_file(f"{directory}/socket")).touch()
        request = helper.serve()
    except ImportError as error:
        print(f"primecli warm: cannot import what stages need: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if os.getpid() == process:
            shutil.rmtree(directory, ignore_errors=True)
    if request is not None:  # this is a child
        quick_exit.code = run(sys.argv[1:])
        sys.exit(quick_exit.code)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


class Helper:
    """Listens, forks, forwards signals and reports exits, all in one thread.

    listener: the listening socket. command: pidfd of COMMAND. environment, files: as they were before the imports.
    read: the environment variables that the imports looked up.
    """

    def __init__(
        self,
        *,
        listener: socket.socket,
        command: int,
        environment: Mapping[str, str],
        read: set[str],
        files: list[tuple[str, int, int]],
    ) -> None:
        self.process = os.getpid()
        self.listener = listener
        self.command = command
        self.environment = environment
        self.read = read
        self.files = files
        self.surroundings = json.loads(json.dumps(surroundings()))  # compared with what comes through JSON
        self.of_libraries = open_descriptors() - {0, 1, 2, listener.fileno(), command}
        self.selector = selectors.DefaultSelector()
        self.children: dict[socket.socket, int | None] = {}  # by connection; None until the child is forked
        self.connections: dict[int, socket.socket] = {}  # by the child's pidfd
        self.deadline: float | None = None  # set when COMMAND has exited

    def serve(self) -> child.Request | None:
        """Serves until COMMAND exits, then returns None. In each child: returns the request that it has to run."""
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(self.command, selectors.EVENT_READ, self._command_exited)
        while self.deadline is None or (self.connections and time.monotonic() < self.deadline):
            left = None if self.deadline is None else self.deadline - time.monotonic()
            for key, _ in self.selector.select(left):
                if self.selector.get_map().get(key.fd) is not key:
                    continue  # closed by an earlier event of this round
                request: child.Request | None = key.data(key.fileobj)
                if request is not None:
                    return request
        self._signal_children(signal.SIGKILL)
        return None

    def _command_exited(self, command: int) -> None:
        """Accepts no further stage, and gives those that are running the time to write their summaries."""
        self.selector.unregister(command)
        self.selector.unregister(self.listener)
        self.listener.close()
        self.deadline = time.monotonic() + EXIT_SECONDS
        for connection in [connection for connection, process in self.children.items() if process is None]:
            self._drop(connection)
        self._signal_children(signal.SIGTERM)

    def _signal_children(self, number: int) -> None:
        for process in filter(None, self.children.values()):
            os.kill(process, number)  # nobody has waited for it yet, so the number is still that process's

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if not same_user(connection):
            connection.close()
            return
        connection.settimeout(RECEIVE_SECONDS)
        self.children[connection] = None
        self.selector.register(connection, selectors.EVENT_READ, self._receive)
        # the front sends its descriptors only now: in the socket's queue they would keep pipes open if it exited
        tell(connection, READY)

    def _receive(self, connection: socket.socket) -> child.Request | None:
        """Takes a request, or signals for the child, or the end of the front."""
        process = self.children[connection]
        if process is None:
            return self._fork(connection)
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self.selector.unregister(connection)
        for number in numbers or (signal.SIGKILL,):
            os.kill(process, number)  # nobody has waited for it yet, so the number is still that process's
        return None

    def _fork(self, connection: socket.socket) -> child.Request | None:
        """Forks a child for the request that comes in; returns the request in the child, None in the helper."""
        descriptors: list[int] = []
        process = -1
        try:
            request = receive(connection, descriptors)
            reason = self._refusal(request)
            if reason is None:
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the child can handle them
                process = os.fork()
        except (OSError, PrimecliError) as error:
            reason = f"the helper cannot start it: {error}"
        if process == 0:
            self._close_all_but(connection)
            return child.become(request, descriptors, connection, self.process, self.environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for descriptor in descriptors:
            os.close(descriptor)
        if reason is not None:
            tell(connection, f"{REFUSED} {reason}")
            self._drop(connection)
            return None
        pidfd = os.pidfd_open(process)
        self.children[connection] = process
        self.connections[pidfd] = connection
        self.selector.register(pidfd, selectors.EVENT_READ, self._child_exited)
        return None

    def _refusal(self, request: child.Request) -> str | None:
        """Why a child could not be what the front is; None if it could."""
        variable = differing_variable(self.environment, request["environment"], self.read)
        if variable:
            return variable
        is_rank = FAILURES in request["environment"]  # its launcher has made a session for it
        for name, value in self.surroundings.items():
            if request["surroundings"].get(name) != value and not (is_rank and name == SESSION):
                return f"{name} differs from the helper's"
        if files_on_disk() != self.files:
            return "the code on disk has changed since the helper imported it"
        taken = self.of_libraries & set(request["descriptors"])
        if taken:
            return f"file descriptor {min(taken)} is in use in the helper"
        return fork_problem()

    def _child_exited(self, pidfd: int) -> None:
        connection = self.connections.pop(pidfd)
        self.selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self.children[connection] or 0, 0)
        code = os.waitstatus_to_exitcode(status)
        tell(connection, f"{EXIT} {code}" if code >= 0 else f"{SIGNAL} {-code}")
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        del self.children[connection]
        if connection in self.selector.get_map():
            self.selector.unregister(connection)
        connection.close()

    def _close_all_but(self, own: socket.socket) -> None:
        """Closes, in a child, everything of the helper's: it would keep connections and pipes open."""
        self.selector.close()
        self.listener.close()
        for descriptor in (self.command, *self.connections):
            os.close(descriptor)
        for connection in self.children:
            if connection is not own:
                connection.close()


def open_descriptors() -> set[int]:
    """The open file descriptors of this process."""
    names = os.listdir("/proc/self/fd")
    return {int(name) for name in names if os.path.exists(f"/proc/self/fd/{name}") or name in "012"}


def tell(connection: socket.socket, line: str) -> None:
    """Sends a line to a front, which may have exited."""
    with contextlib.suppress(OSError):
        connection.sendall(f"{line}\n".encode())


def receive(connection: socket.socket, descriptors: list[int]) -> child.Request:
    """A front's request; appends the descriptors that come with it. Raises OSError or InputError if it is incomplete.

    The descriptors are appended even then, so that the caller can close them.
    """
    data, received, _, _ = socket.recv_fds(connection, LENGTH_BYTES, MOST_DESCRIPTORS)
    descriptors += received
    length = int.from_bytes(data)
    body = bytearray()
    while len(body) < length:
        chunk = connection.recv(length - len(body))
        if not chunk:
            break
        body += chunk
    return dict(parse_json(bytes(body), child.RequestFields, "the request"))
