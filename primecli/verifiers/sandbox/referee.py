"""Runs the tests of a data set against a program that lives in another sandbox.

The program's names are stand-ins here: a call goes over a pipe, and plain data come back. So the tests, what they
compare with and the verdict are in a process that the program cannot reach, and `==` is that of the builtin types.
One process waits; each job runs in a fork of it.
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
from collections.abc import Callable
from typing import Any, BinaryIO

from primecli.verifiers.sandbox import codec, guest
from primecli.verifiers.sandbox import names as scope

MAX_WHY_CHARS = 300
FDS = 4  # job, verdict, to the program, from the program


class ProgramEnded(BaseException):
    """The program closed its pipe. No `except Exception` of a test may take it for the program's answer."""


class TimeIsUp(BaseException):
    """The test has used its time."""


class ProgramError(Exception):
    """An exception of the program that is no builtin one."""


def main(config: dict[str, Any]) -> None:
    """Forks for each job that comes over the control socket, until that closes."""
    control = socket.socket(fileno=config["control"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.path[:] = [path for path in sys.path if path] + config["packages"]
    null = os.open(os.devnull, os.O_RDWR)
    hello = os.dup(1)
    for target in (0, 1, 2):
        os.dup2(null, target)
    guest._limit({**config, "memory_bytes": 2 << 30})
    os.write(hello, codec.dump_line(["hello"]))
    while True:
        message, fds, _, _ = socket.recv_fds(control, 1, FDS)
        if not message:
            return
        if os.fork() == 0:
            try:
                control.close()
                _job(*fds)
            finally:
                os._exit(0)
        for fd in fds:
            os.close(fd)


def _job(job_fd: int, verdict_fd: int, to_program: int, from_program: int) -> None:
    with os.fdopen(job_fd, "rb") as file:
        job = json.load(file)
    program = Program(to_program, os.fdopen(from_program, "rb"), lambda: referee.report({"called": True}))
    referee = Referee(verdict_fd, program, job["seconds"])
    if "test" in job:
        referee.check(job["prompt"], job["test"], job["entry_point"])
    else:
        referee.asserts(job["asserts"], job["first"], job["stop"])
    referee.report({"end": True})


class Program:
    """The other end of the pipes."""

    def __init__(self, out: int, reader: BinaryIO, on_call: Callable[[], None]) -> None:
        self.out = out
        self.reader = reader
        self.on_call = on_call
        self.touched = False  # whether something of the program has reached the tests
        self.called = False
        self.raised: Exception | None = None
        self.ended = False
        self.timed_out = False

    def ask(self, *request: Any) -> list[Any]:
        """One request, one reply. Raises ProgramEnded, or what the program raised."""
        try:
            guest._write(self.out, codec.dump_line(request))
            line = self.reader.readline(codec.MAX_LINE)
        except BrokenPipeError:
            line = b""
        self.touched = True
        if not line.endswith(b"\n"):
            self.ended = True
            raise ProgramEnded
        reply = codec.load_line(line)
        if type(reply) is not list or len(reply) < 2 or reply[0] not in ("r", "x"):
            raise codec.Malformed("not a reply")
        if reply[0] == "x":
            self.raised = _exception(str(reply[1]), str(reply[2:3] and reply[2]), iterating=request[0] == "do")
            raise self.raised
        return reply

    def keep(self, value: Any) -> int | None:
        """Stand-ins travel as what they stand for; nothing else that is not plain leaves this process."""
        return object.__getattribute__(value, "_number") if type(value) is Remote else None

    def pack(self, value: Any) -> Any:
        """A value as a message for the program's process."""
        return codec.encode(value, self.keep)

    def unpack(self, message: Any) -> Any:
        """The value that a message from the program's process stands for."""
        return codec.decode(message, lambda number, type_name: Remote(self, number, type_name))

    def call(self, target: str | int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Calls a function of the program; changes to its arguments are made to the originals too."""
        if not self.called:
            self.called = True
            self.on_call()
        reply = self.ask(
            "call", target, [self.pack(item) for item in arguments], {k: self.pack(v) for k, v in named.items()}
        )
        changed = reply[2] if len(reply) > 2 else None
        if type(changed) is list and len(changed) == len(arguments):
            for original, message in zip(arguments, changed, strict=True):
                _overwrite(original, self.unpack(message))
        return self.unpack(reply[1])

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in for a global of the program."""

        def stand_in(*arguments: Any, **named: Any) -> Any:
            return self.call(name, arguments, named)

        stand_in.__name__ = stand_in.__qualname__ = name
        return stand_in


class Remote:
    """Stands for an object that the program keeps. Equal to itself only, and neither true nor false."""

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
        raise TypeError(f"a {self._type_name} of the program is neither true nor false here")

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


def _exception(type_name: str, text: str, iterating: bool) -> Exception:
    kind = getattr(builtins, type_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = ProgramError
    if issubclass(kind, StopIteration) and not iterating:
        kind = ProgramError  # or `all(map(f, cases))` would end early, and be true
    error: Exception = ProgramError(text)
    with contextlib.suppress(Exception):  # UnicodeDecodeError, for one, needs more than a text
        error = kind(text)
    return error


def _overwrite(original: Any, new: Any) -> None:
    """Gives a mutable argument the content that the program left in its copy."""
    if type(original) is not type(new) or original is new:
        return
    if isinstance(original, (list, tuple)):
        kept = list(original)
        for place, item in enumerate(new):
            if place < len(kept) and type(kept[place]) is type(item) and isinstance(item, (list, dict, set)):
                _overwrite(kept[place], item)
            elif isinstance(original, list):
                kept[place : place + 1] = [item]
        if isinstance(original, list):
            original[:] = kept[: len(new)]
    elif isinstance(original, (dict, set)):
        original.clear()
        original.update(new)
    elif isinstance(original, bytearray):
        original[:] = new
    elif hasattr(original, "extend") and hasattr(original, "clear"):  # a deque
        original.clear()
        original.extend(new)


class Referee:
    """Runs the tests of one job and reports each on its own descriptor."""

    def __init__(self, out: int, program: Program, seconds: float) -> None:
        self.out = out
        self.program = program
        self.seconds = seconds

    def report(self, message: dict[str, Any]) -> None:
        """Tells the caller."""
        guest._write(self.out, json.dumps(message).encode() + b"\n")

    def check(self, prompt: str | None, test: str, entry_point: str) -> None:
        """HumanEval: `check(entry_point)` of the test code; what the prompt defines beside it is not the program's."""
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        code = self._data(lambda: compile(test, "test.py", "exec", dont_inherit=True))
        if code is None:
            return
        for node in scope.helpers(prompt, entry_point):
            with contextlib.suppress(Exception):  # the program may bring it; if nobody does, the tests say so
                exec(compile(ast.Module([node], []), "prompt.py", "exec"), names)
        missing = [name for name in scope.free_names(test) if name not in names and name not in dir(builtins)]
        if entry_point in missing:
            missing.remove(entry_point)

        def run() -> None:
            names.update(self._stand_ins([*missing, entry_point]))
            if entry_point not in names:
                raise NameError(f"the program does not define {entry_point}")
            self.program.touched = False
            exec(code, names)
            self.program.touched = True
            names["check"](names[entry_point])

        if "check" not in scope.defined_names(test):
            self._unusable("the test code defines no check")
            return
        self._judge(0, run)

    def asserts(self, asserts: list[str], first: int, stop: bool) -> None:
        """MBPP: each statement in turn, in one namespace; names that nobody else defines are the program's."""
        whole = "\n".join(asserts)
        codes = self._data(lambda: [compile(text, "test.py", "exec", dont_inherit=True) for text in asserts])
        if codes is None:
            return
        names: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        for name, module in scope.trusted_modules(whole).items():
            with contextlib.suppress(ImportError):  # then it is the program's
                names[name] = __import__(module)
        ready = False
        for place, code in enumerate(codes):
            if place < first and any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(asserts[place]))):
                continue

            def run(code: Any = code) -> None:
                nonlocal ready
                if not ready:
                    names.update(self._stand_ins([name for name in scope.program_names(whole) if name not in names]))
                    ready = True
                self.program.ask("cpu")
                exec(code, names)

            passed = self._judge(place, run)
            if not passed and (stop or self.program.ended or self.program.timed_out):
                return

    def _stand_ins(self, names: list[str]) -> dict[str, Any]:
        reply = self.program.ask("has", names)[1]
        found = [name for name, has in zip(names, reply, strict=True) if has is True]
        return {name: self._stand_in(name) for name in found}

    def _stand_in(self, name: str) -> Any:
        value = self.program.unpack(self.program.ask("name", name)[1])
        return self.program.function(name) if isinstance(value, Remote) else value

    def _data(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            why = f"the tests do not compile: {type(error).__name__}: {error}"
            self._unusable(why[:MAX_WHY_CHARS])
            return None

    def _unusable(self, why: str) -> None:
        self.report({"test": 0, "ok": False, "fault": "data", "why": why, "timeout": False, "ended": False})

    def _judge(self, place: int, run: Callable[[], None]) -> bool:
        program = self.program

        def ring(*_: Any) -> None:
            program.timed_out = True
            signal.setitimer(signal.ITIMER_REAL, 1.0)  # again, should a test swallow it
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
            blamed = program.touched and not (isinstance(error, ImportError) and error is not program.raised)
        if program.ended:
            why, blamed = "the program ended before the tests did", True
        if program.timed_out:
            why, blamed = f"not done in {self.seconds:g} seconds", program.called
        fault = "program" if blamed else "data"
        how = {"timeout": program.timed_out, "ended": program.ended}
        self.report({"test": place, "ok": not why, "why": why, "fault": fault} | how)
        return not why


def _why(error: BaseException) -> str:
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
