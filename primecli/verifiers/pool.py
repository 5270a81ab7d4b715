"""Grades many responses at once in processes that can be killed.

What a verifier settles by cheap means (`StagedVerifier.prepare`) is settled here, in the caller's process; a
batch that it settles whole starts no worker. The rest goes to workers, each pair of answer and ground truth
once. A worker reports each task as it ends; a task that has not ended at its deadline is ended by SIGKILL, and
a fresh worker takes the place.

Who is at fault, the model or the data:

- deadline passed: the ground truth is tried alone. If that works in time, the answer is at fault: `timeout`,
  reward 0. Otherwise `error`, no reward.
- worker died or ran out of memory: the task is tried again, alone, in a fresh worker. If that fails too, the
  ground truth is tried alone, and as above: `timeout` (the answer exceeds what one answer may use) or `error`.
- a verifier that cannot try its ground truth alone: `timeout` after a deadline, `error` after two deaths; where
  it has deadlines of its own (`bounds_itself`), `error` for both.
- an exception in the verifier: `error`.
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
from types import TracebackType
from typing import Any, Self

from primecli.errors import PrimecliError
from primecli.verifiers import Grade, Pending, Task, load_verifier, verifier_spec

START_SECONDS = 120.0
"""A worker that is not ready by then never will be: the slowest disks import sympy in a third of it."""

TICK_SECONDS = 0.1
QUEUE_DEPTH = 8  # tasks sent ahead to a worker, so that it never waits for this process
JOBS_PER_WORKER = 4  # below this many tasks for each, starting one more worker costs more than it saves


@dataclass(slots=True, eq=False)
class _Job:
    pending: Pending
    kind: str = "settle"  # or probe: the ground truth alone
    deaths: int = 0
    alone: bool = False
    blamed: _Job | None = None  # for a probe: the job whose fault is in question
    why: str = ""


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    ready: bool = False
    deadline: float = 0.0
    jobs: deque[_Job] = field(default_factory=deque)
    unread: bytes = b""
    unsent: bytes = b""


class GradingPool:
    """Worker processes for one verifier, used as a context manager; they end with the block.

    verifier_name: as `load_verifier` takes it. options: its keyword arguments, JSON values.
    workers: processes at most; default the number of CPUs. They start when first needed.
    timeout: seconds for one task. memory_bytes: address space of one worker.

    On Linux a worker ends with the thread that started it: use the pool in one thread.

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
        self.timeout = timeout
        self.max_workers = workers or os.cpu_count() or 1
        self.memory_bytes = memory_bytes
        self._spec = verifier_spec(verifier_name)
        self._options = dict(options or {})
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._readable: dict[str, bool] = {}  # ground truth: whether it could be tried alone

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kills and reaps all workers. The pool may be used again; it then starts new ones."""
        for worker in list(self._workers):
            self._remove(worker)

    def grade_list(self, tasks: Sequence[Task], cancelled: Callable[[], bool] | None = None) -> list[Grade | None]:
        """The grades in the order of the tasks; None for those not graded when `cancelled` said to stop."""
        grades: list[Grade | None] = [None] * len(tasks)
        for index, grade in self.grade_all(tasks, cancelled):
            grades[index] = grade
        return grades

    def grade_all(
        self, tasks: Sequence[Task], cancelled: Callable[[], bool] | None = None
    ) -> Iterator[tuple[int, Grade]]:
        """(index, grade) for each task as it is graded, in no order.

        cancelled: asked several times a second; once it says True this ends early and kills the busy workers,
        as closing the iterator does. Raises PrimecliError where workers do not start.
        """
        waiting: dict[Pending, list[int]] = {}
        for index, task in enumerate(tasks):
            if index % 64 == 0 and cancelled is not None and cancelled():
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
            return Grade(None, "error", detail=f"{type(error).__name__}: {error}"[:300])

    # the loop -----------------------------------------------------------------------------------------

    def _run(self, queue: deque[_Job], cancelled: Callable[[], bool] | None) -> Iterator[tuple[Pending, Grade]]:
        left = len(queue)
        while left:
            if cancelled is not None and cancelled():
                return
            self._staff(queue)
            for worker in self._workers:
                self._feed(worker, queue)
            done: list[tuple[Pending, Grade]] = []
            for key, events in self._selector.select(TICK_SECONDS):
                worker = key.data
                if worker not in self._workers:
                    continue
                if events & selectors.EVENT_WRITE:
                    self._send(worker)
                if events & selectors.EVENT_READ:
                    done += self._receive(worker, queue)
            done += self._expire(queue)
            left -= len(done)
            yield from done

    def _staff(self, queue: deque[_Job]) -> None:
        """Starts workers while there is work for more of them."""
        busy = sum(1 for worker in self._workers if worker.jobs)
        wanted = min(self.max_workers, busy + -(-len(queue) // JOBS_PER_WORKER))
        while len(self._workers) < wanted:
            self._start()

    def _start(self) -> None:
        path = [os.path.abspath(entry) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from primecli.verifiers.worker import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in the terminal reaches the parent only
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = _Worker(process, deadline=time.monotonic() + START_SECONDS)
        config = {
            "spec": self._spec,
            "options": self._options,
            "parent": os.getpid(),
            "memory_bytes": self.memory_bytes,
        }
        worker.unsent = json.dumps(config).encode() + b"\n"
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker)

    def _remove(self, worker: _Worker) -> list[_Job]:
        """Kills and reaps a worker; its unfinished jobs."""
        self._workers.remove(worker)
        process = worker.process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(pipe)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        jobs = list(worker.jobs)
        worker.jobs.clear()
        return jobs

    def _feed(self, worker: _Worker, queue: deque[_Job]) -> None:
        """Sends jobs ahead; one that is to run alone goes to an idle worker and nothing follows it."""
        if not worker.ready:
            return
        was_idle = not worker.jobs
        share = max(1, len(queue) // max(1, len(self._workers)))
        while queue and len(worker.jobs) < min(QUEUE_DEPTH, share):
            if worker.jobs and (queue[0].alone or worker.jobs[-1].alone):
                break
            job = queue.popleft()
            worker.jobs.append(job)
            message = {
                "id": id(job),
                "kind": job.kind,
                "answer": job.pending.answer,
                "ground_truth": job.pending.ground_truth,
            }
            worker.unsent += json.dumps(message).encode() + b"\n"
        if was_idle and worker.jobs:
            worker.deadline = time.monotonic() + self.timeout
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        pipe = worker.process.stdin
        assert pipe is not None
        try:
            while worker.unsent:
                sent = os.write(pipe.fileno(), worker.unsent[: 1 << 16])
                worker.unsent = worker.unsent[sent:]
        except BlockingIOError:
            with contextlib.suppress(KeyError):
                self._selector.register(pipe, selectors.EVENT_WRITE, worker)
            return
        except BrokenPipeError:
            worker.unsent = b""  # it died; reading its end of file tells
        with contextlib.suppress(KeyError):
            self._selector.unregister(pipe)

    def _receive(self, worker: _Worker, queue: deque[_Job]) -> list[tuple[Pending, Grade]]:
        pipe = worker.process.stdout
        assert pipe is not None
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        if not data:
            return self._died(worker, queue)
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        done: list[tuple[Pending, Grade]] = []
        for line in lines:
            report = json.loads(line)
            if not worker.ready:
                if "ready" not in report:
                    self._remove(worker)
                    raise PrimecliError(f"a grading worker did not start: {report.get('failed')}")
                worker.ready = True
                self._failed_starts = 0
                continue
            if "memory" in report:
                return done + self._died(worker, queue)
            job = worker.jobs.popleft()
            assert report["id"] == id(job)
            worker.deadline = time.monotonic() + self.timeout
            done += self._finished(job, report)
        return done

    # verdicts -----------------------------------------------------------------------------------------

    def _finished(self, job: _Job, report: dict[str, Any]) -> list[tuple[Pending, Grade]]:
        if job.kind == "probe":
            self._readable[job.pending.ground_truth] = "ok" in report
            return [self._blame(job.blamed or job)]
        if "failed" in report:
            grade = Grade(None, "error", self._shown(job), str(report["failed"]))
        else:
            grade = Grade(**report["grade"])
        return [(job.pending, grade)]

    def _died(self, worker: _Worker, queue: deque[_Job]) -> list[tuple[Pending, Grade]]:
        """A worker ended by itself: its first job is suspect, the others go back to the queue."""
        was_ready = worker.ready
        jobs = self._remove(worker)
        if not was_ready:
            self._failed_starts += 1
            if self._failed_starts > 2:
                raise PrimecliError(
                    "grading workers die at their start",
                    "is there memory for them? lower the number of workers",
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
        """A job that twice broke a worker or passed its deadline: tries its ground truth alone, once."""
        job.why = why
        if job.kind == "probe":
            self._readable[job.pending.ground_truth] = False
            return [self._blame(job.blamed or job)]
        if hasattr(self.verifier, "probe") and job.pending.ground_truth not in self._readable:
            queue.append(_Job(job.pending, "probe", deaths=1, alone=True, blamed=job))
            return []
        return [self._blame(job)]

    def _blame(self, job: _Job) -> tuple[Pending, Grade]:
        known = self._readable.get(job.pending.ground_truth)
        bounded = getattr(self.verifier, "bounds_itself", False)
        models_fault = known if known is not None else job.deaths == 0 and not bounded
        if models_fault:
            return job.pending, Grade(0.0, "timeout", self._shown(job))
        where = "the ground truth alone: " if known is False else ""
        return job.pending, Grade(None, "error", self._shown(job), where + job.why)

    def _shown(self, job: _Job) -> str | None:
        return job.pending.answer if hasattr(self.verifier, "prepare") else None
