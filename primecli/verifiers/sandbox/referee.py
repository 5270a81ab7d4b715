"""Runs test code against a program in another sandbox.

The functions of the program are stand-ins here: a call goes over a pipe to the program's process, and plain data come
back. So the tests, the values that they expect and the verdict are in a process that the program cannot reach, and `==`
is that of the builtin types. One process waits for jobs, and each job runs in a fork of it.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from primecli.verifiers.sandbox import codec, guest, mirror
from primecli.verifiers.sandbox import names as scope

MAX_WHY_CHARS = 300  # of the reason for a failure
MEMORY_BYTES = 2 << 30  # address space of the tests, which may hold more values than the program at a time
FDS = 4  # file descriptors that come with a job: the job, the verdict, to the program, from the program


class ProgramEnded(BaseException):
    """The program closed its pipe. Not an Exception, so that no test catches it in place of the program's own."""


class TimeIsUp(BaseException):
    """The test has used its time."""


def main(config: dict[str, Any]) -> None:
    """Forks for each job that arrives over the control socket, until that closes.

    config: `control`, the file descriptor of that socket, and the entries that `Process` adds.
    """
    control = socket.socket(fileno=config["control"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.path[:] = [path for path in sys.path if path] + config["packages"]
    null = os.open(os.devnull, os.O_RDWR)
    hello = os.dup(1)
    for target in (0, 1, 2):
        os.dup2(null, target)
    guest.limit_resources({**config, "memory_bytes": MEMORY_BYTES})
    os.write(hello, codec.dump_line(["hello"]))
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1, FDS)
        if not message:
            return
        if os.fork() == 0:
            try:
                control.close()
                _run_job(*fds)
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)


def _run_job(job_fd: int, verdict_fd: int, to_program: int, from_program: int) -> None:
    with os.fdopen(job_fd, "rb") as file:
        job = json.load(file)
    program = Program(to_program, os.fdopen(from_program, "rb"), lambda: referee.report({"given": True}))
    referee = Referee(verdict_fd, program, job["seconds"])
    if "test" in job:
        referee.check(job["prompt"], job["test"], job["entry_point"])
    else:
        referee.asserts(job["asserts"], job["first"], job["stop"])
    referee.report({"end": True})


class Program:
    """The program, at the other end of the pipes.

    out: file descriptor of the pipe to it.
    reader: of the pipe from it.
    on_value: called before the first value of it is read.
    touched: whether the tests have had a reply of the program, so that a failure may be its fault.
    given: whether the tests have had a value of it: only from then on a test may be slow because of it.
    waited: seconds that the tests of now have waited for replies of it, those before the current one.
    asked_at: when they began to wait for the current one, on the monotonic clock; None while they do not.
    ended: whether it has closed its pipe.
    timed_out: whether the time of a test has run out.
    """

    def __init__(self, out: int, reader: BinaryIO, on_value: Callable[[], None]) -> None:
        self.out = out
        self.reader = reader
        self.on_value = on_value
        self.touched = False
        self.given = False
        self.waited = 0.0
        self.asked_at: float | None = None
        self.ended = False
        self.timed_out = False

    def ask(self, *request: Any) -> list[Any]:
        """Sends a request and returns the reply. Raises ProgramEnded, or the exception that the program raised."""
        if self.timed_out:
            raise TimeIsUp  # the test has swallowed the first one
        self.asked_at = time.monotonic()
        try:
            reply = self._reply(codec.dump_line(request))
        finally:
            self.waited = self.seconds_waited()
            self.asked_at = None
        if type(reply) is not list or len(reply) < 2 or reply[0] not in ("r", "x"):
            raise codec.Malformed("not a reply")
        if reply[0] == "x":
            raise mirror.exception(str(reply[1]), str(reply[2:3] and reply[2]), iterating=request[0] == "do")
        return reply

    def _reply(self, request: bytes) -> Any:
        try:
            guest.write_all(self.out, request)
            line = self.reader.readline(codec.MAX_LINE)
        except BrokenPipeError:
            line = b""
        self.touched = True
        if not line.endswith(b"\n"):
            self.ended = True
            raise ProgramEnded
        return codec.load_line(line)

    def seconds_waited(self) -> float:
        """How long this test has waited for replies."""
        return self.waited + (0.0 if self.asked_at is None else time.monotonic() - self.asked_at)

    def keep(self, value: Any) -> int | None:
        """The number of a stand-in's object, for the codec; no other object leaves this process but as plain data."""
        return object.__getattribute__(value, "_number") if type(value) is Remote else None

    def pack(self, value: Any) -> Any:
        """A value, encoded for the program's process."""
        return codec.encode(value, self.keep)

    def unpack(self, message: Any) -> Any:
        """The value in a message from the program's process."""
        if not self.given:
            self.given = True
            self.on_value()
        return codec.decode(message, lambda number, type_name: Remote(self, number, type_name))

    def call(self, target: str | int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Calls a function of the program, and makes the changes that it made to its arguments here too."""
        reply = self.ask(
            "call", target, [self.pack(item) for item in arguments], {k: self.pack(v) for k, v in named.items()}
        )
        changed = reply[2] if len(reply) > 2 else None
        if type(changed) is list and len(changed) == len(arguments):
            for original, message in zip(arguments, changed, strict=True):
                mirror.overwrite(original, self.unpack(message))
        return self.unpack(reply[1])

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in for a global of the program."""

        def stand_in(*arguments: Any, **named: Any) -> Any:
            return self.call(name, arguments, named)

        stand_in.__name__ = stand_in.__qualname__ = name
        return stand_in


class Remote:
    """Stands for an object that the program keeps. It is equal only to itself, and true where the program says so."""

    __slots__ = ("_number", "_program", "_type_name")

    def __init__(self, program: Program, number: int, type_name: str) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_type_name", type_name)

    def _do(self, operation: str, *arguments: Any) -> Any:
        program = self._program
        return program.unpack(program.ask("do", self._number, operation, [program.pack(item) for item in arguments])[1])

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)

    def __bool__(self) -> bool:
        return self._do("bool") is True

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it in the program's process."""
        return self._program.call(self._number, arguments, named)

    def __getattr__(self, name: str) -> Any:
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do("setitem", key, value)

    def __len__(self) -> int:
        return int(self._do("len"))

    def __iter__(self) -> Any:
        return iter(self._do("iter"))

    def __contains__(self, item: Any) -> bool:
        return self._do("contains", item) is True

    def __next__(self) -> Any:
        return self._do("next")

    def __str__(self) -> str:
        return str(self._do("str"))

    def __repr__(self) -> str:
        return str(self._do("repr"))


class Referee:
    """Runs the tests of one job, and reports each over a pipe.

    out: file descriptor of that pipe.
    program: what the tests call.
    seconds: wall-clock time of one test.
    """

    def __init__(self, out: int, program: Program, seconds: float) -> None:
        self.out = out
        self.program = program
        self.seconds = seconds

    def report(self, message: dict[str, Any]) -> None:
        """Sends a message to the caller."""
        guest.write_all(self.out, json.dumps(message).encode() + b"\n")

    def check(self, prompt: str | None, test: str, entry_point: str) -> None:
        """HumanEval: runs `check(entry_point)` of the test code.

        Other names that the prompt defines are the prompt's, whatever the program defines under them.
        """
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        code = self._read_tests(lambda: compile(test, "test.py", "exec", dont_inherit=True))
        if code is None:
            return
        for node in scope.prompt_helpers(prompt, entry_point):
            with contextlib.suppress(Exception):  # the program may define it; if not, the tests fail and say so
                exec(compile(ast.Module([node], []), "prompt.py", "exec"), names)
        missing = [name for name in scope.free_names(test) if name not in names and name not in dir(builtins)]
        if entry_point in missing:
            missing.remove(entry_point)

        def run() -> None:
            names.update(self._stand_ins([*missing, entry_point]))
            if entry_point not in names:
                raise NameError(f"the program does not define {entry_point}")
            self.program.touched = self.program.given
            exec(code, names)
            self.program.touched = True
            names["check"](names[entry_point])

        if "check" not in scope.defined_names(test):
            self._unusable("the test code defines no check")
            return
        self._judge(0, run)

    def asserts(self, asserts: list[str], first: int, stop: bool) -> None:
        """MBPP: runs one statement after another, in one namespace. Names that it does not define are the program's.

        first: index of the first assert to run; other statements before it run too, since later ones may need them.
        stop: whether to stop at the first failure.
        """
        whole = "\n".join(asserts)
        codes = self._read_tests(lambda: [compile(text, "test.py", "exec", dont_inherit=True) for text in asserts])
        if codes is None:
            return
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        for name, module in scope.trusted_modules(whole).items():
            with contextlib.suppress(ImportError):  # then the program must define it
                names[name] = __import__(module)
        ready = False
        for index, code in enumerate(codes):
            if index < first and any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(asserts[index]))):
                continue

            def run(code: Any = code) -> None:
                nonlocal ready
                if not ready:
                    names.update(self._stand_ins([name for name in scope.program_names(whole) if name not in names]))
                    ready = True
                self.program.ask("cpu")
                exec(code, names)

            passed = self._judge(index, run)
            if not passed and (stop or self.program.ended or self.program.timed_out):
                return

    def _stand_ins(self, names: list[str]) -> dict[str, Any]:
        """Stand-ins for those of the names that the program defines."""
        reply = self.program.ask("has", names)[1]
        defined = [name for name, has in zip(names, reply, strict=True) if has is True]
        return {name: self._stand_in(name) for name in defined}

    def _stand_in(self, name: str) -> Any:
        message = self.program.ask("name", name)[1]
        if type(message) is dict and "h" in message:
            return self.program.function(name)
        return self.program.unpack(message)

    def _read_tests(self, read: Callable[[], Any]) -> Any:
        """What `read` returns; None, after a report, where the tests cannot be read."""
        try:
            return read()
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            why = f"the tests do not compile: {type(error).__name__}: {error}"
            self._unusable(why[:MAX_WHY_CHARS])
            return None

    def _unusable(self, why: str) -> None:
        self.report({"test": 0, "ok": False, "fault": "data", "why": why, "timeout": False, "ended": False})

    def _judge(self, index: int, run: Callable[[], None]) -> bool:
        """Runs one test within its time, reports how it went, and returns whether it passed."""
        program = self.program

        program.waited = 0.0
        slow = False  # whether the program or its values took the time

        def ring(*_: Any) -> None:
            nonlocal slow
            slow = slow or program.given or program.seconds_waited() > self.seconds / 2
            program.timed_out = True
            signal.setitimer(signal.ITIMER_REAL, 1.0)  # again, in case a test swallows the exception
            raise TimeIsUp

        signal.signal(signal.SIGALRM, ring)
        why, blamed = "", True
        try:
            signal.setitimer(signal.ITIMER_REAL, self.seconds)
            try:
                run()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except BaseException as error:
            why = _why(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            blamed = program.touched and (mirror.is_mirrored(error) or not isinstance(error, ImportError))
        if program.ended:
            why, blamed = "the program ended before the tests did", True
        if program.timed_out:
            why, blamed = f"not done in {self.seconds:g} seconds", slow
        fault = "program" if blamed else "data"
        how = {"timeout": program.timed_out, "ended": program.ended}
        self.report({"test": index, "ok": not why, "why": why, "fault": fault} | how)
        return not why


def _why(error: BaseException) -> str:
    """The type and text of an exception, and the line of the tests that raised it."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    trace, line = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "test.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" (line {line} of the tests)" if line is not None else ""
    return f"{type(error).__name__}{': ' if text else ''}{text[:MAX_WHY_CHARS]}{where}"
