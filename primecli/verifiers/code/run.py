"""Runs a program against the tests of a problem, in as many sandboxes as it takes.

When a test breaks its sandbox or passes its deadline, the tests after it run in a new one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from primecli.verifiers.code.compare import same_text, same_value
from primecli.verifiers.code.ground_truth import AssertTests, CallTests, CheckTest, DataError, StdinTests, Truth
from primecli.verifiers.code.show import MAX_SHOWN_CHARS, shorten, shown
from primecli.verifiers.sandbox import codec
from primecli.verifiers.sandbox.process import DeadlinePassed, Ended, Limits, Process
from primecli.verifiers.sandbox.referee_host import RefereeHost

MODULES = ("codec", "scratch", "seccomp", "leetcode", "guest")
"""What a program's process needs of the package `sandbox`, in the order in which it is loaded there."""

KILLED, CPU_TIME_USED = -9, -24  # exit statuses for SIGKILL and SIGXCPU


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test.

    index: which test it is, from 0.
    why: the reason why it failed; None where it passed.
    timed_out: whether it passed a deadline or used up its CPU time.
    over: whether this sandbox cannot run another test.
    final: whether a new sandbox would fail as this one did, before any test.
    syntax: whether the program does not compile.
    """

    index: int
    why: str | None = None
    timed_out: bool = False
    over: bool = False
    final: bool = False
    syntax: bool = False


@dataclass(slots=True)
class Outcome:
    """The results of all tests.

    total: how many tests there are.
    passed: the indices of those that passed.
    failure: the result of the first that failed.
    """

    total: int
    passed: set[int] = field(default_factory=set)
    failure: Result | None = None


class Runner:
    """Runs programs one after another.

    mode: bwrap, limits or none.
    limits: what one program may use.
    test_seconds: CPU time of one test, which may take twice that in wall-clock time.
    program_seconds: wall-clock time of all tests of a program.
    stop: whether to stop at the first failure.
    """

    def __init__(self, mode: str, limits: Limits, test_seconds: float, program_seconds: float, stop: bool) -> None:
        self.mode = mode
        self.limits = limits
        self.wall_seconds = 2 * test_seconds
        self.program_seconds = program_seconds
        self.stop = stop
        self.referees = RefereeHost(mode)

    def run(self, sources: list[str], truth: Truth) -> Outcome:
        """Runs the first of the sources that compiles and defines the function, else the first that compiles.

        Raises SandboxFailed, and DataError where the tests themselves are at fault.
        """
        end = time.monotonic() + self.program_seconds
        outcome = Outcome(count_tests(truth))
        following = 0
        over = True
        while over and following < outcome.total:
            over = False
            for result in self._results_from(following, sources, truth, end):
                following = result.index + 1
                over = result.over
                if result.why is None:
                    outcome.passed.add(result.index)
                    continue
                outcome.failure = outcome.failure or result
                if self.stop or result.final or time.monotonic() >= end:
                    return outcome
        return outcome

    def _results_from(self, first: int, sources: list[str], truth: Truth, end: float) -> Iterator[Result]:
        """Runs the tests from `first` on, in one sandbox, as far as that goes."""
        config = {
            "sources": sources,
            "defines": truth.entry_point if isinstance(truth, CheckTest) else None,
            "serve": not isinstance(truth, StdinTests),
        }
        index = first
        with Process(self.mode, self.limits, MODULES, config) as process:
            try:
                kind, *text = _receive(process, self._deadline(end), _LOADED)
                if text:
                    yield Result(first, text[0].strip(), final=True, syntax=kind == "syntax")
                    return
                for index, why in self._tests(process, truth, first, end):
                    yield Result(index, why)
                    index += 1
            except DeadlinePassed:
                yield Result(index, f"not done in {self.wall_seconds:g} seconds", timed_out=True, over=True)
            except Ended:
                yield _ended(process, index)
            except codec.Malformed as error:
                # only a program that has taken over `guest` sends such messages
                yield Result(index, f"the program spoke for the sandbox: {error}"[:MAX_SHOWN_CHARS], over=True)

    def _deadline(self, end: float) -> float:
        """When a test that starts now must have ended."""
        return min(end, time.monotonic() + self.wall_seconds)

    def _tests(self, process: Process, truth: Truth, first: int, end: float) -> Iterator[tuple[int, str | None]]:
        """Runs the tests from `first` on; yields the index of each, and why it failed or None."""
        if isinstance(truth, StdinTests):
            return self._stdin_tests(process, truth, first, end)
        if isinstance(truth, CallTests):
            return self._call_tests(process, truth, first, end)
        return self._refereed_tests(process, truth, first, end)

    def _stdin_tests(
        self, process: Process, truth: StdinTests, first: int, end: float
    ) -> Iterator[tuple[int, str | None]]:
        for index in range(first, len(truth.inputs)):
            deadline = self._deadline(end)
            data = truth.inputs[index].encode("utf-8", "surrogateescape")
            process.send(codec.dump_line(["run", len(data)]) + data, deadline)
            _, status, size, stderr = _receive(process, deadline, _RAN)
            if not 0 <= size <= self.limits.file_bytes:
                raise codec.Malformed("not the size of an output")
            got = process.read(size, deadline).decode("utf-8", "replace")
            if status == CPU_TIME_USED:
                raise DeadlinePassed
            if status != 0:
                yield index, shorten(f"exit status {status}: {stderr.strip()}", 2 * MAX_SHOWN_CHARS)
            elif same_text(got, truth.outputs[index]):
                yield index, None
            else:
                yield index, f"stdout {shown(got)}, expected {shown(truth.outputs[index])}"

    def _call_tests(
        self, process: Process, truth: CallTests, first: int, end: float
    ) -> Iterator[tuple[int, str | None]]:
        for index in range(first, len(truth.outputs)):
            deadline = self._deadline(end)
            arguments = [codec.encode(item, _keep_nothing) for item in truth.arguments[index]]
            process.send(codec.dump_line(["cpu"]) + codec.dump_line(["call", truth.name, arguments, {}]), deadline)
            _receive(process, deadline, _REPLIES)
            kind, got, *more = _receive(process, deadline, _REPLIES)
            expected = truth.outputs[index]
            if kind == "x":
                yield index, f"raised {shorten(more[-1].strip(), MAX_SHOWN_CHARS)}"
            elif same_value(got, expected) or (truth.wrapped and same_value(got, expected[0])):
                yield index, None
            else:
                yield index, f"returned {shown(got)}, expected {shown(codec.encode(expected, _keep_nothing))}"

    def _refereed_tests(
        self, process: Process, truth: CheckTest | AssertTests, first: int, end: float
    ) -> Iterator[tuple[int, str | None]]:
        job: dict[str, Any] = {"seconds": max(0.1, self._deadline(end) - time.monotonic())}
        if isinstance(truth, CheckTest):
            job |= {"test": truth.test, "entry_point": truth.entry_point, "prompt": truth.prompt}
        else:
            job |= {"asserts": truth.asserts, "first": first, "stop": self.stop}
        for report in self.referees.run(job, process, end):
            if report["fault"] == "data" and not report["ok"]:
                raise DataError(f"the tests fail by themselves: {report['why']}")
            if report["timeout"]:
                raise DeadlinePassed
            if report["ended"]:
                raise Ended
            if report["test"] >= first:
                yield report["test"], None if report["ok"] else report["why"]


_LOADED: dict[str, list[tuple[type, ...]]] = {"loaded": [()], "failed": [(str,)], "syntax": [(str,)]}
_RAN: dict[str, list[tuple[type, ...]]] = {"ran": [(int, int, str)]}
_REPLIES: dict[str, list[tuple[type, ...]]] = {"r": [(object,), (object, object)], "x": [(str, str, str)]}
"""The kinds of messages from `guest`, and the types of what follows the kind."""


def _receive(process: Process, deadline: float, kinds: dict[str, list[tuple[type, ...]]]) -> list[Any]:
    """The next message, which is of one of the kinds. Raises DeadlinePassed, Ended, Malformed."""
    message = process.receive(deadline)
    if type(message) is list and message and type(message[0]) is str:
        for types in kinds.get(message[0], []):
            if len(types) == len(message) - 1 and all(map(_is_of, message[1:], types)):
                return message
    raise codec.Malformed(f"not a message of {' or '.join(kinds)}")


def _is_of(part: Any, kind: type) -> bool:
    return kind is object or type(part) is kind


def _keep_nothing(_: Any) -> int | None:
    """For the codec: expected values are plain data, so nothing is kept here for a handle."""
    return None


def count_tests(truth: Truth) -> int:
    """How many tests there are."""
    if isinstance(truth, CheckTest):
        return 1
    return len(truth.asserts) if isinstance(truth, AssertTests) else len(truth.outputs)


def _ended(process: Process, index: int) -> Result:
    """The result of the test during which the program's process ended."""
    status = process.status()
    if status in (CPU_TIME_USED, KILLED):
        return Result(index, "the CPU time is used up", timed_out=True, over=True)
    how = "" if status is None else f" with status {status}" if status >= 0 else f" by signal {-status}"
    return Result(index, f"the program ended before the tests did{how}", over=True)
