"""Workers that are actors on a Ray cluster, on this machine or on many.

Shards and models lie on a file system that all machines see, and only small things go through Ray: jobs, and what
is reported of them. An actor works in the directory of the stage, so relative paths mean the same there.

Ray restarts an actor that has died, on another node if need be (max_restarts). What it was doing is given to any other
actor at once: a node that is gone may leave room for fewer actors, and a restarted one may never come. So Ray itself
retries no job (max_task_retries), and `Workers` counts how often that happens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from primecli import __version__
from primecli.errors import PrimecliError, UsageError, first_line
from primecli.pipeline import pipe
from primecli.pipeline.workers import Job, Worker, Workers, portable

PATIENCE_SECONDS = 30.0  # without any worker, before we say that the cluster may have no room for one
CONNECT_SECONDS = 10.0  # to see whether anything listens at an address; Ray itself tries for minutes
OBJECT_STORE_BYTES = 100 << 20  # of a cluster that we start: only reports go through it. Ray's minimum is 75 MiB
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour that Ray is about to adopt; otherwise it warns
}
PASSED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "PRIMECLI_DEBUG")
"""Variables that mean the same on every machine."""

RESTART_FOREVER = -1


@dataclass(slots=True, eq=False)
class _Remote:
    """One actor.

    handle: Ray's.
    ready: whether it runs.
    job: what it is doing; None while it waits.
    """

    handle: Any
    ready: bool = False
    job: Job | None = None


class RayWorkers(Workers):
    """Actors on a Ray cluster, which is joined, or started, when the first job comes.

    open_worker: called in each actor, to open its worker; it has to be pickled, so it is a function of a module, or a
        functools.partial of one.
    address: local, auto, host:port or ray://host:port.
    number: how many actors; None for one per GPU or, where they use none, one per node.
    resources: what each of them takes, by Ray's names, such as {"num_gpus": 1}.
    gpus: whether they use a GPU where the cluster has any.
    cpus: how many CPUs each takes where `resources` does not say; None for its share of a node or, with a GPU, 1.
    The other arguments are as in `Workers`.
    """

    def __init__(
        self,
        open_worker: Callable[[], Worker],
        address: str,
        number: int | None = None,
        resources: Mapping[str, float] | None = None,
        *,
        gpus: bool = False,
        cpus: int | None = None,
        advance: Callable[[int], None] = lambda rows: None,
        warn: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = pipe.check_reader,
    ) -> None:
        super().__init__(number or 1, advance=advance, warn=warn, check=check)
        import_ray()
        self._opener = pickle.dumps(open_worker)
        self._address = address
        self._number = number
        self._resources = dict(resources or {})
        self._gpus = gpus
        self._cpus = cpus
        self._actors: list[_Remote] = []
        self._news: SimpleQueue[tuple[_Remote, bool, Any]] = SimpleQueue()  # actor, whether of a job, Ray's future
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._temporary: str | None = None
        self._lacking = ""
        self._started = 0.0
        self._connected = self._ever_ready = self._warned = False

    def fileno(self) -> int:
        """As in `Workers`: the pipe into which Ray's threads write when something has come."""
        return self._read_end

    def prepare(self) -> None:
        """Joins the cluster and starts the actors, which import what they need."""
        if not self._connected:
            self._connect()

    def close(self) -> None:
        """Ends the actors, and the cluster where we have started it."""
        if self._connected:
            ray = import_ray()
            for actor in self._actors:
                with contextlib.suppress(Exception):  # the cluster may have gone, and nothing is left to be done then
                    ray.kill(actor.handle, no_restart=True)
            self._actors.clear()
            with _our_signals(), contextlib.suppress(Exception):
                ray.shutdown()
        self._connected = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    # the cluster --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        ray = import_ray()
        self._connected = True  # before it is, so that `close` ends what an interrupt has left half-started
        self._started = time.monotonic()
        debug = bool(os.environ.get("PRIMECLI_DEBUG"))
        options: dict[str, Any] = {
            "log_to_driver": False,  # it would print the actors' output to stdout, among the paths
            "logging_level": logging.INFO if debug else logging.CRITICAL,
        }
        if self._address == "local":
            self._temporary = tempfile.mkdtemp(prefix="primecli-ray-", dir="/tmp")  # sockets need a short path
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options["_temp_dir"] = self._temporary
            wanted = (self._number or 1) * int(self._resources.get("num_cpus", self._cpus or 1))
            if wanted > (os.cpu_count() or 1):  # the user says so, and this machine is all there is
                options["num_cpus"] = wanted
        elif self._address != "auto":
            _check_listening(self._address)
        try:
            with _our_signals(), _quiet_descriptors(debug), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=self._address, **options)
            self._start_actors(ray)
        except PrimecliError:
            raise
        except ConnectionError as error:
            raise PrimecliError(
                f"--ray {self._address}: no Ray cluster runs here"
                if self._address == "auto"
                else f"--ray {self._address}: {_reason(error)}",
                "start one with `ray start --head`, or use --ray local",
            ) from error
        except Exception as error:  # Ray raises what it likes, even for an address that is none
            hint = "is it running? `ray status` shows a cluster; `ray start --head` starts one"
            raise PrimecliError(f"--ray {self._address}: {_reason(error)}", hint) from error

    def _start_actors(self, ray: Any) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.count, resources = plan(nodes, self._number, self._resources, gpus=self._gpus, cpus=self._cpus)
        self.most = 2 * self.count + 1
        self._lacking = lacking(nodes, resources)
        if self._lacking and self._address == "local":
            raise UsageError(f"--ray-resources: this machine has no {self._lacking} for a worker")
        known = {name: resources.pop(name) for name in ("num_cpus", "num_gpus", "memory") if name in resources}
        try:
            actor_class = ray.remote(_Actor).options(
                **known,
                resources=resources,
                max_restarts=RESTART_FOREVER,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            surroundings = {
                "directory": os.getcwd(),
                "path": [os.path.abspath(entry) for entry in sys.path],
                "environment": {name: os.environ[name] for name in PASSED_ON if name in os.environ},
            }
            self._actors = [_Remote(actor_class.remote(self._opener, surroundings)) for _ in range(self.count)]
        except ValueError as error:
            raise UsageError(f"--ray-resources: {first_line(error)}") from error
        for actor in self._actors:
            self._await_start(actor)

    def _await_start(self, actor: _Remote) -> None:
        """Asks an actor to answer as soon as it runs, again after each restart."""
        actor.ready = False
        self._watch(actor, False, actor.handle.ready.options(max_task_retries=RESTART_FOREVER).remote())

    def _watch(self, actor: _Remote, of_job: bool, reference: Any) -> None:
        def tell(future: Any) -> None:  # in a thread of Ray's
            self._news.put((actor, of_job, future))
            with contextlib.suppress(OSError):  # the pipe is full of news, or closed
                os.write(self._write_end, b"\0")

        reference.future().add_done_callback(tell)

    # jobs ---------------------------------------------------------------------------------------------

    def _deal(self) -> None:
        if self._waiting:
            self.prepare()
        for actor in self._actors:
            if self._waiting and actor.ready and actor.job is None:
                actor.job = self._waiting.popleft()
                self._watch(actor, True, actor.handle.work.remote(pickle.dumps(actor.job.item)))

    def _receive(self, seconds: float) -> None:
        select.select([self._read_end], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 65536)
        while not self._news.empty():
            actor, of_job, future = self._news.get()
            if not of_job:
                self._started_or_not(actor, future)
            elif actor.job is not None:
                self._answered(actor, actor.job, future)
        if self._waiting and not (self._ever_ready or self._warned):
            self._say_if_none_starts()

    def _say_if_none_starts(self) -> None:
        if time.monotonic() - self._started > PATIENCE_SECONDS:
            self._warned = True
            reason = f"no machine has {self._lacking} for one" if self._lacking else "is the cluster busy?"
            self.warn(f"still waiting for the first worker: {reason} (see `ray status`)")

    def _started_or_not(self, actor: _Remote, future: Any) -> None:
        try:
            version = future.result()
        except Exception as error:
            raise PrimecliError(
                f"a worker on the Ray cluster cannot start: {_reason(error)}",
                "every machine needs the same primecli, and a file system with the same paths",
            ) from error
        if version != __version__:
            raise PrimecliError(
                f"a worker on the Ray cluster has primecli {version}, and this is {__version__}",
                "install the same version on every machine",
            )
        actor.ready = self._ever_ready = True

    def _answered(self, actor: _Remote, job: Job, future: Any) -> None:
        exceptions = import_ray().exceptions
        actor.job = None
        try:
            kind, content = pickle.loads(future.result())
        except exceptions.RayTaskError as error:  # none of ours: those are in the answer
            raise PrimecliError(f"a worker on the Ray cluster failed: {_reason(error)}") from error
        except exceptions.RayError as error:  # of the system: a process, a node or the memory of one has gone
            self._await_start(actor)
            self.lost(job, f"was lost ({type(error).__name__})", "see `ray status`; memory may have run out there")
            return
        if kind == "failed":
            self.failed(job, content)
            return
        self.advance(content["rows"])
        self.finished(job, content["result"])


class _Actor:
    """What runs on the cluster. Errors of jobs are part of the answer, so that Ray neither wraps nor retries them."""

    def __init__(self, opener: bytes, surroundings: Mapping[str, Any]) -> None:
        os.environ.update(surroundings["environment"])
        sys.path += [entry for entry in surroundings["path"] if entry not in sys.path]
        self.opener = opener
        self.worker: Worker | None = None
        try:
            os.chdir(surroundings["directory"])
        except OSError as error:
            raise RuntimeError(
                f"{surroundings['directory']} cannot be entered on {socket.gethostname()}: {error.strerror}"
            ) from None

    def ready(self) -> str:
        """The version of primecli here."""
        return __version__

    def work(self, item: bytes) -> bytes:
        """Does one job. Returns, pickled, ("done", {"rows", "result"}) or ("failed", the error)."""
        rows = 0

        def advance(more: int) -> None:
            nonlocal rows
            rows += more

        try:
            if self.worker is None:
                self.worker = pickle.loads(self.opener)()
            result = self.worker.work(pickle.loads(item), advance)
            return pickle.dumps(("done", {"rows": rows, "result": result}))
        except Exception as error:
            return pickle.dumps(("failed", portable(error)))


def plan(
    nodes: list[Mapping[str, float]],
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


def lacking(nodes: list[Mapping[str, float]], takes: Mapping[str, float]) -> str:
    """What no node has enough of for an actor, such as "num_gpus 1"; empty if one has room for it. As in `plan`.

    >>> lacking([{"CPU": 8.0}], {"num_cpus": 4}), lacking([{"CPU": 8.0}], {"num_cpus": 4, "num_gpus": 1})
    ('', 'num_gpus 1')
    """
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    missing: list[list[str]] = [
        [f"{name} {amount:g}" for name, amount in takes.items() if node.get(names.get(name, name), 0.0) < amount]
        for node in nodes
    ]
    return ", ".join(min(missing, key=lambda names: len(names), default=[]))


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


def _check_listening(address: str) -> None:
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


def _reason(error: BaseException) -> str:
    """The last line of what Ray says: before it come the traces of its own processes."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Keeps the handlers of signals, which Ray replaces by its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_descriptors(show: bool) -> Iterator[None]:
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
