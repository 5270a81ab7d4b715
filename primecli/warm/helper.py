"""The helper of `primecli warm`: imports what stages need, then forks a child for each. See `primecli.__main__.serve`.

Forking is safe here because the helper has one thread and has computed nothing: no lock is held that a child would
wait for, no pool of threads is missing in it, CUDA has not been touched (its driver does not survive a fork). The
helper checks that before every fork, and refuses otherwise.

It ends when the process ends that COMMAND is, and its children with it. A child is killed at once when its front
ends, however that happens, and by the kernel when the helper ends.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import select
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from primecli.warm import child
from primecli.warm.protocol import (
    EXIT,
    LENGTH_BYTES,
    MOST_DESCRIPTORS,
    PLAIN,
    READY,
    SIGNAL,
    ready_file,
    same_user,
    surroundings,
)
from primecli.warm.quick_exit import QuickEnd

IMPORTS = (
    "pyarrow.compute",
    "pyarrow.parquet",
    "torch",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",  # imports nearly all that another architecture's module does
    "transformers.models.qwen2.tokenization_qwen2",
    "rich.table",
)
IMPORTS_IF_INSTALLED = ("pandas", "pyarrow.pandas_compat")  # Arrow imports them with its first table
LIBRARIES = ("numpy", "pyarrow", "torch", "transformers")

READ_BY_LIBRARIES = (
    *("PYTHON", "LC_", "LANG", "LD_", "GLIBC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_"),
    *("ATEN_", "TORCH_", "PYTORCH_", "CUDA_", "NCCL_", "ARROW_", "JE_ARROW_", "MIMALLOC_", "TQDM_"),
)
"""How variables begin that libraries read when they are loaded: in C, or by looking through all variables."""

READ_LATER = frozenset(
    {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "COLUMNS", "LINES", "PWD", "OLDPWD", "SHLVL", "_", "PYTHON"}
)
"""Variables that a child can follow all the same, or that only shells and Makefiles read. A library may keep the
terminal's size from its import (accelerate's menus do), but nothing that a stage shows is of that size."""

RECEIVE_SECONDS = 10.0  # a front sends its request in one go, unless it is stopped in the middle
ENDING_SECONDS = 5.0  # for stages that still run when COMMAND has ended; then they are killed


@contextlib.contextmanager
def recording_environment() -> Iterator[set[str]]:
    """The names of the variables that Python code looks up meanwhile, whether they are set or not."""
    names: set[str] = set()
    encode: Callable[[str], Any] = os.environ.encodekey

    def record(name: str) -> Any:
        if sys._getframe(2).f_code.co_name != "__iter__":  # items() looks at all of them; tqdm picks out TQDM_ so
            names.add(name)
        return encode(name)

    os.environ.encodekey = record
    try:
        yield names
    finally:
        os.environ.encodekey = encode


def files_on_disk() -> list[tuple[str, int, int]]:
    """Name, size and time of primecli's modules and of each library's first: tells whether they have been replaced."""
    paths = sorted(Path(__file__).parents[1].rglob("*.py"))
    specs = [importlib.util.find_spec(name) for name in LIBRARIES]
    paths += [Path(spec.origin) for spec in specs if spec and spec.origin]
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    return found


def differing_variable(ours: Mapping[str, str], theirs: Mapping[str, str], read: set[str]) -> str | None:
    """The first variable that differs and was read when the libraries were imported, in words; or None.

    ours: the environment that they were imported in. theirs: that of the front. read: names that were looked up.

    >>> differing_variable({"HF_HUB_OFFLINE": "1", "SEED": "0"}, {"SEED": "1"}, {"HF_HUB_OFFLINE"})
    'HF_HUB_OFFLINE is unset here and 1 in the helper'
    """
    for name in sorted({*ours, *theirs} - READ_LATER):
        if ours.get(name) != theirs.get(name) and (name in read or name.startswith(READ_BY_LIBRARIES)):
            return f"{name} is {theirs.get(name, 'unset')} here and {ours.get(name, 'unset')} in the helper"
    threads = theirs.get("OMP_NUM_THREADS")
    if threads != ours.get("OMP_NUM_THREADS") and not (threads and threads.isdecimal() and int(threads)):
        return f"OMP_NUM_THREADS is {threads or 'unset'} here, which a running process cannot follow"
    return None


def unfit() -> str | None:
    """Why this process should fork no stage; None where it may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the helper has {threads} threads"
    if sys.modules["torch"].cuda.is_initialized():
        return "the helper has initialised CUDA"
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(("/dev/nvidia", "/dev/kfd")):
                return "the helper has opened a GPU"
    return None


class Helper:
    """Listens, forks, passes signals on and reports ends; all in one thread.

    command: pidfd of the process that COMMAND is. environment, read, files: as they were before the imports.
    """

    def __init__(
        self,
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
        self.surroundings = json.loads(json.dumps(surroundings()))
        self.of_libraries = open_descriptors() - {0, 1, 2, listener.fileno(), command}
        self.selector = selectors.DefaultSelector()
        self.children: dict[socket.socket, int | None] = {}  # by connection; None before there is one
        self.ends: dict[int, socket.socket] = {}  # connection by its child's pidfd
        self.deadline: float | None = None  # from when COMMAND has ended

    def serve(self) -> child.Request | None:
        """Serves until COMMAND ends, then returns None. In each child: returns what it is to run."""
        self.selector.register(self.listener, selectors.EVENT_READ, self._greet)
        self.selector.register(self.command, selectors.EVENT_READ, self._end)
        while self.deadline is None or (self.ends and time.monotonic() < self.deadline):
            left = None if self.deadline is None else self.deadline - time.monotonic()
            for key, _ in self.selector.select(left):
                if self.selector.get_map().get(key.fd) is not key:
                    continue  # something before it in this round has closed it
                request: child.Request | None = key.data(key.fileobj)
                if request is not None:
                    return request
        self._signal_all(signal.SIGKILL)
        return None

    def _end(self, command: int) -> None:
        """COMMAND has ended: no further stage, and those that still run get the time to write their summaries."""
        self.selector.unregister(command)
        self.selector.unregister(self.listener)
        self.listener.close()
        self.deadline = time.monotonic() + ENDING_SECONDS
        for connection in [connection for connection, process in self.children.items() if process is None]:
            self._drop(connection)
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for process in filter(None, self.children.values()):
            os.kill(process, number)  # nobody has waited for it yet, so it is still that process

    def _greet(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if not same_user(connection):
            connection.close()
            return
        connection.settimeout(RECEIVE_SECONDS)
        self.children[connection] = None
        self.selector.register(connection, selectors.EVENT_READ, self._hear)
        # only now are descriptors sent: in the queue they would keep pipes open whose front has gone
        tell(connection, READY)

    def _hear(self, connection: socket.socket) -> child.Request | None:
        """A request, or signals for a child, or the end of a front."""
        process = self.children[connection]
        if process is None:
            return self._start(connection)
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        if not numbers:
            self.selector.unregister(connection)
        for number in numbers or (signal.SIGKILL,):
            os.kill(process, number)  # nobody has waited for it yet, so it is still that process
        return None

    def _start(self, connection: socket.socket) -> child.Request | None:
        """Forks a child for a request, which it returns in the child."""
        descriptors: list[int] = []
        process = -1
        try:
            request = receive(connection, descriptors)
            reason = self._refusal(request)
            if reason is None:
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until the child can take them
                process = os.fork()
        except (OSError, ValueError) as error:
            reason = f"the helper cannot start it: {error}"
        if process == 0:
            self._leave(connection)
            return child.become(request, descriptors, connection, self.process, self.environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for descriptor in descriptors:
            os.close(descriptor)
        if reason is not None:
            tell(connection, f"{PLAIN} {reason}")
            self._drop(connection)
            return None
        pidfd = os.pidfd_open(process)
        self.children[connection] = process
        self.ends[pidfd] = connection
        self.selector.register(pidfd, selectors.EVENT_READ, self._reap)
        return None

    def _reap(self, pidfd: int) -> None:
        connection = self.ends.pop(pidfd)
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

    def _refusal(self, request: child.Request) -> str | None:
        variable = differing_variable(self.environment, request["environment"], self.read)
        if variable:
            return variable
        for name, value in self.surroundings.items():
            if request["surroundings"].get(name) != value:
                return f"{name} is not that of the helper"
        if files_on_disk() != self.files:
            return "the code on disk is not what the helper imported"
        taken = self.of_libraries & set(request["descriptors"])
        if taken:
            return f"file descriptor {min(taken)} is in use in the helper"
        return unfit()

    def _leave(self, kept: socket.socket) -> None:
        """Closes, in a child, all that is the helper's: it would keep connections and pipes open."""
        self.selector.close()
        self.listener.close()
        for descriptor in (self.command, *self.ends):
            os.close(descriptor)
        for connection in self.children:
            if connection is not kept:
                connection.close()


def open_descriptors() -> set[int]:
    """The open file descriptors of this process."""
    names = os.listdir("/proc/self/fd")
    return {int(name) for name in names if os.path.exists(f"/proc/self/fd/{name}") or name in "012"}


def tell(connection: socket.socket, line: str) -> None:
    """Sends a line to a front, which may have gone."""
    with contextlib.suppress(OSError):
        connection.sendall(f"{line}\n".encode())


def receive(connection: socket.socket, descriptors: list[int]) -> child.Request:
    """A front's request; appends what came with it to `descriptors`. Raises OSError or ValueError for a part of one."""
    data, received, _, _ = socket.recv_fds(connection, LENGTH_BYTES, MOST_DESCRIPTORS)
    descriptors += received
    length = int.from_bytes(data)
    body = bytearray()
    while len(body) < length:
        chunk = connection.recv(length - len(body))
        if not chunk:
            break
        body += chunk
    return dict(json.loads(body.decode()))


class EndWithCommand:
    """A finder that finds nothing: ends this process in the middle of its imports when COMMAND has ended."""

    def __init__(self, command: int) -> None:
        self.poller = select.poll()
        self.poller.register(command, select.POLLIN)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Looks whether COMMAND has ended."""
        if self.poller.poll(0):
            sys.exit(0)


def import_all(command: int, import_primecli: Callable[[], object]) -> set[str]:
    """Imports what stages need; returns the names of the variables that were looked up. Leaves one thread.

    import_primecli: imports what they need of primecli.
    """
    # Arrow's allocator would start a thread; Arrow does not use that allocator unless told to
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    finder = EndWithCommand(command)
    sys.meta_path.insert(0, finder)
    with recording_environment() as read:
        for name in (*IMPORTS, *filter(importlib.util.find_spec, IMPORTS_IF_INSTALLED)):
            importlib.import_module(name)
        import_primecli()
        # all architectures' names of weights, which transformers makes for the first model that it loads: 0.1 s
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("qwen2")
    sys.meta_path.remove(finder)
    if os.fork() == 0:
        os._exit(0)
    os.wait()  # OpenBLAS has now ended its threads, as it does at any fork, and starts none before it computes
    gc.collect()
    gc.freeze()  # a collection in a child would otherwise write to, and so copy, all pages
    return set(read)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main(import_primecli: Callable[[], object], run: Callable[[list[str]], int]) -> None:
    """Arguments: the listening socket's descriptor, COMMAND's pidfd, the socket's directory, removed at the end.

    import_primecli: imports what stages need of primecli. run: runs a command line and returns its exit code.
    """
    listening, command, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    process = os.getpid()
    ending = QuickEnd()
    signal.signal(signal.SIGTERM, _end)
    for descriptor in open_descriptors() - {0, 1, 2, listening, command}:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    request = None
    try:
        environment = dict(os.environ)
        files = files_on_disk()
        read = import_all(command, import_primecli)
        os.chdir("/")
        helper = Helper(socket.socket(fileno=listening), command, environment, read, files)
        Path(ready_file(f"{directory}/socket")).touch()
        request = helper.serve()
    except ImportError as error:
        print(f"primecli warm: cannot import what stages need: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if os.getpid() == process:
            shutil.rmtree(directory, ignore_errors=True)
    if request is not None:
        ending.code = run(sys.argv[1:])
        sys.exit(ending.code)
