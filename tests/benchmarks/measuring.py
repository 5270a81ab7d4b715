"""What the benchmarks share: processes and their cost, repetitions in turn, ratios, a table, figures as JSON.

A figure is a ratio to a baseline of the same run. Sides are measured in turn, round by round, and the figure is the
median of the rounds' ratios: what else the machine does then falls on both sides alike.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a process took. seconds: wall time, start-up included. mebibytes: the most that it held (not its children).

    said: the JSON object on the last line of its stdout, empty where there is none.
    """

    seconds: float
    mebibytes: float
    said: Mapping[str, Any] = field(default_factory=dict)


def environment(threads: int) -> dict[str, str]:
    """This process's environment, with so many CPU threads, offline, and this checkout first among the modules."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }


def run_process(command: Sequence[str], *, threads: int = 1, cwd: Path = ROOT) -> Cost:
    """Runs a command to its end; SystemExit with its stderr where it fails.

    Its peak memory is what it says of itself as `peak_mib`.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env=environment(threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, error = process.communicate()
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)[:300]}\nended with code {process.returncode}\n{error[-3000:]}")
    lines = out.strip().splitlines()
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Cost(seconds, float(said.get("peak_mib", 0.0)), said)


def peak_mib() -> float:
    """The most memory that this process has held, MiB. Linux's ru_maxrss counts its parent's from before exec too."""
    return _status("VmHWM")


def resident_mib() -> float:
    """The memory that this process holds now, MiB."""
    return _status("VmRSS")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}: Linux is needed")


def reset_peak() -> None:
    """Gives freed memory back to the system, as far as the C library can, and lets `peak_mib` start again.

    primecli's stages have the C library keep what they free: without this, what was freed before would hide as much of
    what is taken after.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def in_turn(sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Every side once a round, each round starting with another of them; the results by side, in order of rounds."""
    names = list(sides)
    found: dict[str, list[T]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(sides[name]())
    return found


@dataclass(frozen=True)
class Ratio:
    """A side over its baseline: the median over rounds, and the smallest and largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}× ({self.low:.2f}–{self.high:.2f})"


def ratio(side: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Of what was measured in the same rounds.

    >>> ratio([1.0, 4.0, 3.0], [2.0, 4.0, 2.0])
    Ratio(median=1.0, low=0.5, high=1.5)
    """
    each = [one / other for one, other in zip(side, baseline, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))


def check_close(what: str, found: Any, expected: Any, *, atol: float, rtol: float = 0.0) -> None:
    """SystemExit where the two sides did not compute the same numbers: then neither is a baseline of the other."""
    import numpy as np

    ours, theirs = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if ours.shape != theirs.shape:
        raise SystemExit(f"{what}: {ours.shape} numbers, the baseline has {theirs.shape}")
    off = np.abs(ours - theirs)
    if not (off <= atol + rtol * np.abs(theirs)).all():
        place = int(np.nanargmax(np.where(np.isnan(off), np.inf, off)))
        raise SystemExit(f"{what}: {ours.flat[place]:.7g}, the baseline has {theirs.flat[place]:.7g} (number {place})")


@dataclass(frozen=True)
class Figure:
    """One line of the result. goal: `<= 1.00` or `>= 0.85`, against which `value` is held; None where none is set."""

    name: str
    value: float
    text: str
    baseline: str
    goal: str | None = None

    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none.

        >>> Figure("x", 0.8, "0.8", "y", ">= 0.85").met()
        False
        """
        if self.goal is None:
            return None
        sign, number = self.goal.split()
        return self.value <= float(number) if sign == "<=" else self.value >= float(number)


def show(title: str, figures: Sequence[Figure], json_path: Path | None, **more: Any) -> None:
    """Prints the figures as a table; with a path, writes them and what else was measured as JSON too."""
    print(f"\n{title}\n({machine()})\n")
    widths = [max(len(text) for text in column) for column in zip(*map(_cells, figures), strict=True)]
    for figure in figures:
        print("  ".join(cell.ljust(width) for cell, width in zip(_cells(figure), widths, strict=True)).rstrip())
    if json_path is not None:
        found = {
            figure.name: {"value": figure.value, "baseline": figure.baseline, "goal": figure.goal, "met": figure.met()}
            for figure in figures
        }
        json_path.write_text(json.dumps({"title": title, "machine": machine(), "figures": found, **more}, indent=2))


def _cells(figure: Figure) -> list[str]:
    met = {True: "met", False: "MISSED", None: ""}[figure.met()]
    return [figure.name, figure.text, figure.baseline, f"goal {figure.goal}" if figure.goal else "", met]


def machine() -> str:
    """What this was measured on, in words."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return f"{len(os.sched_getaffinity(0))} cores, {model}; load {os.getloadavg()[0]:.1f}"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
