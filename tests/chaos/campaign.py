"""Strikes a stage at one of its file operations, runs it again, and compares what it made with an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from primecli.shards import parquet
from tests.chaos.interposer import Interposer
from tests.fuzz import children
from tests.fuzz.campaign import NEVER, leftovers
from tests.fuzz.children import Ended
from tests.fuzz.material import STAGES

LIMIT = 60.0
OF_TIME = ("started", "finished", "time", "seconds", "host", "created", "version")
"""Keys of records which differ between two runs of the same command."""
FAILING = ("open", "write", "fsync", "os.mkdir", "os.link", "os.rename", "shutil.copyfile")
"""Operations that fail on a disk that is full or broken; to remove a file always works there."""
CODES = {
    "kill": (-signal.SIGKILL,),
    "full": (0, 1),
    "broken": (0, 1),
    "SIGTERM": (0, 130),
    "SIGINT": (0, 130),
    "SIGHUP": (0, 130, -signal.SIGHUP),
}
"""How a command may end after each strike: 0 where the operation does not matter, as for a lock."""
AT_RANDOM = "killed at a random moment"


@dataclass(frozen=True, slots=True)
class Strike:
    """One trial. stage: its name. what: of `interposer.STRIKES`, or `AT_RANDOM`. at: the operation, or a seed."""

    stage: str
    what: str
    at: int

    @property
    def again(self) -> str:
        """The command that repeats it."""
        return f"python -m tests.chaos --stage {self.stage} --strike {json.dumps(self.what)} --at {self.at}"


@dataclass(slots=True)
class Undisturbed:
    """A stage that was left alone: what it made, its file operations in order, and how long it took."""

    made: dict[str, str]
    operations: list[str]
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What came of a campaign. possible, tried, recovered: by stage and strike. failures: with how to repeat them."""

    possible: Counter[tuple[str, str]] = field(default_factory=Counter)
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    recovered: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Tried and recovered by stage and strike."""
        lines = [f"{'stage':20s} {'strike':28s} {'possible':>9s} {'tried':>7s} {'recovered':>10s}"]
        for stage, what in self.possible:
            key = (stage, what)
            possible = "" if what == AT_RANDOM else str(self.possible[key])
            lines.append(f"{stage:20s} {what:28s} {possible:>9s} {self.tried[key]:7d} {self.recovered[key]:10d}")
        lines.append(f"{'all':49s} {'':>9s} {self.tried.total():7d} {self.recovered.total():10d}")
        return "\n".join(lines)


def made_by(stage: str, directory: Path) -> dict[str, str]:
    """What a stage has made: every file, with a hash of everything in it that must not differ between two runs."""
    target = directory / output_of(stage)
    found = {}
    for path in sorted(target.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            found[str(path.relative_to(target))] = _hash_of(path)
    return found


def output_of(stage: str) -> str:
    """The directory that a stage writes."""
    return f"{stage.removeprefix('update-')}/2" if stage.startswith("update-") else f"1/{stage}"


def _hash_of(path: Path) -> str:
    if path.suffix == ".parquet":
        metadata = pq.read_metadata(path)
        footer = json.loads(metadata.metadata[parquet.FOOTER_KEY])
        assert parquet.content_of(path) == footer["content"]
        return _digest(json.dumps(_timeless(footer), sort_keys=True).encode())
    if path.name == "_summary.json":
        summary = json.loads(path.read_text())
        kept = ("stage", "status", "shards", "rows", "groups", "error")
        return _digest(json.dumps({key: summary[key] for key in kept}).encode())
    if path.suffix == ".json":
        return _digest(json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True).encode())
    if path.name == "steps.jsonl":
        steps = [_without_durations(json.loads(line)) for line in path.read_text().splitlines()]
        return _digest(json.dumps(steps).encode())
    return _digest(path.read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in OF_TIME}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _without_durations(step: dict[str, float]) -> dict[str, float]:
    return {
        name: value for name, value in step.items() if not any(word in name for word in ("second", "memory", "per_s"))
    }


class Campaign:
    """Strikes on copies of one material, whose iteration has run to its end."""

    def __init__(self, material: Path, scratch: Path, stages: Sequence[str] = tuple(STAGES)) -> None:
        self.material, self.scratch = material, scratch
        self.outcome = Outcome()
        self.undisturbed = {stage: self._undisturbed(stage) for stage in stages}

    def all_strikes(self, whats: Sequence[str]) -> list[Strike]:
        """Every operation of every stage with each of these strikes."""
        found = [
            Strike(stage, what, at)
            for what in whats
            for stage, alone in self.undisturbed.items()
            for at, operation in enumerate(alone.operations, start=1)
            if what not in ("full", "broken") or operation.split()[1] in FAILING
        ]
        for strike in found:
            self.outcome.possible[strike.stage, strike.what] += 1
        return found

    def kind(self, strike: Strike) -> str:
        """What the operation does that is struck, such as fsync."""
        return self.undisturbed[strike.stage].operations[strike.at - 1].split()[1]

    def at_random(self, each: int, seed: int) -> list[Strike]:
        """Kills at random moments, this many for each stage."""
        found = [Strike(stage, AT_RANDOM, seed + number) for number in range(each) for stage in self.undisturbed]
        for strike in found:
            self.outcome.possible[strike.stage, strike.what] += 1
        return found

    def run(self, strike: Strike) -> bool:
        """One trial: strikes, runs the command again, compares. Returns whether all was well."""
        directory = self._before(strike.stage)
        struck = self._struck(strike, directory)
        wrong = self._judge_struck(strike, struck, directory)
        again = children.run(STAGES[strike.stage], directory, limit=LIMIT)
        if again.code != 0:
            wrong.append(f"the second run ends with {again.code}: {again.err.strip()[-500:]}")
        else:
            wrong += self._differences(strike.stage, directory)
        wrong += leftovers(directory)
        key = (strike.stage, strike.what)
        self.outcome.tried[key] += 1
        self.outcome.recovered[key] += not wrong
        if wrong:
            operation = ""
            if strike.what != AT_RANDOM:
                operation = self.undisturbed[strike.stage].operations[strike.at - 1]
            last = struck.err.strip().splitlines()[-1:] or [""]
            text = "\n".join(
                [
                    f"{strike.stage}, {strike.what}, {operation or strike.at}",
                    *(f"    {line}" for line in wrong),
                    f"    exit {struck.code}: {last[0][:300]!r}",
                    f"    {strike.again}",
                ]
            )
            self.outcome.failures.append(text)
            print(text, flush=True)
        return not wrong

    def _before(self, stage: str) -> Path:
        """A copy of the material in which this stage has not run."""
        directory = self.scratch / "struck"
        shutil.rmtree(directory, ignore_errors=True)
        own = self.material / output_of(stage)
        shutil.copytree(
            self.material,
            directory,
            ignore=lambda where, names: [own.name] if Path(where) == own.parent else [],
        )
        return directory

    def _undisturbed(self, stage: str) -> Undisturbed:
        directory = self._before(stage)
        report = os.memfd_create("operations")
        ended = children.run(
            STAGES[stage], directory, limit=LIMIT, before=Interposer(directory, 0, "kill", report=report).install_here
        )
        assert ended.code == 0, ended.err
        os.lseek(report, 0, os.SEEK_SET)
        with open(report, encoding="utf-8") as file:
            operations = file.read().splitlines()
        return Undisturbed(made_by(stage, directory), operations, ended.seconds)

    def _struck(self, strike: Strike, directory: Path) -> Ended:
        command = STAGES[strike.stage]
        if strike.what == AT_RANDOM:
            seconds = random.Random(f"{strike.stage} {strike.at}").uniform(0, self.undisturbed[strike.stage].seconds)
            return children.run(command, directory, limit=LIMIT, during=_killer(seconds))
        once = strike.what != "full"  # a full disk stays full, until somebody makes room before the second run
        interposer = Interposer(directory, strike.at, strike.what, once=once)
        return children.run(command, directory, limit=LIMIT, before=interposer.install_here)

    def _judge_struck(self, strike: Strike, struck: Ended, directory: Path) -> list[str]:
        if struck.code is None:
            return [f"hangs: still running after {LIMIT:.0f} s"]
        wrong = [f"writes {text!r}" for text in NEVER if text in struck.err]
        codes = (0, -signal.SIGKILL) if strike.what == AT_RANDOM else CODES[strike.what]
        if struck.code not in codes:
            wrong.append(f"ends with {struck.code}, not with one of {codes}")
        if struck.code == 1 and not struck.err.strip().splitlines()[-1:][0].startswith("primecli"):
            wrong.append("fails without an error on the last line of stderr")
        if struck.code == 0:
            wrong += self._differences(strike.stage, directory)
        if struck.code is not None and struck.code >= 0:
            wrong += leftovers(directory)
        return wrong

    def _differences(self, stage: str, directory: Path) -> list[str]:
        made, expected = made_by(stage, directory), self.undisturbed[stage].made
        names = sorted(name for name in {*made, *expected} if made.get(name) != expected.get(name))
        return [f"{name} differs from an undisturbed run's" for name in names]


def _killer(seconds: float) -> Callable[[int], None]:
    def strike(child: int) -> None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)

    return strike
