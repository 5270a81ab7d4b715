"""Jobs for other processes: dealt out as workers become free, and delivered in the order in which they came in.

    with LocalWorkers(open_worker, places, ...) as workers:
        for shard in ...:
            workers.submit(shard.name, item, deliver=commit)
        workers.finish()

Who the workers are is the business of a subclass: child processes of this one (local_workers.py) or actors on a Ray
cluster (ray_workers.py). What all have in common is here: order, how many jobs are in flight, and what happens when a
worker dies. A job whose worker dies is done again by another, at most RETRIES times. A job that fails with an error is
never done again: the same input would fail again.
"""

from __future__ import annotations

import pickle
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from primecli.errors import PrimecliError, first_line, is_out_of_memory
from primecli.pipeline import pipe

RETRIES = 3  # how often a job is done again whose worker died; more often it is not an accident
TICK_SECONDS = 0.2  # the longest wait before the reader of our stdout is looked at again


class Worker(Protocol):
    """Does jobs in a process of its own. It is opened once, so what it has loaded serves all of them."""

    def prepare(self) -> None:
        """Loads what it can before the first job; called only if there is time for that."""
        ...

    def work(self, item: Any, advance: Callable[[int], None]) -> Any:
        """Does one job, and returns what can be pickled. advance: called with the number of rows just done."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """Something for a worker to do.

    name: for messages, such as that of a shard.
    item: what the worker gets.
    deliver: called with what the worker returns, once all earlier jobs have been delivered.
    rows: how many rows its worker has reported so far.
    retries: how often it has been given to another worker because one died.
    done: whether it waits only for its turn to be delivered.
    result: what the worker returned.
    error: what the worker raised.
    """

    name: str
    item: Any
    deliver: Callable[[Any], None]
    rows: int = 0
    retries: int = 0
    done: bool = False
    result: Any = None
    error: BaseException | None = None


class Workers(ABC):
    """Processes that do jobs.

    count: how many there are at most.
    advance: called with the number of rows that a worker has just done; negative where work is lost.
    warn: called with each message for the user.
    check: called often while this waits; an error that it raises ends the wait. By default it notices a closed pipe.
    most: jobs in flight at most: given out, or done and waiting for an earlier one.
    idle_since: when the last job in flight was delivered, on the monotonic clock.
    """

    def __init__(
        self,
        count: int,
        *,
        advance: Callable[[int], None],
        warn: Callable[[str], None],
        check: Callable[[], None] = pipe.check_reader,
    ) -> None:
        self.count = count
        self.advance = advance
        self.warn = warn
        self.check = check
        self.most = 2 * count + 1  # while one job takes long, the others do as many as they can hold back
        self.idle_since = time.monotonic()
        self._order: deque[Job] = deque()  # in flight, in the order of delivery
        self._waiting: deque[Job] = deque()  # those of them that no worker has

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether any job is in flight."""
        return bool(self._order)

    def submit(self, name: str, item: Any, deliver: Callable[[Any], None]) -> None:
        """Gives a job to whoever is free first. Waits while too many are in flight. The arguments are as in `Job`.

        Raises what a worker raised, of this job or an earlier one, and PrimecliError where workers keep dying.
        """
        self._put(Job(name, item, deliver))

    def pass_on(self, deliver: Callable[[], None]) -> None:
        """Calls `deliver` once all earlier jobs have been delivered, for what needs no work."""
        if self._order:
            self._put(Job("", None, lambda _: deliver(), done=True))
        else:
            deliver()

    def _put(self, job: Job) -> None:
        while len(self._order) >= self.most:
            self.wait()
        self._order.append(job)
        if not job.done:
            self._waiting.append(job)
            self._deal()

    def finish(self) -> None:
        """Waits until all jobs are delivered."""
        while self._order:
            self.wait()

    def wait(self) -> None:
        """Waits for a moment for news of the workers, and handles them."""
        self.check()
        self._receive(TICK_SECONDS)
        self._settle()

    def handle(self) -> None:
        """Handles what has come from the workers, without waiting: call it when `fileno` can be read from."""
        self._receive(0)
        self._settle()

    def _settle(self) -> None:
        self._deal()
        while self._order and self._order[0].done:
            job = self._order.popleft()
            if not self._order:
                self.idle_since = time.monotonic()
            if job.error is not None:
                raise job.error
            job.deliver(job.result)

    def finished(self, job: Job, result: Any) -> None:
        """For subclasses: a worker has done a job, perhaps one that is not wanted any more."""
        job.result, job.done = result, True

    def failed(self, job: Job, error: BaseException) -> None:
        """For subclasses: a job has failed. The error is raised once all earlier jobs have been delivered.

        So the same shards are committed as by a single worker. What would come after is not begun any more.
        """
        job.error, job.done = error, True
        while self._order[-1] is not job:
            later = self._order.pop()
            if later in self._waiting:
                self._waiting.remove(later)

    def lost(self, job: Job, how: str, hint: str) -> None:
        """For subclasses: the worker of a job has died. how: such as "was killed by SIGKILL".

        Raises PrimecliError where that has happened too often.
        """
        self.advance(-job.rows)
        job.rows = 0
        if job not in self._order:
            return  # it comes after one that has failed
        if job.retries == RETRIES:
            raise PrimecliError(f"{RETRIES + 1} workers died while they made {job.name}; the last {how}", hint)
        job.retries += 1
        self.warn(f"a worker {how} while it made {job.name}: making it again ({job.retries} of {RETRIES} times)")
        self._waiting.appendleft(job)

    @abstractmethod
    def prepare(self) -> None:
        """Starts the workers, if that takes nothing from other stages, so that they can load what they need."""

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that can be read from, as `poll` says, when there is something to `handle`."""

    @abstractmethod
    def close(self) -> None:
        """Ends the workers, whatever they are doing. It does not wait for jobs: see `finish`."""

    @abstractmethod
    def _deal(self) -> None:
        """Gives jobs that wait to workers that are free."""

    @abstractmethod
    def _receive(self, seconds: float) -> None:
        """Handles the workers' messages. Waits for one for up to `seconds`."""


def portable(error: BaseException) -> BaseException:
    """The error as another process can raise it: itself where it can be pickled, else one with its text.

    What a library calls out of memory is a PrimecliError: the type is torch's, which the other may not have imported.
    """
    if is_out_of_memory(error) and not isinstance(error, PrimecliError):
        text = f": {first_line(error)}" if str(error) else ""
        return PrimecliError(f"a worker ran out of memory{text}", "use fewer workers, or smaller micro-batches")
    if isinstance(error, PrimecliError | OSError) or type(error).__module__ == "builtins":
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception's constructor may want anything
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
