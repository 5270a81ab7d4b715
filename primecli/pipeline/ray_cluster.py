"""Joining a Ray cluster without a word of Ray's, and what of it a stage takes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from primecli.errors import PrimecliError, UsageError
from primecli.files import LOCK_NAME, is_locked, lock

CONNECT_SECONDS = 10.0  # to see whether anything listens at an address; Ray itself tries for minutes
DIRECTORY_PREFIX = "primecli-ray-"
STARTING_SECONDS = 60.0  # a younger directory may belong to a stage that has not locked it yet
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour that Ray is about to adopt; otherwise it warns
}


def plan(
    nodes: Sequence[Mapping[str, float]],
    number: int | None,
    resources: Mapping[str, float],
    *,
    gpus: bool,
    cpus: int | None = None,
) -> tuple[int, dict[str, float]]:
    """How many actors, and what each takes. nodes: what each node has, by Ray's names; the rest as in `RayWorkers`.

    >>> plan([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}], None, {}, gpus=True)
    (4, {'num_gpus': 1, 'num_cpus': 1})
    >>> plan([{"CPU": 8.0}, {"CPU": 8.0}], 4, {}, gpus=True)
    (4, {'num_cpus': 4})
    """
    takes = dict(resources)
    all_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if gpus and all_gpus:
        takes.setdefault("num_gpus", 1)
    per_node = [int(node.get("CPU", 0.0)) for node in nodes if node.get("CPU", 0.0) >= 1] or [1]
    if takes.get("num_gpus"):
        count = number or max(1, int(all_gpus // takes["num_gpus"]))
        takes.setdefault("num_cpus", cpus or 1)
    else:
        count = number or len(per_node)
        takes.setdefault("num_cpus", cpus or max(1, min(per_node) // -(-count // len(per_node))))
    return count, takes


def lacking(nodes: Sequence[Mapping[str, float]], takes: Mapping[str, float]) -> str:
    """What no node has enough of for an actor, such as "num_gpus 1"; empty if one has room for it. As in `plan`.

    >>> lacking([{"CPU": 8.0}], {"num_cpus": 4}), lacking([{"CPU": 8.0}], {"num_cpus": 4, "num_gpus": 1})
    ('', 'num_gpus 1')
    """
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    missing: list[list[str]] = [
        [f"{name} {amount:g}" for name, amount in takes.items() if node.get(names.get(name, name), 0.0) < amount]
        for node in nodes
    ]
    return ", ".join(min(missing, key=lambda lack: len([*lack]), default=[]))


def assigned_cpus() -> int:
    """The CPUs that Ray has given to the actor in which this is called; at least 1."""
    assigned = import_ray().get_runtime_context().get_assigned_resources()
    return max(1, int(assigned.get("CPU", 1)))


def import_ray() -> Any:
    """The package ray. Raises PrimecliError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise PrimecliError("--ray needs the package ray, which is not installed", "pip install ray") from None
    return ray


def check_listening(address: str) -> None:
    """Raises PrimecliError where nothing listens at an address, UsageError where it is none."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--ray {address}: is neither local nor auto, nor an address such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise PrimecliError(
            f"--ray {address}: nothing answers there: {error.strerror or error}", "is the cluster running?"
        ) from None


def reason_of(error: BaseException) -> str:
    """The last line of what Ray says: before it come the traces of its own processes."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def temporary_directory(place: Path = Path("/tmp")) -> Iterator[Path]:
    """A directory for a cluster that this process starts, removed at the end. Removes those of killed processes first.

    place: where; its path has to be short, since sockets lie below it.
    """
    for old in place.glob(f"{DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):
            ours = not old.is_symlink() and old.stat().st_uid == os.geteuid()
            if ours and time.time() - old.stat().st_mtime > STARTING_SECONDS and not is_locked(old / LOCK_NAME):
                shutil.rmtree(old)
    directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=place))
    try:
        with lock(directory / LOCK_NAME, str(directory)):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def our_signals() -> Iterator[None]:
    """Keeps the handlers of signals, which Ray replaces by its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def quiet_descriptors(show: bool) -> Iterator[None]:
    """Hides our stdin and stdout from the processes that are started meanwhile, and stderr, too, unless `show`.

    They may outlive this process for a moment, and would hold the pipes open.
    """
    kept = [os.dup(number) for number in range(3)]
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, 0)
        os.dup2(2 if show else null, 1)
        if not show:
            os.dup2(null, 2)
        yield
    finally:
        for number, descriptor in enumerate(kept):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(null)
