"""Runs cases, and judges how each command ended."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from primecli.files import LOCK_NAME, TEMPORARY_PREFIX
from tests.fuzz import children
from tests.fuzz.children import Ended
from tests.fuzz.targets import Target, targets

CODES = (0, 1, 2, 3, 4, 5, 130)
LIMIT = 30.0  # seconds for a case; an undisturbed command takes less than one
NEVER = ("Traceback (most recent call last)", "a bug in primecli", "defect of primecli", "Segmentation fault")
NOT_INPUT = ("_evaluation.json", LOCK_NAME)  # which a command may write beside what it reads
REPEAT = "python -m tests.fuzz --seed"


@dataclass(slots=True)
class Tally:
    """What a campaign has found.

    cases: by target. codes: how often each exit code came. failures: what was wrong, with how to repeat it.
    slowest: seconds and name of the slowest case.
    """

    cases: Counter[str] = field(default_factory=Counter)
    codes: Counter[int | None] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def table(self) -> str:
        """The number of cases of each command and kind."""
        lines = [f"{count:6d}  {name}" for name, count in sorted(self.cases.items())]
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items(), key=str))
        return "\n".join([*lines, f"exit codes: {codes}", f"slowest: {self.slowest[0]:.1f} s, {self.slowest[1]}"])


def contents(directory: Path) -> dict[str, str]:
    """Every file below a directory but those in `out`, with a hash of its bytes and its permissions."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if name.parts[0] == "out" or path.name in NOT_INPUT or not stat.S_ISREG(path.lstat().st_mode):
            continue
        found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()[:16] + oct(path.stat().st_mode)
    return found


def judge(ended: Ended, directory: Path, before: dict[str, str]) -> list[str]:
    """What is wrong with the way in which a command ended; empty if nothing is."""
    if ended.code is None:
        return [f"hangs: still running after {LIMIT:.0f} s"]
    wrong = []
    if ended.code not in CODES:
        wrong.append(f"undocumented exit code {ended.code}")
    wrong += [f"writes {text!r}" for text in NEVER if text in ended.err + ended.out]
    if "\x1b" in ended.out + ended.err:
        wrong.append("writes a raw escape character")
    lines = [line for line in ended.err.splitlines() if line.strip()]
    if ended.code in (1, 2, 4, 130) and not (lines and lines[-1].startswith("primecli")):
        wrong.append("fails without an error on the last line of stderr")
    strange = [line for line in lines if not line.startswith("primecli")]
    if strange and ended.code:  # where all went well, a table of metrics may stand there
        wrong.append(f"stderr has a line that is not primecli's: {strange[0][:200]}")
    if any(len(line) > 3000 for line in lines):
        wrong.append(f"a message of {max(map(len, lines))} characters")
    after = contents(directory)
    if after != before:
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        wrong.append(f"input was changed: {', '.join(names[:5])}")
    return [*wrong, *leftovers(directory), *half_written(directory / "out")]


def leftovers(directory: Path) -> list[str]:
    """Temporary files that were left behind."""
    return [f"left {path.relative_to(directory)}" for path in directory.rglob(f"*{TEMPORARY_PREFIX}*")]


def half_written(out: Path) -> list[str]:
    """Files of the output that cannot be read."""
    wrong = []
    for path in sorted(out.rglob("*")):
        try:
            if path.suffix == ".parquet":
                pq.ParquetFile(path).metadata  # noqa: B018
            elif path.name in ("_summary.json", "_evaluation.json", "primecli.json"):
                json.loads(path.read_text())
        except Exception as error:
            wrong.append(f"{path.name} cannot be read: {error}")
    return wrong


class Campaign:
    """Cases on copies of one material.

    material: as `material.make` and `make_iteration` leave it. scratch: where cases are run.
    """

    def __init__(self, material: Path, scratch: Path) -> None:
        self.material, self.scratch = material, scratch
        self.tally = Tally()
        self.targets = targets()

    def case(self, target: Target, seed: int, *, keep: bool = False) -> tuple[str, Ended, list[str]]:
        """Runs one case. Returns the change in words, how the command ended, and what is wrong."""
        directory = self.scratch / "case"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.material, directory)
        (directory / "out").mkdir()
        try:
            words = target.mutate(target.file(directory), random.Random(f"{target.name} {seed}"))
            before = contents(directory)
            ended = children.run(target.arguments, directory, limit=LIMIT)
            wrong = judge(ended, directory, before)
            if ended.code == 0 and any((directory / "out").rglob("rollouts-*.parquet")):
                wrong += self._read_by_validate(directory)
        finally:
            if not keep:
                shutil.rmtree(directory, ignore_errors=True)
        return words, ended, wrong

    def _read_by_validate(self, directory: Path) -> list[str]:
        ended = children.run(["validate", "out/made"], directory, limit=LIMIT)
        if ended.code in (0, 3) and not any(text in ended.err for text in NEVER):
            return []
        return [f"validate cannot read the output: {ended.code} {ended.err.strip()[:300]}"]

    def run(self, target: Target, seed: int) -> None:
        """Runs one case and counts it."""
        started = time.monotonic()
        words, ended, wrong = self.case(target, seed)
        seconds = time.monotonic() - started
        self.tally.cases[target.name] += 1
        self.tally.codes[ended.code] += 1
        self.tally.slowest = max(self.tally.slowest, (seconds, f"{target.name}, seed {seed}"))
        if wrong:
            last = ended.err.strip().splitlines()[-1:] or [""]
            text = "\n".join(
                [
                    f"{target.name}: {words}",
                    *(f"    {line}" for line in wrong),
                    f"    exit {ended.code}: {last[0][:400]!r}",
                    f"    {REPEAT} {seed} --only {json.dumps(f'{target.name}')} --path {target.path} --keep",
                ]
            )
            self.tally.failures.append(text)
            print(text, flush=True)


def scratch_directory() -> Path:
    """A directory in memory, if there is one: the cases wait for no disk."""
    import tempfile

    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="primecli-fuzz-", dir=memory if os.access(memory, os.W_OK) else None))
