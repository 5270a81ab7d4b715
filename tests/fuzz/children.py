"""Commands in children forked from a process that has imported everything: a start costs hundredths of a second.

A child that hangs, crashes or is killed leaves the parent as it was, unlike a command that is run in this process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from primecli import cli
from primecli.warm.child import take_signals
from primecli.warm.imports import import_all

MEMORY_BYTES = 24 << 30  # of address space, most of which torch only reserves
CRASHED = 97  # the exit code of a child whose own preparation failed


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    code: its exit code; a negative number is the signal that killed it; None where it ran past its time.
    out, err: what it wrote. seconds: how long it ran.
    """

    code: int | None
    out: str
    err: str
    seconds: float


def prepare() -> None:
    """Imports what the commands need. Afterwards this process has a single thread and may fork.

    SIGTERM then ends it by an exception, so that its temporary files are removed.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    for name in [name for name in os.environ if name.startswith("PRIMECLI_")]:
        del os.environ[name]
    for name in ("rich.live", "pandas"):
        with contextlib.suppress(ImportError):
            __import__(name)
    process = os.pidfd_open(os.getpid())
    import_all(process, cli.import_stages)
    os.close(process)
    for name in cli.built_app().commands:
        cli.built_app().commands[name]


def run(
    arguments: Sequence[object],
    directory: Path,
    *,
    limit: float,
    before: Callable[[], object] | None = None,
    during: Callable[[int], object] | None = None,
) -> Ended:
    """Runs a command of primecli in a child, with `directory` as working directory.

    limit: seconds until the child and its own children are killed. before: called in the child before the command.
    during: called in this process with the child's process number, as soon as it has started.
    """
    streams = [os.memfd_create(name) for name in ("out", "err")]
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(arguments, directory, streams, before)
    descriptor = os.pidfd_open(child)
    try:
        if during is not None:
            during(child)
        ended, _, _ = select.select([descriptor], [], [], limit)
    finally:
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # also what it has left behind
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # which had no group yet
        _, status = os.waitpid(child, 0)
    texts = []
    for stream in streams:
        os.lseek(stream, 0, os.SEEK_SET)
        with open(stream, "rb") as file:
            texts.append(file.read().decode(errors="backslashreplace"))
    code = os.waitstatus_to_exitcode(status) if ended else None
    return Ended(code, texts[0], texts[1], time.monotonic() - started)


def _become(
    arguments: Sequence[object], directory: Path, streams: Sequence[int], before: Callable[[], object] | None
) -> None:
    code = CRASHED
    try:
        os.setpgid(0, 0)
        take_signals([])
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((nothing, *streams)):
            os.dup2(descriptor, number)
        for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            stream = open(number, "w" if number else "r", buffering=1 if number == 2 else -1, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        os.chdir(directory)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        words = [str(argument) for argument in arguments]
        sys.argv = ["primecli", *words]
        if before is not None:
            before()
        code = cli.run(words)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
