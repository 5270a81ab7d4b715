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
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from primecli import __version__
from primecli.errors import PrimecliError, UsageError, first_line
from primecli.pipeline import pipe
from primecli.pipeline.ray_cluster import (
    check_listening,
    import_ray,
    lacking,
    our_signals,
    plan,
    quiet_descriptors,
    reason_of,
    temporary_directory,
)
from primecli.pipeline.workers import Job, Worker, Workers, portable

PATIENCE_SECONDS = 60.0  # without any worker, before we say that the cluster may have no room for one
ASK_AGAIN_SECONDS = 1.0  # whether a worker that is being restarted runs
OBJECT_STORE_BYTES = 100 << 20  # of a cluster that we start: only reports go through it. Ray's minimum is 75 MiB
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
        self._stack = contextlib.ExitStack()
        self._unavailable: list[tuple[float, _Remote]] = []  # when to ask again whether they run
        self._lacking = ""
        self._started = 0.0
        self._connected = self._ever_ready = self._warned = False

    def fileno(self) -> int:
        """As in `Workers`: the pipe into which Ray's threads write when something has come."""
        return self._read_end

    def prepare(self) -> None:
        """Does nothing: a stage that waits for input must not hold what the stage that makes its input needs."""

    def close(self) -> None:
        """Ends the actors, and the cluster where we have started it."""
        if self._connected:
            ray = import_ray()
            for actor in self._actors:
                with contextlib.suppress(Exception):  # the cluster may have gone, and nothing is left to be done then
                    ray.kill(actor.handle, no_restart=True)
            self._actors.clear()
            with our_signals(), contextlib.suppress(Exception):
                ray.shutdown()
        self._connected = False
        self._stack.close()

    # the cluster --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        ray = import_ray()
        self._stack.enter_context(pipe.stdout_of_this_thread())  # Ray's threads print, whatever it is told
        self._connected = True  # before it is, so that `close` ends what an interrupt has left half-started
        self._started = time.monotonic()
        debug = bool(os.environ.get("PRIMECLI_DEBUG"))
        options: dict[str, Any] = {
            "log_to_driver": False,  # it would print the actors' output to stdout, among the paths
            "logging_level": logging.INFO if debug else logging.CRITICAL,
        }
        if self._address == "local":
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options["_temp_dir"] = str(self._stack.enter_context(temporary_directory()))
            wanted = (self._number or 1) * int(self._resources.get("num_cpus", self._cpus or 1))
            if wanted > (os.cpu_count() or 1):  # the user says so, and this machine is all there is
                options["num_cpus"] = wanted
        elif self._address != "auto":
            check_listening(self._address)
        try:
            with our_signals(), quiet_descriptors(debug), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(address=self._address, **options)
            self._start_actors(ray)
        except PrimecliError:
            raise
        except ConnectionError as error:
            raise PrimecliError(
                f"--ray {self._address}: no Ray cluster runs here"
                if self._address == "auto"
                else f"--ray {self._address}: {reason_of(error)}",
                "start one with `ray start --head`, or use --ray local",
            ) from error
        except Exception as error:  # Ray raises what it likes, even for an address that is none
            hint = "is it running? `ray status` shows a cluster; `ray start --head` starts one"
            raise PrimecliError(f"--ray {self._address}: {reason_of(error)}", hint) from error

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
        if self._waiting and not self._connected:
            self._connect()
        for actor in self._actors:
            if self._waiting and actor.ready and actor.job is None:
                actor.job = self._waiting.popleft()
                self._watch(actor, True, actor.handle.work.remote(pickle.dumps(actor.job.item)))

    def _receive(self, seconds: float) -> None:
        select.select([self._read_end], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_end, 65536)
        now = time.monotonic()
        due = [actor for when, actor in self._unavailable if when <= now]
        self._unavailable = [(when, actor) for when, actor in self._unavailable if when > now]
        for actor in due:
            self._await_start(actor)
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
        except import_ray().exceptions.ActorUnavailableError:  # while it is being restarted
            self._unavailable.append((time.monotonic() + ASK_AGAIN_SECONDS, actor))
            return
        except Exception as error:
            raise PrimecliError(
                f"a worker on the Ray cluster cannot start: {reason_of(error)}",
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
            raise PrimecliError(f"a worker on the Ray cluster failed: {reason_of(error)}") from error
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
