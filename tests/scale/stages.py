"""What the checks of workers share: a stage as a process, all that it starts, and shards that take a while."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.made import make_model, write_rollouts
from tests.benchmarks.measuring import ROOT, environment

MARK = "PRIMECLI_SCALE_MARK"
PATIENCE = 20.0  # seconds after the end of a stage until nothing of it may be left running
SHARDS, ROWS, TOKENS, WORDS = 12, 8, 300, 1000


class Failed(Exception):
    """Something did not hold."""


def check(holds: bool, what: str) -> None:
    """Raises Failed unless it holds."""
    if not holds:
        raise Failed(what)


def make(directory: Path, *, shards: int = SHARDS) -> Path:
    """Two models, and shards that each take about a second to score; returns the directory of the shards."""
    from primecli.shards.parquet import shard_name

    for seed, name in enumerate(("prm", "ref")):
        make_model(directory / name, words=WORDS, width=256, layers=4, seed=seed)
    rollouts = directory / "filter"
    rollouts.mkdir()
    for number in range(shards):
        write_rollouts(
            rollouts / shard_name(number, shards),
            ROWS,
            TOKENS,
            words=WORDS,
            stages=("generate", "verify"),
            first_row=number * ROWS,
        )
    return rollouts


def score(work: Path, out: str, *options: str) -> list[str]:
    """The command line of score-prm over the shards of `make`."""
    models = ["--prm", str(work / "prm"), "--ref", str(work / "ref")]
    return ["score-prm", *models, str(work / "filter"), "--out", str(work / out), *options]


class Stage:
    """A running stage, whose processes are known by a variable in their environment, however they were started."""

    def __init__(self, words: Sequence[str], work: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "primecli", *words],
            cwd=work,
            env={**environment(1), MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def others(self) -> list[int]:
        """The process ids of all that it has started and that still run."""
        return [pid for pid in marked(self.mark) if pid != self.process.pid]

    def workers(self) -> list[int]:
        """The process ids of its children that are workers, once they have torch."""
        return [pid for pid in self.others() if "worker_child" in command(pid) and has_torch(pid)]

    def first_line(self) -> str:
        """Waits for the first path."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self) -> tuple[int, str, str]:
        """Waits for its end, and for that of all that it has started; its exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=300)
        within(lambda: not self.others(), f"processes are left running: {[command(pid) for pid in self.others()]}")
        return self.process.returncode, out, err


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def command(pid: int) -> str:
    """The command line of a process; empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def has_torch(pid: int) -> bool:
    """Whether a process has loaded torch."""
    with contextlib.suppress(OSError):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    return False


def within(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Waits until something holds. Raises Failed if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, what)
        time.sleep(0.05)


def run(words: Sequence[str], work: Path, code: int = 0) -> tuple[str, str]:
    """Runs a stage to its end; its stdout and stderr."""
    stage = Stage(words, work)
    found, out, err = stage.end()
    check(found == code, f"{' '.join(words)}: exit code {found}, not {code}\n{err}")
    return out, err


def same(left: Path, right: Path) -> None:
    """Raises Failed unless two directories hold the same shards: content, fingerprint and counts."""
    from primecli.shards import parquet

    def footers(directory: Path) -> dict[str, Any]:
        found = {path.name: parquet.read_footer(path) for path in sorted(directory.glob("*.parquet"))}
        return {name: (footer.content, footer.fingerprint, footer.counts) for name, footer in found.items()}

    one, other = footers(left), footers(right)
    check(bool(one) and list(one) == list(other), f"{left} has {len(one)} shards, {right} {len(other)}")
    for name in one:
        check(one[name] == other[name], f"{name}: {one[name]} in {left}, {other[name]} in {right}")


def interrupt(stage: Stage, number: int = signal.SIGINT) -> None:
    """Sends a signal to the stage alone, as Ctrl-C does to the processes of the terminal's group."""
    os.kill(stage.process.pid, number)


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """A directory with models, shards, and what a single process makes of them in `one`."""
    with tempfile.TemporaryDirectory(prefix="primecli-scale-") as name:
        work = Path(name)
        make(work)
        run(score(work, "one", "--quiet"), work)
        yield work


def run_checks(description: str | None, checks: Mapping[str, Callable[[Path], None]]) -> None:
    """The command line of a module of checks: runs them, or those that are named; exits with 1 if one failed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(checks)}; all by default")
    names = parser.parse_args().checks or list(checks)
    os.chdir(ROOT)
    failed = []
    with prepared() as work:
        for name in names:
            started = time.monotonic()
            try:
                checks[name](work)
                result = "ok"
            except Exception:
                failed.append(name)
                result = f"FAILED\n{traceback.format_exc()}"
            print(f"  {name}, {time.monotonic() - started:.0f} s: {result}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
