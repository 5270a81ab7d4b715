"""Runs a program against the tests of a problem, in as many sandboxes as it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from primecli.verifiers.code.compare import same_text, same_value
from primecli.verifiers.code.ground_truth import AssertTests, CallTests, CheckTest, DataError, StdinTests, Truth
from primecli.verifiers.sandbox import codec
from primecli.verifiers.sandbox.process import DeadlinePassed, Ended, Limits, Process
from primecli.verifiers.sandbox.referee_host import RefereeHost

MAX_SHOWN = 120  # characters of a value in a failure
MODULES = ("codec", "seccomp", "guest")
KILLED, CPU_TIME_USED = -9, -24


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one test.

    why: None where it passed. over: whether the sandbox can run no further test. final: whether a new one would fail
    at the same place. syntax: whether the program does not compile.
    """

    place: int
    why: str | None = None
    timed_out: bool = False
    over: bool = False
    final: bool = False
    syntax: bool = False


@dataclass(slots=True)
class Outcome:
    """Tests in all, those that passed, and the first that did not."""

    total: int
    passed: set[int] = field(default_factory=set)
    failure: Result | None = None


class Runner:
    """Runs programs one after the other.

    test_seconds: CPU time of one test; by the clock it may take twice that. program_seconds: all tests, by the clock.
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
        """What becomes of the first of the sources that compiles and defines what is asked for.

        Raises SandboxFailed, and DataError where the tests themselves are at fault.
        """
        end = time.monotonic() + self.program_seconds
        outcome = Outcome(_count(truth))
        place = 0
        over = True
        while over and place < outcome.total:
            over = False
            for result in self._from(place, sources, truth, end):
                place = result.place + 1
                over = result.over
                if result.why is None:
                    outcome.passed.add(result.place)
                    continue
                outcome.failure = outcome.failure or result
                if self.stop or result.final or time.monotonic() >= end:
                    return outcome
        return outcome

    def _from(self, first: int, sources: list[str], truth: Truth, end: float) -> Iterator[Result]:
        """The tests from `first` on, in one sandbox."""
        config = {
            "sources": sources,
            "defines": truth.entry_point if isinstance(truth, CheckTest) else None,
            "serve": not isinstance(truth, StdinTests),
        }
        place = first
        with Process(self.mode, self.limits, MODULES, config) as process:
            try:
                loaded = process.receive(self._deadline(end))
                if loaded != ["loaded"]:
                    yield Result(first, _text(loaded[-1]), final=True, syntax=loaded[0] == "syntax")
                    return
                for place, why in self._tests(process, truth, first, end):
                    yield Result(place, why)
                    place += 1
            except DeadlinePassed:
                yield Result(place, f"not done in {self.wall_seconds:g} seconds", timed_out=True, over=True)
            except Ended:
                yield _ended(process, place)
            except (codec.Malformed, LookupError, TypeError) as error:
                yield Result(place, f"the program spoke for the sandbox: {error}"[:MAX_SHOWN], over=True)

    def _deadline(self, end: float) -> float:
        return min(end, time.monotonic() + self.wall_seconds)

    def _tests(self, process: Process, truth: Truth, first: int, end: float) -> Iterator[tuple[int, str | None]]:
        if isinstance(truth, StdinTests):
            return self._stdin(process, truth, first, end)
        if isinstance(truth, CallTests):
            return self._calls(process, truth, first, end)
        return self._refereed(process, truth, first, end)

    def _stdin(self, process: Process, truth: StdinTests, first: int, end: float) -> Iterator[tuple[int, str | None]]:
        for place in range(first, len(truth.inputs)):
            deadline = self._deadline(end)
            data = truth.inputs[place].encode("utf-8", "surrogateescape")
            process.send(codec.dump_line(["run", len(data)]) + data, deadline)
            kind, status, size, said = process.receive(deadline)
            if kind != "ran" or type(size) is not int or not 0 <= size <= self.limits.file_bytes:
                raise codec.Malformed("not a report of a run")
            got = process.read(size, deadline).decode("utf-8", "replace")
            if status == CPU_TIME_USED:
                raise DeadlinePassed
            if status != 0:
                yield place, _shorten(f"exit status {status}: {_text(said)}", 2 * MAX_SHOWN)
            elif same_text(got, truth.outputs[place]):
                yield place, None
            else:
                yield place, f"stdout {_shown(got)}, expected {_shown(truth.outputs[place])}"

    def _calls(self, process: Process, truth: CallTests, first: int, end: float) -> Iterator[tuple[int, str | None]]:
        for place in range(first, len(truth.outputs)):
            deadline = self._deadline(end)
            arguments = [codec.encode(item, _keep_nothing) for item in truth.arguments[place]]
            process.send(codec.dump_line(["cpu"]) + codec.dump_line(["call", truth.name, arguments, {}]), deadline)
            process.receive(deadline)
            reply = process.receive(deadline)
            if reply[0] == "x":
                yield place, f"raised {_shorten(_text(reply[-1]), MAX_SHOWN)}"
                continue
            if reply[0] != "r":
                raise codec.Malformed("not a reply")
            try:
                got = codec.decode(reply[1], _Unknown)
            except codec.Malformed:
                got = _Unknown()
            expected = truth.outputs[place]
            if same_value(got, expected) or (truth.wrapped and same_value(got, expected[0])):
                yield place, None
            else:
                yield place, f"returned {_shown(got)}, expected {_shown(expected)}"

    def _refereed(
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


class _Unknown:
    """Stands for a returned object that is not plain data; equal to nothing expected."""

    def __init__(self, number: int = 0, type_name: str = "object") -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name}>"


def _keep_nothing(_: Any) -> int | None:
    return None


def _count(truth: Truth) -> int:
    if isinstance(truth, CheckTest):
        return 1
    return len(truth.asserts) if isinstance(truth, AssertTests) else len(truth.outputs)


def _ended(process: Process, place: int) -> Result:
    status = process.status()
    if status in (CPU_TIME_USED, KILLED):
        return Result(place, "the CPU time is used up", timed_out=True, over=True)
    how = "" if status is None else f" with status {status}" if status >= 0 else f" by signal {-status}"
    return Result(place, f"the program ended before the tests did{how}", over=True)


def _text(said: Any) -> str:
    return said.strip() if isinstance(said, str) else type(said).__name__


def _shown(value: Any) -> str:
    try:
        return _shorten(repr(value), MAX_SHOWN)
    except (ValueError, RecursionError):  # an integer of very many digits
        return f"<{type(value).__name__}>"


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
