"""Grades many responses at once, in processes that can be killed.

Whatever a verifier grades cheaply (`StagedVerifier.prepare`) is graded here, in the caller's process; a batch that
needs nothing else starts no worker. The rest goes to workers, each pair of answer and ground truth once. A worker
reports each task as it finishes. The pool kills a worker whose task passes its deadline and starts another.

Is the model or the data at fault?

- A task passes its deadline: the pool tries the ground truth alone (`probe`). If that finishes in time, the answer is
  at fault: `timeout`, reward 0. Otherwise `error`, no reward.
- A worker dies or runs out of memory: the pool tries the task again, alone, in a fresh worker. If that fails too, it
  tries the ground truth alone and decides as above: `timeout` (the answer needs more than one answer may use) or
  `error`.
- A verifier without `probe`: `timeout` after a deadline, `error` after two deaths. If it has deadlines of its own
  (`pool_timeout`), `error` for both.
- An exception in the verifier: `error`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from primecli.errors import PrimecliError
from primecli.verifiers import MAX_DETAIL_CHARS, Grade, Pending, Task, load_verifier, verifier_spec

START_SECONDS = 120.0
"""A worker that is not ready by then never will be: the slowest disks import sympy in a third of that time."""

TICK_SECONDS = 0.1  # the longest wait before deadlines and `cancelled` are checked again
QUEUE_DEPTH = 8  # tasks sent ahead to a worker, so that it never waits for this process
JOBS_PER_WORKER = 4  # with fewer tasks for each, starting one more worker costs more than it saves
MAX_FAILED_STARTS = 2  # workers in a row that may die before they are ready; beyond that it is not an accident
PIPE_CHUNK_BYTES = 1 << 16  # read or written at once: what a pipe holds on Linux


@dataclass(slots=True, eq=False)
class _Job:
    """One thing for a worker to do.

    pending: the comparison.
    kind: settle, or probe for its ground truth alone.
    deaths: how many workers died of it.
    alone: whether its worker gets no other job with it, so that it is clear which one kills the worker.
    suspect: for a probe, the job that broke a worker or passed its deadline.
    why: how that job failed, for its grade.
    """

    pending: Pending
    kind: str = "settle"
    deaths: int = 0
    alone: bool = False
    suspect: _Job | None = None
    why: str = ""


@dataclass(slots=True, eq=False)
class _Worker:
    """A process and the messages between it and the pool.

    process: what runs `primecli.verifiers.worker`.
    ready: whether it has built its verifier.
    deadline: when, on the monotonic clock, it must have started or finished the first of its jobs.
    jobs: those sent to it and not reported, in the order in which it does them.
    unread: the beginning of a report that has not arrived whole.
    unsent: messages that its pipe has no room for yet.
    """

    process: subprocess.Popen[bytes]
    ready: bool = False
    deadline: float = 0.0
    jobs: deque[_Job] = field(default_factory=deque)
    unread: bytes = b""
    unsent: bytes = b""


class GradingPool:
    """Worker processes for one verifier. A context manager; the workers end with the block.

    verifier_name: as `load_verifier` takes it.
    workers: the most processes, by default the number of CPUs. They start when they are needed.
    timeout: seconds for one task, such as one comparison by sympy; a verifier with a `pool_timeout` has that instead.
    options: the verifier's keyword arguments, as JSON values.
    memory_bytes: address space of one worker.

    On Linux a worker ends with the thread that started it, so use the pool in one thread.

    >>> with GradingPool("math", workers=1) as pool:
    ...     [grade.reward for grade in pool.grade_list([Task("#### 4", "4"), Task("#### 5", "4")])]
    [1.0, 0.0]
    """

    def __init__(
        self,
        verifier_name: str,
        workers: int | None = None,
        timeout: float = 5.0,
        options: Mapping[str, Any] | None = None,
        memory_bytes: int = 4 << 30,
    ) -> None:
        if timeout <= 0 or (workers is not None and workers < 1):
            raise ValueError(f"timeout and workers must be positive, not {timeout}, {workers}")
        self.verifier = load_verifier(verifier_name, options)
        self._bounds_itself = hasattr(self.verifier, "pool_timeout")
        self.timeout: float = getattr(self.verifier, "pool_timeout", timeout)
        self.max_workers = workers or os.cpu_count() or 1
        self.memory_bytes = memory_bytes
        self._spec = verifier_spec(verifier_name)
        self._options = dict(options or {})
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._probed: dict[str, bool] = {}  # by ground truth: whether its probe finished in time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running now."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kills and reaps all workers. The pool can be used again, and then starts new ones."""
        for worker in list(self._workers):
            self._remove(worker)

    def grade_list(self, tasks: Sequence[Task], cancelled: Callable[[], bool] | None = None) -> list[Grade | None]:
        """The grades in the order of the tasks; None for those not yet graded when `cancelled` returned True."""
        grades: list[Grade | None] = [None] * len(tasks)
        for index, grade in self.grade_all(tasks, cancelled):
            grades[index] = grade
        return grades

    def grade_all(
        self, tasks: Sequence[Task], cancelled: Callable[[], bool] | None = None
    ) -> Iterator[tuple[int, Grade]]:
        """Yields (index, grade) for each task as soon as it is graded, in no particular order.

        cancelled: called several times a second; once it returns True, this ends early and kills the busy workers, as
        closing the iterator does.

        Raises PrimecliError where workers do not start.
        """
        waiting: dict[Pending, list[int]] = {}
        for index, task in enumerate(tasks):
            if index % 64 == 0 and cancelled is not None and cancelled():  # asking may cost more than preparing
                return
            prepared = self._prepare(task)
            if isinstance(prepared, Grade):
                yield index, prepared
            else:
                waiting.setdefault(prepared, []).append(index)
        if not waiting:
            return
        queue = deque(_Job(pending) for pending in waiting)
        try:
            for pending, grade in self._run(queue, cancelled):
                for index in waiting.pop(pending):
                    yield index, grade
        finally:
            for worker in [worker for worker in self._workers if worker.jobs]:
                self._remove(worker)

    def _prepare(self, task: Task) -> Grade | Pending:
        if task.ground_truth is None:
            return Grade(None, "error", detail="no ground truth")
        prepare = getattr(self.verifier, "prepare", None)
        if prepare is None:
            return Pending(task.response, task.ground_truth)
        try:
            return prepare(task)  # type: ignore[no-any-return]
        except Exception as error:
            return Grade(None, "error", detail=f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS])

    # the loop -----------------------------------------------------------------------------------------

    def _run(self, queue: deque[_Job], cancelled: Callable[[], bool] | None) -> Iterator[tuple[Pending, Grade]]:
        """Does the jobs of the queue, and yields each grade as it arrives."""
        left = len(queue)
        while left:
            if cancelled is not None and cancelled():
                return
            self._start_workers(queue)
            for worker in self._workers:
                self._feed(worker, queue)
            done: list[tuple[Pending, Grade]] = []
            for key, events in self._selector.select(TICK_SECONDS):
                worker = key.data
                if worker not in self._workers:  # removed since by an event of this same round
                    continue
                if events & selectors.EVENT_WRITE:
                    self._send(worker)
                if events & selectors.EVENT_READ:
                    done += self._receive(worker, queue)
            done += self._expire(queue)
            left -= len(done)
            yield from done

    def _start_workers(self, queue: deque[_Job]) -> None:
        """Starts workers while there are enough jobs for one more."""
        busy = sum(1 for worker in self._workers if worker.jobs)
        useful = min(self.max_workers, busy + -(-len(queue) // JOBS_PER_WORKER))  # rounded up
        while len(self._workers) < useful:
            self._start_worker()

    def _start_worker(self) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from primecli.verifiers.worker import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # so that Ctrl-C in the terminal reaches the parent only
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = _Worker(process, deadline=time.monotonic() + START_SECONDS)
        config: dict[str, Any] = {"spec": self._spec, "options": self._options}
        config |= {"parent": os.getpid(), "memory_bytes": self.memory_bytes}
        worker.unsent = json.dumps(config).encode() + b"\n"
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker)

    def _remove(self, worker: _Worker) -> list[_Job]:
        """Kills and reaps a worker; returns its unfinished jobs."""
        self._workers.remove(worker)
        process = worker.process
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(pipe)
                with contextlib.suppress(OSError):
                    pipe.close()
        jobs = list(worker.jobs)
        worker.jobs.clear()
        return jobs

    def _feed(self, worker: _Worker, queue: deque[_Job]) -> None:
        """Sends jobs to a worker, some ahead. One that must run alone goes to an idle worker, and none follows it."""
        if not worker.ready:
            return
        was_idle = not worker.jobs
        share = max(1, len(queue) // max(1, len(self._workers)))  # so that no worker is idle at the end
        while queue and len(worker.jobs) < min(QUEUE_DEPTH, share):
            if worker.jobs and (queue[0].alone or worker.jobs[-1].alone):
                break
            job = queue.popleft()
            worker.jobs.append(job)
            pending = job.pending
            message = {"id": id(job), "kind": job.kind, "answer": pending.answer, "ground_truth": pending.ground_truth}
            worker.unsent += json.dumps(message).encode() + b"\n"
        if was_idle and worker.jobs:
            worker.deadline = time.monotonic() + self.timeout
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        pipe = worker.process.stdin
        assert pipe is not None
        try:
            while worker.unsent:
                sent = os.write(pipe.fileno(), worker.unsent[:PIPE_CHUNK_BYTES])
                worker.unsent = worker.unsent[sent:]
        except BlockingIOError:
            with contextlib.suppress(KeyError):
                self._selector.register(pipe, selectors.EVENT_WRITE, worker)
            return
        except BrokenPipeError:
            worker.unsent = b""  # it died, as the end of its output will show
        with contextlib.suppress(KeyError):
            self._selector.unregister(pipe)

    def _receive(self, worker: _Worker, queue: deque[_Job]) -> list[tuple[Pending, Grade]]:
        pipe = worker.process.stdout
        assert pipe is not None
        try:
            data = os.read(pipe.fileno(), PIPE_CHUNK_BYTES)
        except BlockingIOError:
            return []
        if not data:
            return self._died(worker, queue)
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        done: list[tuple[Pending, Grade]] = []
        for line in lines:
            report = _report(line)
            if not worker.ready:
                if "ready" not in report:
                    self._remove(worker)
                    raise PrimecliError(f"a grading worker did not start: {report.get('failed')}")
                worker.ready = True
                self._failed_starts = 0
                continue
            if "memory" in report or not worker.jobs or report.get("id") != id(worker.jobs[0]):
                return done + self._died(worker, queue)
            job = worker.jobs.popleft()
            worker.deadline = time.monotonic() + self.timeout
            done += self._finished(job, report)
        return done

    # verdicts -----------------------------------------------------------------------------------------

    def _finished(self, job: _Job, report: dict[str, Any]) -> list[tuple[Pending, Grade]]:
        if job.kind == "probe":
            return [self._probe_ended(job, "ok" in report)]
        if "failed" in report:
            grade = Grade(None, "error", self._extracted_answer(job), str(report["failed"]))
        else:
            grade = Grade(**report["grade"])
        return [(job.pending, grade)]

    def _died(self, worker: _Worker, queue: deque[_Job]) -> list[tuple[Pending, Grade]]:
        """A worker ended by itself: its first job is suspect, and the others go back to the queue."""
        was_ready = worker.ready
        jobs = self._remove(worker)
        if not was_ready:
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                raise PrimecliError(
                    "grading workers die while they start",
                    "is there enough memory for them? use fewer workers",
                )
        queue.extendleft(reversed(jobs[1:]))
        if not jobs:
            return []
        suspect = jobs[0]
        suspect.deaths += 1
        if suspect.deaths == 1:
            suspect.alone = True
            queue.append(suspect)
            return []
        return self._suspect(suspect, queue, "the worker died or ran out of memory twice")

    def _expire(self, queue: deque[_Job]) -> list[tuple[Pending, Grade]]:
        now = time.monotonic()
        done: list[tuple[Pending, Grade]] = []
        for worker in [w for w in self._workers if w.deadline < now and (w.jobs or not w.ready)]:
            if not worker.ready:
                self._remove(worker)
                raise PrimecliError(f"a grading worker was not ready after {START_SECONDS:.0f} seconds")
            jobs = self._remove(worker)
            queue.extendleft(reversed(jobs[1:]))
            done += self._suspect(jobs[0], queue, f"no answer within {self.timeout:g} seconds")
        return done

    def _suspect(self, job: _Job, queue: deque[_Job], why: str) -> list[tuple[Pending, Grade]]:
        """A job broke two workers or passed its deadline: tries its ground truth alone, unless that has been done."""
        job.why = why
        if job.kind == "probe":
            return [self._probe_ended(job, False)]
        if hasattr(self.verifier, "probe") and job.pending.ground_truth not in self._probed:
            # it has used up its one death: a probe is not tried twice
            queue.append(_Job(job.pending, "probe", deaths=1, alone=True, suspect=job))
            return []
        return [self._blame(job)]

    def _probe_ended(self, probe: _Job, finished: bool) -> tuple[Pending, Grade]:
        assert probe.suspect is not None
        self._probed[probe.pending.ground_truth] = finished
        return self._blame(probe.suspect)

    def _blame(self, job: _Job) -> tuple[Pending, Grade]:
        """The grade of a job that failed: the model's fault, or that of the data or the verifier."""
        probed = self._probed.get(job.pending.ground_truth)
        models_fault = probed if probed is not None else job.deaths == 0 and not self._bounds_itself
        if models_fault:
            return job.pending, Grade(0.0, "timeout", self._extracted_answer(job))
        where = "the ground truth alone: " if probed is False else ""
        return job.pending, Grade(None, "error", self._extracted_answer(job), where + job.why)

    def _extracted_answer(self, job: _Job) -> str | None:
        """What was extracted in this process; without `prepare` a job has the whole response instead."""
        return job.pending.answer if hasattr(self.verifier, "prepare") else None


def _report(line: bytes) -> dict[str, Any]:
    """The report in a line; an empty one where something other than the worker has written into its pipe."""
    with contextlib.suppress(ValueError):
        if isinstance(report := json.loads(line), dict):
            return report
    return {}
