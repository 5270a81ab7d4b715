"""The process in which a program runs. Nothing in it is trusted: it has no expected output and decides no verdict.

The program shares this process, or is forked from it, and may take it over. All that it can do then is send other
values to the caller, and any program may do that.
"""

from __future__ import annotations

import builtins
import os
import sys

from primecli.verifiers.sandbox import codec, leetcode, scratch, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than most programs run
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any, BinaryIO

ONLY_AST = 0x400  # ast.PyCF_ONLY_AST, without importing ast
MAX_ERROR_CHARS = 500  # of an exception's text; the caller shortens it further
MAX_STDERR_BYTES = 2000  # of a test's stderr that the caller gets
MAX_OPEN_FILES = 128
MAX_STACK_BYTES = 100 << 20  # below the gap that the kernel leaves under the stack
MAX_PROCESSES = 256  # of this user, where there is no filter of system calls
NOT_RUN = 70  # exit status of a fork that failed before the program started (EX_SOFTWARE)


def main(config: dict[str, Any]) -> None:
    """Compiles the program, then runs it once for each test or answers calls, until the caller closes the pipe.

    config: `sources`, `defines` (the function that the source should define, or None), `serve` (whether to answer
        calls), and the entries that `Process` adds.
    """
    sys.path[:] = [path for path in sys.path if path] + config["packages"]
    reader = os.fdopen(os.dup(0), "rb")
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    errors = scratch.open_file()
    for target, source in ((0, null), (1, null), (2, errors)):
        os.dup2(source, target)
    limit_resources(config)
    _set_up_interpreter()
    _send(out, ["hello"])
    try:
        code = _compile(config["sources"], config["defines"])
    except BaseException as error:
        _send(out, ["syntax", _describe(error)])
        return
    if config["serve"]:
        _confine(config)
        _serve(code, reader, out, config["cpu_seconds"])
    else:
        _send(out, ["loaded"])
        _run_tests(code, reader, out, config)


def limit_resources(config: dict[str, Any]) -> None:
    """Limits memory, files and the stack of this process and of its forks, unless the sandbox has no limits."""
    if not config["limits"]:
        return
    import resource

    def lower(which: int, limit: int) -> None:
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, config["file_bytes"])
    lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    lower(resource.RLIMIT_STACK, MAX_STACK_BYTES)
    if sys.platform == "linux":
        lower(resource.RLIMIT_AS, config["memory_bytes"])


def _confine(config: dict[str, Any]) -> None:
    """Takes from this process, for good, everything that a program does not need."""
    if not config["limits"]:
        return
    import resource

    if seccomp.supported():
        seccomp.install()
        seccomp.hide_other_processes()
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    _grant_cpu(config["cpu_seconds"])


def _grant_cpu(seconds: int) -> None:
    """Sets the limit of CPU time to what has been used and so many seconds more."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime + seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _set_up_interpreter() -> None:
    """Adds what a program finds when it is run from the command line, and the site module has been imported."""
    import _sitebuiltins

    sys.set_int_max_str_digits(0)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    sys.argv = ["solution.py"]


def _compile(sources: list[str], defines: str | None) -> CodeType:
    """The first source that compiles and defines the name, else the first that compiles."""
    first: CodeType | None = None
    failure: BaseException | None = None
    for source in sources:
        try:
            code = compile(source, "solution.py", "exec", dont_inherit=True)
            if defines is None or _defines(source, defines):
                return code
            first = first or code
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            failure = failure or error
    if first is None:
        assert failure is not None
        raise failure
    return first


def _defines(source: str, name: str) -> bool:
    """Whether a source defines a name at its top level, or as a method of a class Solution."""
    for node in compile(source, "solution.py", "exec", ONLY_AST, dont_inherit=True).body:
        if getattr(node, "name", None) == name:
            return True
        if type(node).__name__ == "ClassDef" and node.name == "Solution":
            return any(getattr(member, "name", None) == name for member in node.body)
        targets = getattr(node, "targets", [])
        if any(getattr(target, "id", None) == name for target in targets):
            return True
    return False


def _module(name: str) -> ModuleType:
    """A new module for the program to run in."""
    module = type(sys)(name)
    module.__dict__["__builtins__"] = builtins
    module.__dict__["__file__"] = "solution.py"
    sys.modules[name] = module
    return module


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_error_text(error)}"[:MAX_ERROR_CHARS]


def _error_text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_ERROR_CHARS]
    except BaseException:  # the program may define how its exceptions are printed
        return ""


def _send(out: int, message: Any) -> None:
    write_all(out, codec.dump_line(message))


def write_all(out: int, data: bytes) -> None:
    """Writes all of `data` to a file descriptor."""
    while data:
        data = data[os.write(out, data) :]


# programs that read stdin and write stdout ------------------------------------------------------------


def _run_tests(code: CodeType, reader: BinaryIO, out: int, config: dict[str, Any]) -> None:
    """Runs the program in a new process for each request ["run", number of bytes], which the stdin follows.

    Replies ["ran", exit status, number of bytes of stdout, stderr], which the stdout follows.
    """
    while line := reader.readline():
        _, size = codec.load_line(line)
        data = reader.read(size)
        status, stdout, stderr = _run_test(code, data, config)
        write_all(out, codec.dump_line(["ran", status, len(stdout), stderr]) + stdout)
        scratch.clear(".")


def _run_test(code: CodeType, data: bytes, config: dict[str, Any]) -> tuple[int, bytes, str]:
    files = [scratch.open_file(), scratch.open_file(), scratch.open_file()]
    write_all(files[0], data)
    os.lseek(files[0], 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        status = NOT_RUN
        try:
            for target, source in enumerate(files):
                os.dup2(source, target)
            os.closerange(3, MAX_OPEN_FILES)
            _confine(config)
            status = _run_main(code)
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(pid, 0)
    stdout = os.pread(files[1], config["file_bytes"], 0)
    stderr = os.pread(files[2], MAX_STDERR_BYTES, 0).decode(errors="replace")
    for file in files:
        os.close(file)
    return os.waitstatus_to_exitcode(wait_status), stdout, stderr


def _run_main(code: CodeType) -> int:
    """Runs the program as the interpreter runs a script; returns the exit status."""
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    status = _guarded(lambda: exec(code, _module("__main__").__dict__))
    threading = sys.modules.get("threading")
    if threading is not None:
        status = _guarded(threading._shutdown) or status
    import atexit

    status = _guarded(atexit._run_exitfuncs) or status
    return _guarded(sys.stdout.flush) or _guarded(sys.stderr.flush) or status


def _guarded(action: Callable[[], object]) -> int:
    """Does something that may raise; returns the exit status that the interpreter would have ended with."""
    try:
        action()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0) & 0xFF
        os.write(2, str(end.code).encode(errors="backslashreplace")[:MAX_STDERR_BYTES])
        return 1
    except BaseException as error:
        os.write(2, _describe(error).encode(errors="backslashreplace"))
        return 1
    return 0


# programs whose functions are called ------------------------------------------------------------------


class _Server:
    """Answers requests for the names that a program defines, and for objects that it has returned.

    module: the module that the program ran in.
    given: the names that it found without importing them, which it does not define by using them.
    cpu_seconds: CPU time of one test.
    objects: the objects without a plain value that it has returned. Their index is their number in a handle.
    numbers: the number of each, by `id`.
    solution: the instance of its class Solution, if one was needed.
    """

    def __init__(self, module: ModuleType, given: dict[str, Any], cpu_seconds: int) -> None:
        self.module = module
        self.given = given
        self.cpu_seconds = cpu_seconds
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.solution: Any = None

    def keep(self, value: Any) -> int:
        """The number of an object, for the codec."""
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return number

    def find(self, number: int, _: str) -> Any:
        """The object with a number, for the codec."""
        return self.objects[number]

    def named(self, name: str) -> Any:
        """The global of this name, or the method of the class Solution. Raises LookupError."""
        if self._has_global(name):
            return self.module.__dict__[name]
        solution = self.module.__dict__.get("Solution")
        if not isinstance(solution, type) or not hasattr(solution, name):
            raise LookupError(f"name {name!r} is not defined")
        if self.solution is None:
            self.solution = solution()
        return getattr(self.solution, name)

    def answer(self, request: list[Any]) -> list[Any]:
        """The reply to a request: ["r", value, …].

        ["call", name or number, arguments, keyword arguments]; ["has", names]: which of them are defined; ["cpu"]: a
        test begins; ["name", name]: its value; ["do", number, operation, arguments]: an operation on an object.
        """
        operation = request[0]
        if operation == "call":
            return self.call(request[1], request[2], request[3])
        if operation == "has":
            return ["r", [self._has_global(name) or self._has_method(name) for name in request[1]]]
        if operation == "cpu":
            _grant_cpu(self.cpu_seconds)
            return ["r", None]
        if operation == "name":
            return ["r", codec.encode(self.named(request[1]), self.keep)]
        target = self.objects[request[1]]
        arguments = [codec.decode(item, self.find) for item in request[3]]
        return ["r", codec.encode(_OPERATIONS[request[2]](target, *arguments), self.keep)]

    def _has_global(self, name: str) -> bool:
        values = self.module.__dict__
        return name in values and not (name in self.given and values[name] is self.given[name])

    def _has_method(self, name: str) -> bool:
        return hasattr(self.module.__dict__.get("Solution"), name)

    def call(self, target: Any, packed: list[Any], packed_named: dict[str, Any]) -> list[Any]:
        """Calls a name (string) or an object (number).

        Replies the result, and the arguments if the call has changed them.
        """
        function = self.named(target) if isinstance(target, str) else self.objects[target]
        arguments = [codec.decode(item, self.find) for item in packed]
        named = {name: codec.decode(item, self.find) for name, item in packed_named.items()}
        mutable = any(isinstance(item, (list, dict)) for item in packed)
        before = codec.dump_line(packed) if mutable else b""  # now, since a decoded flat list is the same object
        value = codec.encode(function(*arguments, **named), self.keep)
        if not mutable:
            return ["r", value, None]
        after = [codec.encode(item, self.keep) for item in arguments]
        return ["r", value, after if codec.dump_line(after) != before else None]


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "bool": bool,
    "len": len,
    "iter": iter,
    "contains": lambda target, item: item in target,
    "next": lambda target: next(target),
    "str": str,
    "repr": repr,
}


def _serve(code: CodeType, reader: BinaryIO, out: int, cpu_seconds: int) -> None:
    """Runs the program, then answers requests until the pipe closes."""
    module = _module("solution")
    given = leetcode.names_for(code)
    module.__dict__.update(given)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        _send(out, ["failed", _describe(error)])
        return
    _send(out, ["loaded"])
    server = _Server(module, given, cpu_seconds)
    while line := reader.readline():
        try:
            reply = codec.dump_line(server.answer(codec.load_line(line)))
        except BaseException as error:
            reply = codec.dump_line(["x", _builtin_name(error), _error_text(error), _describe(error)])
        write_all(out, reply)


def _builtin_name(error: BaseException) -> str:
    """The name of an exception's type, or of the builtin that it derives from."""
    for base in type(error).__mro__:
        if base.__module__ == "builtins":
            return base.__name__
    return "Exception"
