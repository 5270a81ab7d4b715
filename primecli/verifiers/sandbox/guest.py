"""What runs in the sandbox beside the program. Nothing here is trusted: it holds no expected output and no verdict.

The program shares this process or is forked from it, and may take it over; all it can do then is send other
values to the caller, which is what a program does anyway.
"""

from __future__ import annotations

import builtins
import os
import sys

from primecli.verifiers.sandbox import codec, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to import than most programs to run
    from collections.abc import Callable
    from types import CodeType, ModuleType
    from typing import Any, BinaryIO

ONLY_AST = 0x400  # ast.PyCF_ONLY_AST, without the import of ast
MAX_ERROR_CHARS = 500


def main(config: dict[str, Any]) -> None:
    """Compiles the program, then runs it once a test or serves calls to it, until the caller is gone."""
    sys.path[:] = [path for path in sys.path if path] + config["packages"]
    reader = os.fdopen(os.dup(0), "rb")
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    errors = _scratch_file()
    for target, source in ((0, null), (1, null), (2, errors)):
        os.dup2(source, target)
    _limit(config)
    _as_a_user_expects()
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


def _limit(config: dict[str, Any]) -> None:
    if not config["limits"]:
        return
    import resource

    def lower(which: int, wanted: int) -> None:
        hard = resource.getrlimit(which)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, config["file_bytes"])
    lower(resource.RLIMIT_NOFILE, 128)
    lower(resource.RLIMIT_STACK, 100 << 20)  # below the gap that the kernel leaves under the stack
    if sys.platform == "linux":
        lower(resource.RLIMIT_AS, config["memory_bytes"])


def _confine(config: dict[str, Any]) -> None:
    """Takes from this process for good what a program has no use for."""
    if not config["limits"]:
        return
    import resource

    if seccomp.supported():
        seccomp.install()
        seccomp.look_at_no_other()
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (256, 256))
    _grant_cpu(config["cpu_seconds"])


def _grant_cpu(seconds: int) -> None:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime + seconds + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _as_a_user_expects() -> None:
    """What the site module and the command line give a program."""
    import _sitebuiltins

    sys.set_int_max_str_digits(0)
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    sys.argv = ["solution.py"]


def _compile(sources: list[str], defines: str | None) -> CodeType:
    """The first source that compiles and defines the name; else the first that compiles."""
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
    module = type(sys)(name)
    module.__dict__["__builtins__"] = builtins
    module.__dict__["__file__"] = "solution.py"
    sys.modules[name] = module
    return module


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {_said(error)}"[:MAX_ERROR_CHARS]


def _said(error: BaseException) -> str:
    try:
        return str(error)[:MAX_ERROR_CHARS]
    except BaseException:
        return ""


def _send(out: int, message: Any) -> None:
    _write(out, codec.dump_line(message))


def _write(out: int, data: bytes) -> None:
    while data:
        data = data[os.write(out, data) :]


# programs that read stdin and write stdout ------------------------------------------------------------


def _run_tests(code: CodeType, reader: BinaryIO, out: int, config: dict[str, Any]) -> None:
    """For each request ["run", bytes of stdin]: a fresh process; its status and stdout."""
    while line := reader.readline():
        _, size = codec.load_line(line)
        data = reader.read(size)
        status, stdout, stderr = _run_test(code, data, config)
        _write(out, codec.dump_line(["ran", status, len(stdout), stderr]) + stdout)
        _clear(".")


def _run_test(code: CodeType, data: bytes, config: dict[str, Any]) -> tuple[int, bytes, str]:
    files = [_scratch_file(), _scratch_file(), _scratch_file()]
    _write(files[0], data)
    os.lseek(files[0], 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            for target, source in enumerate(files):
                os.dup2(source, target)
            os.closerange(3, 128)
            _confine(config)
            status = _run_main(code)
        finally:
            os._exit(status)
    _, wait_status = os.waitpid(pid, 0)
    stdout = os.pread(files[1], config["file_bytes"], 0)
    stderr = os.pread(files[2], 2000, 0).decode(errors="replace")
    for file in files:
        os.close(file)
    return os.waitstatus_to_exitcode(wait_status), stdout, stderr


def _run_main(code: CodeType) -> int:
    """Runs the program as the interpreter would run a script; its exit status."""
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
    try:
        action()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0) & 0xFF
        os.write(2, str(end.code).encode(errors="replace")[:2000])
        return 1
    except BaseException as error:
        os.write(2, _describe(error).encode(errors="replace"))
        return 1
    return 0


def _scratch_file() -> int:
    """An unlinked file in the working directory."""
    name = f".scratch-{os.getpid()}-{os.urandom(6).hex()}"
    number = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return number


def _clear(directory: str) -> None:
    """Empties a directory, so that a test finds nothing of the one before."""
    try:
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                _clear(entry.path)
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
    except (OSError, RecursionError):
        return  # the program made it unreadable, for itself


# programs whose functions are called ------------------------------------------------------------------


class _Server:
    """Answers requests about the names that a program defines and the objects that it gave out."""

    def __init__(self, module: ModuleType, cpu_seconds: int) -> None:
        self.module = module
        self.cpu_seconds = cpu_seconds
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.solution: Any = None

    def keep(self, value: Any) -> int:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return number

    def find(self, number: int, _: str) -> Any:
        return self.objects[number]

    def named(self, name: str) -> Any:
        """What the program calls `name`: a global, or a method of its class Solution. Raises LookupError."""
        if name in self.module.__dict__:
            return self.module.__dict__[name]
        solution = self.module.__dict__.get("Solution")
        if not isinstance(solution, type) or not hasattr(solution, name):
            raise LookupError(f"name {name!r} is not defined")
        if self.solution is None:
            self.solution = solution()
        return getattr(self.solution, name)

    def answer(self, request: list[Any]) -> list[Any]:
        operation = request[0]
        if operation == "call":
            return self.call(request[1], request[2], request[3])
        if operation == "has":
            return ["r", [name in self.module.__dict__ or self._has_method(name) for name in request[1]]]
        if operation == "cpu":
            _grant_cpu(self.cpu_seconds)
            return ["r", None]
        if operation == "name":
            return ["r", codec.encode(self.named(request[1]), self.keep)]
        target = self.objects[request[1]]
        arguments = [codec.decode(item, self.find) for item in request[3]]
        return ["r", codec.encode(_OPERATIONS[request[2]](target, *arguments), self.keep)]

    def _has_method(self, name: str) -> bool:
        return hasattr(self.module.__dict__.get("Solution"), name)

    def call(self, target: Any, packed: list[Any], packed_named: dict[str, Any]) -> list[Any]:
        """Calls a name (string) or an object (number); the result, and the arguments where it changed them."""
        function = self.named(target) if isinstance(target, str) else self.objects[target]
        arguments = [codec.decode(item, self.find) for item in packed]
        named = {name: codec.decode(item, self.find) for name, item in packed_named.items()}
        mutable = any(isinstance(item, (list, dict)) for item in packed)
        before = codec.dump_line(packed) if mutable else b""  # decoding passes flat lists on as they are
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
    "len": len,
    "iter": iter,
    "contains": lambda target, item: item in target,
    "next": lambda target: next(target),
    "str": str,
    "repr": repr,
}


def _serve(code: CodeType, reader: BinaryIO, out: int, cpu_seconds: int) -> None:
    module = _module("solution")
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        _send(out, ["failed", _describe(error)])
        return
    _send(out, ["loaded"])
    server = _Server(module, cpu_seconds)
    while line := reader.readline():
        try:
            reply = codec.dump_line(server.answer(codec.load_line(line)))
        except BaseException as error:
            reply = codec.dump_line(["x", _builtin_name(error), _said(error), _describe(error)])
        _write(out, reply)


def _builtin_name(error: BaseException) -> str:
    for base in type(error).__mro__:
        if base.__module__ == "builtins":
            return base.__name__
    return "Exception"
