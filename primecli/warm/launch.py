"""Starts the helper of `primecli warm`, then becomes the command that it serves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from primecli.errors import PrimecliError, UsageError
from primecli.warm.protocol import VARIABLE

SERVE = "from primecli.__main__ import serve; serve()"  # what the helper's Python runs
DIRECTORY_PREFIX = "primecli-warm-"
STARTING_SECONDS = 60.0  # far more than a helper takes from making its directory to binding its socket
LONGEST_SOCKET_PATH = 107  # bytes, the most that Linux allows


def become_command(command: Sequence[str]) -> NoReturn:
    """Starts a helper unless one is listening, and becomes `command`: the same process, with its signals and exit code.

    Raises UsageError if there is no such command, PrimecliError if it cannot be run.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]}: no such command")
    if not can_serve():
        print("primecli warm: this needs Linux 5.3 or newer; stages start without the warm helper", file=sys.stderr)
    elif not _is_listening(os.environ.get(VARIABLE)):
        os.environ[VARIABLE] = start_helper()
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and COMMAND would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise PrimecliError(f"{command[0]}: cannot be run: {error.strerror}") from error


def can_serve() -> bool:
    """Whether this system has what the helper needs. Elsewhere a fork after imports is unsafe (macOS) or untested."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _is_listening(path: str | None) -> bool:
    """Whether a helper listens at this path: `primecli warm` under `primecli warm` needs no second one."""
    if not path:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except OSError:
            return False
    return True


def remove_dead(place: Path) -> None:
    """Removes the directories of helpers that were killed, and so could not do it themselves.

    A helper that lives answers on its socket. One that is just being started has not bound it yet, and is left alone.
    """
    for directory in place.glob(f"{DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
                continue
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                    connection.connect(str(directory / "socket"))
            except ConnectionRefusedError:
                shutil.rmtree(directory)
            except FileNotFoundError:
                if time.time() - directory.stat().st_mtime > STARTING_SECONDS:
                    shutil.rmtree(directory)


def start_helper() -> str:
    """Starts a helper that exits when this process does; returns the path of its socket, in a directory of mode 0700.

    The socket accepts connections at once, while the helper is still importing.
    """
    remove_dead(Path(tempfile.gettempdir()))
    directory = tempfile.mkdtemp(prefix=DIRECTORY_PREFIX)
    if len(os.fsencode(f"{directory}/socket")) > LONGEST_SOCKET_PATH:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir="/tmp")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{directory}/socket")
    listener.listen(128)
    command = os.pidfd_open(os.getpid())
    between = os.fork()
    if between == 0:
        # forked twice, so that the helper is not a child of COMMAND, which may wait for all of its children
        if os.fork() == 0:
            _become_helper(listener.fileno(), command, directory)
        os._exit(0)
    os.waitpid(between, 0)
    os.close(command)
    listener.close()
    return f"{directory}/socket"


def _become_helper(listening: int, command: int, directory: str) -> NoReturn:
    try:
        os.setpgid(0, 0)  # the helper must not get what the terminal sends to COMMAND's group
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        if null == 2:  # stderr was closed, and is now /dev/null
            os.set_inheritable(2, True)
        for descriptor in (listening, command):
            os.set_inheritable(descriptor, True)
        os.chdir(Path(__file__).parents[2])  # so that it imports this primecli
        arguments = [str(listening), str(command), directory]
        os.execv(sys.executable, [sys.executable, "-c", SERVE, *arguments])
    finally:
        os._exit(1)
