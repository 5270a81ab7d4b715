"""Checks and measures primecli on a GPU, the most important things first, in nine minutes.

    python tests/gpu/check.py                        on a GPU: `make gpu-check`
    python tests/gpu/check.py --device cpu --tiny    does the script work? its figures mean nothing
    python tests/gpu/check.py --only fast choices    some parts

Each part runs in a process of its own. When its time is up, that process is killed, with every process it started; what
it reported by then is kept. The result is one JSON file (tests/gpu/result.py), written again after every part. Prints a
line per part. The exit code is 0 if all parts are ok, else 1. Weights are random, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.gpu.context import SHARED_MEMORY, has_room_in_memory  # noqa: E402
from tests.gpu.result import VERSION, Entry, Machine, Result, read_report, write_json  # noqa: E402

BUDGET = 540.0
LEAST = 5.0  # seconds: with less left, a part is not started
MARK = "PRIMECLI_GPU_CHECK"  # in the environment of every process that a part starts
LOG_LINES = 25  # shown of a part that failed


@dataclass(frozen=True)
class Part:
    """One part.

    limit: the most seconds it may take.
    summary: what it checks and measures.
    module: NAME of its file, tests/gpu/part_NAME.py; empty for the part's own name.
    """

    limit: float
    summary: str
    module: str = ""


PARTS = {
    "right": Part(90, "log-probabilities and gradients: GPU against CPU, packed against padded, LoRA, offload"),
    "pipeline": Part(260, "all stages in one pipe, its checkpoint resumed, one rank, and running out of memory"),
    "memory": Part(150, "the GPU's memory between stages, and stages that wait for it"),
    "fast": Part(200, "model FLOP utilization and peak memory of scoring and updates at 1.5B, compiled too"),
    "choices": Part(120, "packed attention three ways, tiles of the head"),
    "sampling": Part(90, "tokens a second of the hf engine, against model.generate"),
    "load_save": Part(150, "loading 7B in bfloat16, saving a checkpoint of 1.5B"),
}
FOR_TESTS = {
    "hang": Part(3, "never ends, and has started a process that does not either", "for_tests"),
    "raise": Part(30, "raises", "for_tests"),
    "crash": Part(30, "is killed by a signal", "for_tests"),
    "miss": Part(30, "a check does not hold", "for_tests"),
    "fine": Part(30, "is ok", "for_tests"),
}


class Children:
    """The process that forks parts; see tests/gpu/children.py."""

    def __init__(self, work: Path, budget: float) -> None:
        self.log = work / "children.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        environment |= {"HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.children"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.unread = b""
        start = time.monotonic()
        self.ready = self.answer(budget) is not None
        self.import_seconds = time.monotonic() - start

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """Its next answer; None if none comes in time, or if it has ended."""
        assert self.process.stdout is not None
        descriptor, end = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self.unread:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return None
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        return dict(json.loads(line))

    def start(self, order: dict[str, Any]) -> int | None:
        """Starts a part, and returns its process id; None if it cannot be started."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return None
        answer = self.answer(30)
        return None if answer is None else int(answer["pid"])

    def end(self) -> None:
        """Ends it."""
        kill_session(self.process.pid)
        self.process.wait()


def kill_session(process: int) -> None:
    """Kills the leader of a session, and its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_marked(mark: str) -> None:
    """Kills the processes that a part has left behind, whatever their group."""
    word = f"{MARK}={mark}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word in (directory / "environ").read_bytes().split(b"\0"):
                os.kill(int(directory.name), signal.SIGKILL)


class Run:
    """One run of the check."""

    def __init__(self, options: argparse.Namespace, work: Path, in_memory: Path) -> None:
        self.options = options
        self.work = work
        self.in_memory = in_memory
        self.started = time.monotonic()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.result = Result(VERSION, now, 0.0, options.budget, options.device, options.tiny, machine())
        self.current: int | None = None
        self.mark = f"{os.getpid()}-{int(time.time())}"
        self.children: Children | None = None

    def left(self) -> float:
        """Seconds of the budget."""
        return float(self.options.budget) - (time.monotonic() - self.started)

    def write(self) -> None:
        """Writes the result as it is now."""
        self.result.seconds = round(time.monotonic() - self.started, 1)
        write_json(self.options.json, asdict(self.result))

    def all_parts(self) -> None:
        """Runs the parts named on the command line, in order."""
        self.write()
        for name in self.options.only:
            entry = self.part(name, {**PARTS, **FOR_TESTS}[name])
            self.result.parts.append(entry)
            self.write()
            print(entry.line(), flush=True)
            if entry.status != "ok" and entry.error:
                print(entry.error, file=sys.stderr, flush=True)

    def part(self, name: str, part: Part) -> Entry:
        """Runs a part, and returns its entry."""
        limit = round(min(part.limit, self.left()), 1)
        entry = Entry(name, "skipped", 0.0, max(limit, 0.0))
        if limit < LEAST and limit < part.limit:
            entry.error = f"{max(0.0, self.left()):.0f} s of the budget were left"
            return entry
        if self.children is None or self.children.process.poll() is not None:
            self.children = Children(self.work, self.left())
            self.result.import_seconds = round(self.children.import_seconds, 1)
            limit = entry.limit = max(0.0, round(min(part.limit, self.left()), 1))
        files = {kind: self.work / f"{name}.{kind}" for kind in ("log", "report", "error")}
        own = {"work": self.work / name, "in_memory": self.in_memory / name, "shared": self.work / "shared"}
        order = {
            "part": name,
            "module": part.module or name,
            "device": self.options.device,
            "tiny": self.options.tiny,
            "environment": {MARK: self.mark},
            **{key: str(path) for key, path in {**files, **own}.items()},
        }
        start = time.monotonic()
        code = self._wait(order, limit)
        entry.seconds = round(time.monotonic() - start, 1)
        kill_marked(self.mark)
        for key in ("work", "in_memory"):
            shutil.rmtree(own[key], ignore_errors=True)
        read_report(files["report"], entry)
        entry.status, entry.error = self._verdict(entry, code, files)
        return entry

    def _wait(self, order: dict[str, Any], limit: float) -> int | str:
        """The exit code of a part; "" if its time ran out, or the reason why it could not be started."""
        assert self.children is not None
        if not self.children.ready:
            return f"torch and transformers cannot be imported:\n{tail(self.children.log)}"
        self.current = self.children.start(order)
        if self.current is None:
            return f"it could not be started:\n{tail(self.children.log)}"
        answer = self.children.answer(limit)
        if answer is None:
            kill_session(self.current)
            if self.children.answer(30) is None:
                self.children.end()
        self.current = None
        return "" if answer is None else int(answer["code"])

    def _verdict(self, entry: Entry, code: int | str, files: dict[str, Path]) -> tuple[Any, str | None]:
        """The status and the error. code: as `_wait` returns it."""
        if code == "":
            return "timed out", f"timed out after {entry.limit:.0f} s\n{tail(files['log'])}"
        if isinstance(code, str):
            return "failed", code
        if code:
            said = files["error"].read_text(encoding="utf-8") if files["error"].exists() else f"ended with code {code}"
            return "failed", f"{said.strip()}\n{tail(files['log'])}"
        missed = [f"{name}: {check.value}, not {check.bound}" for name, check in entry.checks.items() if not check.ok]
        return ("failed", "; ".join(missed)) if missed else ("ok", None)

    def end(self) -> None:
        """Kills what is still running."""
        if self.current is not None:
            kill_session(self.current)
        if self.children is not None:
            self.children.end()
        kill_marked(self.mark)


def tail(path: Path) -> str:
    """The last lines of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"  {line[:400]}" for line in lines[-LOG_LINES:])


def machine() -> Machine:
    """What this machine is, without importing torch."""
    card = driver = memory = None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
        card, driver, total = (word.strip() for word in done.stdout.splitlines()[0].split(","))
        memory = int(total)
    cores = len(os.sched_getaffinity(0))
    return Machine(card, driver, memory, cores, platform.python_version(), version("torch"), version("transformers"))


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), metavar="FILE", help="the result")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=[*PARTS, *FOR_TESTS], metavar="PART")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all parts together")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, which show that the script works")
    parser.add_argument("--list", action="store_true", help="list the parts, and do nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the check; 0 where all parts are ok."""
    options = parse_arguments(arguments)
    if options.list:
        for name, part in PARTS.items():
            print(f"{name:10} {part.limit:4.0f} s  {part.summary}")
        return 0
    if options.device == "cuda" and machine().card is None and not list(Path("/dev").glob("nvidia[0-9]*")):
        print("there is no GPU here; --device cpu --tiny shows that the script works", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    roots = [Path(tempfile.mkdtemp(prefix="gpu-check-"))]
    if not options.tiny and has_room_in_memory():
        roots.append(Path(tempfile.mkdtemp(prefix="gpu-check-", dir=SHARED_MEMORY)))
    run = Run(options, roots[0], roots[-1] / "in-memory")
    try:
        run.all_parts()
    finally:
        run.end()
        run.write()
        for root in roots:
            shutil.rmtree(root, ignore_errors=True)
    return 0 if all(entry.status == "ok" for entry in run.result.parts) else 1


if __name__ == "__main__":
    sys.exit(main())
