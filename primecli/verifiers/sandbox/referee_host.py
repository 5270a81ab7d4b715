"""The caller's side of the referee: one process, in its own sandbox, that waits for jobs and does one at a time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from primecli.verifiers.sandbox.process import DeadlinePassed, Limits, Process, SandboxFailed

MODULES = ("codec", "scratch", "seccomp", "leetcode", "guest", "names", "mirror", "referee")
"""What the referee needs of this package, in the order in which it is loaded there."""

MIN_SLACK_SECONDS, MAX_SLACK_SECONDS = 0.5, 3.0
"""Bounds of the time beyond a test's own deadline after which the referee is stuck; else it is as long again."""


class RefereeHost:
    """Starts the referee when it is first needed, and again when it has been lost; it ends with this process.

    mode: of its sandbox: bwrap, limits or none.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._process: Process | None = None
        self._control: socket.socket | None = None

    def __del__(self) -> None:
        self.close()

    def run(self, job: dict[str, Any], program: Process, end: float) -> Iterator[dict[str, Any]]:
        """Runs the tests of one job; yields a report for each.

        job: test code, in the form that `referee` reads.
        program: a process that has loaded the program and waits for calls.
        end: the deadline of all tests, on the monotonic clock.

        Raises DeadlinePassed where the program's values keep the tests busy for too long, and SandboxFailed where the
        referee is lost, by values of the program or otherwise.
        """
        control = self._ready()
        job_read, job_write = os.pipe()
        verdict_read, verdict_write = os.pipe()
        try:
            fds = [job_read, verdict_write, program.to_process, program.from_process]
            try:
                socket.send_fds(control, [b"J"], fds)
            except OSError as error:
                self.close()
                raise SandboxFailed(f"the referee is gone: {error}") from None
            finally:
                os.close(job_read)
                os.close(verdict_write)
            with os.fdopen(job_write, "wb") as file:
                job_write = -1
                with contextlib.suppress(BrokenPipeError):
                    file.write(json.dumps(job).encode())
            yield from self._reports(verdict_read, job["seconds"], end)
        finally:
            os.close(verdict_read)
            if job_write >= 0:
                os.close(job_write)

    def _reports(self, verdict_read: int, seconds: float, end: float) -> Iterator[dict[str, Any]]:
        """The reports as they arrive.

        Their number and size need no limit: there is one for each test, the referee cuts its text, and no program has
        this pipe.
        """
        given = False  # whether the tests have a value of the program; until then a stall is not its doing
        slack = min(max(MIN_SLACK_SECONDS, seconds), MAX_SLACK_SECONDS)
        unread = b""
        while True:
            stuck = min(time.monotonic() + seconds, end) + slack
            ready, _, _ = select.select([verdict_read], [], [], max(0.0, stuck - time.monotonic()))
            data = os.read(verdict_read, 1 << 16) if ready else b""
            if not data:
                self.close()
                if given and not ready:
                    raise DeadlinePassed
                raise SandboxFailed("the process with the tests died" if ready else "the tests do not end", given)
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                report = json.loads(line)
                if "end" in report:
                    return
                given = given or "given" in report
                if "test" in report:
                    yield report

    def _ready(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.status(0) is None:
            return self._control
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            config = {"control": theirs.fileno()}
            try:
                # no directory of its own: it would be left behind when this process is killed, as workers are
                self._process = Process(
                    self.mode, Limits(), MODULES, config, pass_fds=[theirs.fileno()], own_home=False
                )
            except BaseException:
                ours.close()
                raise
        self._control = ours
        return ours

    def close(self) -> None:
        """Ends the referee."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.close()
            self._process = None
