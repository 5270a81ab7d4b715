"""Workers that are child processes of this one: plain ones, freshly started, never forked from a process with torch.

A child reads jobs from a pipe and writes reports to another (worker_child.py). The kernel kills it when this process
ends, however it ends; it is in a process group of its own, so that Ctrl-C in the terminal reaches this process only.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from primecli.errors import PrimecliError
from primecli.pipeline import pipe
from primecli.pipeline.worker_child import message, messages
from primecli.pipeline.workers import Job, Worker, Workers

CHUNK_BYTES = 1 << 20  # read at once
MAX_FAILED_STARTS = 2  # children in a row that may die before they are ready; beyond that it is not an accident
HINT = "if the kernel killed it, memory ran out: use fewer --workers, or smaller micro-batches"


@dataclass(slots=True, eq=False)
class _Child:
    """One child process.

    place: which of the places it has.
    process: the process.
    ready: whether it has begun to read jobs.
    job: what it is doing; None while it waits.
    unread: the beginning of a message.
    """

    place: int
    process: subprocess.Popen[bytes]
    ready: bool = False
    job: Job | None = None
    unread: bytearray = field(default_factory=bytearray)


class LocalWorkers(Workers):
    """Children of this process, one for each place.

    open_worker: called in each child, to open its worker; it has to be pickled, so it is a function of a module, or a
        functools.partial of one.
    places: for each child the environment variables that differ from this process's, such as CUDA_VISIBLE_DEVICES.
    The other arguments are as in `Workers`.
    """

    def __init__(
        self,
        open_worker: Callable[[], Worker],
        places: Sequence[Mapping[str, str]],
        *,
        advance: Callable[[int], None] = lambda rows: None,
        warn: Callable[[str], None] = lambda text: None,
        check: Callable[[], None] = pipe.check_reader,
    ) -> None:
        super().__init__(len(places), advance=advance, warn=warn, check=check)
        self._opener = pickle.dumps(open_worker)
        self._places = places
        self._children: list[_Child] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts = 0
        self._prepare = False

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that are running now."""
        return [child.process.pid for child in self._children]

    def fileno(self) -> int:
        """As in `Workers`: a descriptor of the kernel's that watches all children."""
        return self._selector.fileno()

    def prepare(self) -> None:
        """Starts all children, and has them load what they can."""
        self._prepare = True
        while len(self._children) < self.count:
            self._start()

    def close(self) -> None:
        """Kills and reaps all children."""
        for child in self._children:
            child.process.kill()
        while self._children:
            self._remove(self._children[0])

    def _start(self) -> None:
        taken = {child.place for child in self._children}
        place = next(place for place in range(self.count) if place not in taken)
        path = [os.path.abspath(entry) for entry in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from primecli.pipeline.worker_child import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._places[place]},
            process_group=0,
        )
        assert process.stdout is not None
        child = _Child(place, process)
        self._children.append(child)
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, child)
        self._send(child, {"parent": os.getpid(), "opener": self._opener, "prepare": self._prepare})

    def _send(self, child: _Child, content: Any) -> None:
        """Sends a message. A child that waits reads at once, so this does not block for long."""
        assert child.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died, as the end of its output will show
            child.process.stdin.write(message(content))
            child.process.stdin.flush()

    def _deal(self) -> None:
        for child in self._children:
            if self._waiting and child.ready and child.job is None:
                child.job = self._waiting.popleft()
                self._send(child, {"item": child.job.item})
        starting = sum(not child.ready for child in self._children)
        while len(self._children) < self.count and starting < len(self._waiting):
            self._start()
            starting += 1

    def _receive(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            child = key.data
            try:
                data = os.read(key.fd, CHUNK_BYTES)
            except BlockingIOError:
                continue
            if not data:
                self._died(child)
                continue
            child.unread += data
            for report in messages(child.unread):
                self._report(child, report)

    def _report(self, child: _Child, report: Mapping[str, Any]) -> None:
        if "failed" in report:
            if child.job is None:  # it could not even be opened
                raise report["failed"]
            self.failed(child.job, report["failed"])
            return
        if "ready" in report:
            child.ready, self._failed_starts = True, 0
            return
        assert child.job is not None, "a child reports only about the job that it was given"
        rows = report["rows"]
        child.job.rows += rows
        self.advance(rows)
        if "done" in report:
            job, child.job = child.job, None
            self.finished(job, report["done"])

    def _died(self, child: _Child) -> None:
        code = self._remove(child)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if child.job is not None:
            self.lost(child.job, how, HINT)
            return
        if not child.ready:
            self._failed_starts += 1
            if self._failed_starts > MAX_FAILED_STARTS:
                raise PrimecliError(f"workers die while they start: the last {how}", HINT)

    def _remove(self, child: _Child) -> int:
        """Kills and reaps a child; returns its exit code, negative for a signal."""
        assert child.process.stdin is not None
        assert child.process.stdout is not None
        self._selector.unregister(child.process.stdout)
        self._children.remove(child)
        child.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.close()
        try:
            # it has closed its output, so it is about to end; the code says how
            return child.process.wait(0 if child.process.poll() is not None else 1)
        except subprocess.TimeoutExpired:
            child.process.kill()
            return child.process.wait()
