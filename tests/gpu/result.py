"""The result of the GPU check: its parts, how a part reports, and how to validate the JSON.

Nothing here imports torch, so that the process that starts the parts survives whatever they do.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

VERSION = 1

Status = Literal["ok", "failed", "timed out", "skipped"]


@dataclass(frozen=True)
class Figure:
    """A measured number.

    value: such as 0.47.
    unit: such as "of the matmul rate", or "GiB".
    baseline: what to compare it with, in words; None if there is nothing.
    """

    value: float
    unit: str
    baseline: str | None = None


@dataclass(frozen=True)
class Check:
    """Something that must hold.

    ok: whether it does.
    value: what was observed, such as 3.1e-6.
    bound: what it must be, in words, such as "<= 0.0001".
    """

    ok: bool
    value: float | str | bool
    bound: str


@dataclass
class Entry:
    """The result of a part.

    name: the part's name, such as "right".
    status: "ok" if it ran to its end and every check holds.
    seconds: how long it took.
    limit: how long it was allowed to take.
    figures, checks: by name; a part that was killed keeps those that it had reported.
    notes: what was skipped and why, and other remarks.
    error: why it is not ok; None if it is.
    """

    name: str
    status: Status
    seconds: float
    limit: float
    figures: dict[str, Figure] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str | None = None

    def line(self) -> str:
        """The entry in one line: "ok", or why not."""
        what = {"ok": "ok", "timed out": f"timed out after {self.seconds:.0f} s"}.get(
            self.status, f"{self.status}: {(self.error or '').splitlines()[0] if self.error else 'unknown error'}"
        )
        return f"{self.name}: {what} ({self.seconds:.0f} s, {len(self.figures)} figures, {len(self.checks)} checks)"


@dataclass
class Machine:
    """The machine that the check ran on.

    card, driver: the GPU and its driver, from nvidia-smi; None without a GPU.
    memory_mib: the GPU's memory; None without a GPU.
    cores: CPU cores that this process may use.
    python, torch, transformers: versions; "missing" if a package is not installed.
    """

    card: str | None
    driver: str | None
    memory_mib: int | None
    cores: int
    python: str
    torch: str
    transformers: str


@dataclass
class Result:
    """One run of the check.

    version: version of this layout.
    started: date and time, ISO 8601.
    seconds: how long it took so far.
    budget: seconds that all parts together may take.
    device: cuda or cpu.
    tiny: whether shapes were tiny; figures mean nothing then.
    import_seconds: how long importing torch and transformers took, once for all parts.
    parts: in the order in which they ran.
    """

    version: int
    started: str
    seconds: float
    budget: float
    device: str
    tiny: bool
    machine: Machine
    import_seconds: float = 0.0
    parts: list[Entry] = field(default_factory=list)


class Report:
    """What a part reports, written to disk after every addition, so that it is kept if the part is killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: dict[str, Figure] = {}
        self.checks: dict[str, Check] = {}
        self.notes: list[str] = []

    def figure(self, name: str, value: float, unit: str, baseline: str | None = None) -> None:
        """Adds a number; one that is not finite becomes a note."""
        if math.isfinite(value):
            self.figures[name] = Figure(float(value), unit, baseline)
        else:
            self.notes.append(f"{name} is {value}")
        self.write()

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Adds a check that a number is at most its bound; NaN fails it."""
        found: float | str = float(value) if math.isfinite(value) else str(value)
        self.checks[name] = Check(value <= bound, found, f"<= {bound:g}")
        self.write()

    def holds(self, name: str, ok: bool, found: str | bool, bound: str) -> None:
        """Adds a check of something other than a number."""
        self.checks[name] = Check(ok, found, bound)
        self.write()

    def note(self, text: str) -> None:
        """Adds a note."""
        self.notes.append(text)
        self.write()

    def skip(self, what: str, why: str) -> None:
        """Notes something that cannot be done on this machine."""
        self.note(f"{what} skipped: {why}")

    def write(self) -> None:
        """Writes the report to disk."""
        parts = {
            "figures": {name: asdict(one) for name, one in self.figures.items()},
            "checks": {name: asdict(one) for name, one in self.checks.items()},
        }
        write_json(self.path, {**parts, "notes": self.notes})


def read_report(path: Path, entry: Entry) -> None:
    """Copies what a part has reported into its entry."""
    if not path.exists():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    entry.figures = {name: Figure(**one) for name, one in content["figures"].items()}
    entry.checks = {name: Check(**one) for name, one in content["checks"].items()}
    entry.notes = content["notes"]


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    os.replace(beside, path)


def problems(document: Any) -> list[str]:
    """What is wrong with the JSON of a result; an empty list if it is valid.

    >>> problems({"version": 1})[0]
    'result: started is missing'
    """
    found = _problems(document, Result, "result")
    if not found and document["version"] != VERSION:
        found.append(f"result.version: {document['version']} is not {VERSION}")
    return found


def _problems(value: Any, kind: Any, where: str) -> list[str]:
    """Why a JSON value does not fit a type: a dataclass, list, dict, union, Literal or plain type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _object_problems(value, kind, where)
    if origin is Literal:
        return [] if value in arguments else [f"{where}: {value!r} is none of {arguments}"]
    if origin is UnionType:
        each = [_problems(value, one, where) for one in arguments]
        return [] if [] in each else each[0]
    if origin is list:
        if not isinstance(value, list):
            return [f"{where}: not a list"]
        return [text for number, one in enumerate(value) for text in _problems(one, arguments[0], f"{where}[{number}]")]
    if origin is dict:
        if not isinstance(value, dict):
            return [f"{where}: not an object"]
        return [text for name, one in value.items() for text in _problems(one, arguments[1], f"{where}.{name}")]
    return _plain_problems(value, kind, where)


def _object_problems(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: not an object"]
    hints = get_type_hints(kind)
    names = [one.name for one in fields(kind)]
    found = [f"{where}: {name} is missing" for name in names if name not in value]
    found += [f"{where}: {name} is unknown" for name in value if name not in names]
    return found + [
        text for name in names if name in value for text in _problems(value[name], hints[name], f"{where}.{name}")
    ]


def _plain_problems(value: Any, kind: Any, where: str) -> list[str]:
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = isinstance(value, kind)
    name = "null" if kind is NoneType else kind.__name__
    return [] if fits else [f"{where}: {value!r} is not a {name}"]
