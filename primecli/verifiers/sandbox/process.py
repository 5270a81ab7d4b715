"""Starts processes that cannot do harm: bubblewrap limits what they see, and resource limits what they use.

With bubblewrap, a process has no network, its own process tree, a read-only view of the interpreter and nothing else,
a fixed environment, and a private /tmp, whose size and number of files are bounded; it ends with its parent. The
resource limits bound CPU time, memory, threads, files and output. A filter of system calls (Linux on x86_64 and
aarch64) refuses new processes, signals, tracing, mounts and sockets. Landlock, where the kernel has it, hides other
processes in /proc. Wall-clock time is bounded by the caller, with a deadline for each message.

A program in bubblewrap can still learn some paths of the caller. Those of the interpreter and of the packages are in
/proc/1/cmdline and in every mountinfo, since they are mounted from there; nothing beside them can be reached. On a
kernel without Landlock, the memory of /proc/1 also holds the caller's table of mounts, as bubblewrap read it.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import platform
import select
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Self

from primecli.errors import UsageError
from primecli.verifiers.sandbox import codec, scratch

MODES = ("auto", "bwrap", "limits", "none")
INSTALL = "apt-get install bubblewrap"

NOTICES = {
    "limits": "sandbox limits: without bubblewrap a program can read this user's files, keys and the tests' answers "
    "among them, write and delete them, and reach local sockets; without Landlock (Linux 6.7 or newer) it can also "
    "read the memory and environment of this user's processes; only CPU time, memory, file size, processes and the "
    "network are bounded",
    "none": "sandbox none: programs run with all rights of this user; nothing but their time by the clock is bounded",
}
"""What each weaker mode does not protect, in one line for stderr."""

START_SECONDS = 30.0  # a sandbox starts in tens of milliseconds; on a busy machine it may take seconds
CLEAR_SECONDS = 1.0  # to delete what a program leaves behind; most leave nothing
PACKAGES = ("numpy", "numpy.libs", "sortedcontainers")  # programs may import these, if they are installed

_SYSTEM_PATHS = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/etc/ld.so.cache")
_PACKAGE = "primecli.verifiers.sandbox"

_BOOT = """
import marshal, os, sys, types
def read(size):
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data
package, modules, config = marshal.loads(read(int(read(12))))
parts = package.split(".")
for name in [".".join(parts[:count]) for count in range(1, len(parts) + 1)]:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, code in modules:
    module = sys.modules[package + "." + name] = types.ModuleType(package + "." + name)
    exec(code, module.__dict__)
    setattr(sys.modules[package], name, module)
if config["mount_bytes"]:
    sys.modules[package].scratch.mount(config["mount_bytes"])
if config["parent"]:
    sys.modules[package].seccomp.die_with_parent(config["parent"])
module.main(config)
"""
"""Loads the modules that arrive on stdin, and runs `main` of the last one."""


class SandboxFailed(Exception):
    """The sandbox did not start, or broke.

    by_program: whether values of the program broke it, as far as can be told.
    """

    def __init__(self, message: str, by_program: bool = False) -> None:
        super().__init__(message)
        self.by_program = by_program


class DeadlinePassed(Exception):
    """The other side did not answer in time."""


class Ended(Exception):
    """The other side closed its end: the process has ended, or is useless."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may use.

    cpu_seconds: CPU time of one test.
    memory_bytes: address space.
    file_bytes: size of each file; stdout is one.
    tmp_bytes: size of all of /tmp, with bubblewrap.
    """

    cpu_seconds: int = 6
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    tmp_bytes: int = 64 << 20


def resolve_mode(mode: str) -> str:
    """The mode that `mode` stands for: bwrap, limits or none. `auto` is bwrap.

    Raises UsageError for an unknown mode, and where bubblewrap does not work, with the command that installs it.
    """
    if mode not in MODES:
        raise UsageError(f"there is no sandbox {mode!r}", f"known: {', '.join(MODES)}")
    if mode in ("limits", "none"):
        return mode
    problem = bwrap_problem()
    if problem is not None:
        raise UsageError(
            f"programs of a model run only in bubblewrap, and {problem}",
            f"{INSTALL}, or choose --sandbox limits: {NOTICES['limits'].partition(': ')[2]}",
        )
    return "bwrap"


@functools.cache
def bwrap_problem() -> str | None:
    """Why bubblewrap cannot be used here; None where it works."""
    if shutil.which("bwrap") is None:
        return "bwrap is not installed"
    command = [*bwrap_command(Limits()), interpreter(), "-S", "-c", "print(6 * 7)"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=START_SECONDS, check=False, cwd="/", env={}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bwrap does not run: {error}"
    if result.stdout.strip() != "42":
        return f"bwrap does not work here: {(result.stderr.strip().splitlines() or ['no output'])[-1]}"
    return None


def interpreter() -> str:
    """The path of the interpreter itself, to which a virtual environment only links."""
    return os.path.realpath(sys.executable)


def package_paths() -> list[str]:
    """Directories of the installed packages that programs may import."""
    folders = dict.fromkeys((sysconfig.get_path("platlib"), sysconfig.get_path("purelib")))
    return [path for f in folders for name in PACKAGES if os.path.isdir(path := os.path.join(f, name))]


@functools.cache
def _view() -> tuple[str, ...]:
    """Arguments for bubblewrap: the read-only part of the file system that a process sees."""
    arguments: list[str] = []
    for path in _SYSTEM_PATHS:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            arguments += ["--ro-bind", path, path]
    program = interpreter()
    libraries = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})
    for path in dict.fromkeys((program, libraries, sysconfig.get_config_var("LIBDIR"))):
        if path and os.path.exists(path) and not path.startswith(("/usr/lib/", "/lib/", "/usr/lib64/")):
            arguments += ["--ro-bind", path, path]
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(os.path.join(libraries, name)):
            arguments += ["--tmpfs", os.path.join(libraries, name)]
    for path in package_paths():
        arguments += ["--ro-bind", path, f"/packages/{os.path.basename(path)}"]
    return tuple(arguments)


def bwrap_command(limits: Limits) -> list[str]:
    """The command line of bubblewrap, to which the command that it runs is added."""
    return [
        os.path.abspath(shutil.which("bwrap") or "/usr/bin/bwrap"),  # it starts without the caller's PATH and directory
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *(() if _is_setuid() else ("--cap-add", "CAP_SYS_ADMIN")),  # in its namespaces only; see scratch.mount
        *("--uid", "1000", "--gid", "1000", "--hostname", "sandbox"),
        *_view(),
        *("--proc", "/proc", "--dev", "/dev", "--size", str(limits.tmp_bytes), "--tmpfs", "/tmp"),
        *("--remount-ro", "/dev", "--remount-ro", "/proc", "--remount-ro", "/"),
        *("--chdir", "/tmp", "--clearenv"),
        *(word for name, value in _environment("/tmp").items() for word in ("--setenv", name, value)),
    ]


@functools.cache
def _is_setuid() -> bool:
    """Whether bubblewrap has root's rights, and so gives none away."""
    path = shutil.which("bwrap")
    return path is not None and bool(os.stat(path).st_mode & stat.S_ISUID)


def _environment(home: str) -> dict[str, str]:
    """All that a program sees in os.environ, whatever the caller has there; bubblewrap adds PWD=/tmp."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # so that a program that iterates over a set prints the same each time
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


@functools.cache
def compiled_module(name: str) -> CodeType:
    """The code of a module of this package, as it is sent to a sandbox."""
    path = Path(__file__).with_name(f"{name}.py")
    return compile(path.read_bytes(), f"{name}.py", "exec", dont_inherit=True)


class Process:
    """One process in a sandbox, with which messages are exchanged over its stdin and stdout.

    A context manager, which ends the process. Raises SandboxFailed where it does not start.

    mode: bwrap, limits or none.
    limits: what it may use.
    modules: the modules of this package that it loads, in this order. It runs `main(config)` of the last one.
    config: what that `main` needs; the sandbox adds its own entries.
    pass_fds: file descriptors that it inherits.
    own_home: whether it has a directory of its own without bubblewrap, too, which is deleted when it ends.
    """

    def __init__(
        self,
        mode: str,
        limits: Limits,
        modules: Sequence[str],
        config: dict[str, Any],
        pass_fds: Sequence[int] = (),
        own_home: bool = True,
    ) -> None:
        assert mode in ("bwrap", "limits", "none"), mode
        self.mode = mode
        self._unread = b""
        self._home: str | None = None
        arguments = [interpreter(), "-s", "-S", "-P", "-c", _BOOT]
        home = "/"  # bubblewrap keeps its working directory in memory, and a program may see that memory
        environment: dict[str, str] = {}
        if mode == "bwrap":
            # its first process stays visible as /proc/1, so it must not start with the caller's environment; it needs
            # none, and sets the program's from its arguments
            arguments = [*bwrap_command(limits), *arguments]
            packages = ["/packages"]
        else:
            home = tempfile.mkdtemp(prefix="primecli-") if own_home else tempfile.gettempdir()
            self._home = home if own_home else None
            environment = _environment(home)
            packages = list(dict.fromkeys(os.path.dirname(path) for path in package_paths()))
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=pass_fds,
                cwd=home,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            self._forget_home()
            raise SandboxFailed(f"{arguments[0]} does not start: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.to_process = self._process.stdin.fileno()
        self.from_process = self._process.stdout.fileno()
        config = {
            **config,
            "limits": mode != "none",
            "cpu_seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "packages": packages,
            "mount_bytes": limits.tmp_bytes if mode == "bwrap" else 0,
            "parent": os.getpid() if mode != "bwrap" and platform.system() == "Linux" else 0,
        }
        try:
            self._greet(modules, config)
        except BaseException:
            self.close()
            raise

    def _greet(self, modules: Sequence[str], config: dict[str, Any]) -> None:
        """Sends the modules, and waits until they are loaded."""
        load = marshal.dumps((_PACKAGE, [(name, compiled_module(name)) for name in modules], config))
        try:
            self.send(b"%12d" % len(load) + load, time.monotonic() + START_SECONDS)
            reply = self.receive(time.monotonic() + START_SECONDS)
        except (Ended, DeadlinePassed, codec.Malformed) as error:
            self._process.kill()
            assert self._process.stderr is not None
            stderr = self._process.stderr.read(4000).decode(errors="replace").strip().splitlines()
            raise SandboxFailed(f"the sandbox did not start: {(stderr or [type(error).__name__])[-1]}"[:300]) from None
        if reply != ["hello"]:
            raise SandboxFailed("the sandbox did not start as it should")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes, deadline: float) -> None:
        """Writes all of `data`. deadline: on the monotonic clock. Raises DeadlinePassed, Ended."""
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self.to_process], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise DeadlinePassed
            try:
                view = view[os.write(self.to_process, view[: select.PIPE_BUF]) :]
            except BrokenPipeError:
                raise Ended from None

    def read(self, size: int, deadline: float) -> bytes:
        """Reads `size` bytes. Raises DeadlinePassed, Ended."""
        parts = [self._unread[:size]]
        self._unread = self._unread[size:]
        missing = size - len(parts[0])
        while missing:
            parts.append(self._chunk(min(missing, 1 << 20), deadline))
            missing -= len(parts[-1])
        return b"".join(parts)

    def receive(self, deadline: float) -> Any:
        """Reads one message, whose values are still encoded. Raises DeadlinePassed, Ended, Malformed."""
        parts = []
        size = 0
        chunk = self._unread
        while b"\n" not in chunk:
            parts.append(chunk)
            size += len(chunk)
            if size > codec.MAX_LINE:
                raise codec.Malformed(f"a message of more than {codec.MAX_LINE} bytes")
            chunk = self._chunk(1 << 16, deadline)
        last, _, self._unread = chunk.partition(b"\n")
        return codec.load_line(b"".join([*parts, last]))

    def _chunk(self, size: int, deadline: float) -> bytes:
        ready, _, _ = select.select([self.from_process], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise DeadlinePassed
        data = os.read(self.from_process, size)
        if not data:
            raise Ended
        return data

    def status(self, seconds: float = 1.0) -> int | None:
        """The exit status, or minus the signal that ended the process; None if it runs on for so many seconds."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return 128 - status if self.mode == "bwrap" and status > 128 else status  # as bubblewrap reports a signal

    @property
    def pid(self) -> int:
        """The process id of bubblewrap, or of the process itself."""
        return self._process.pid

    def close(self) -> None:
        """Kills the process and everything that it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._forget_home()

    def _forget_home(self) -> None:
        if self._home is not None:
            scratch.remove(self._home, CLEAR_SECONDS, interpreter())
            self._home = None
