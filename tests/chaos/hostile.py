"""The table of hostile programs, in every form and both sandboxes."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from pathlib import Path

from primecli.verifiers.sandbox.process import bwrap_problem
from tests.fuzz import children
from tests.verifiers.code.hostile import FORMS, HOSTILE
from tests.verifiers.code.test_hostile import check_hostile_programs

TOGETHER = 12  # programs in one pool
LIMIT = 300.0  # seconds for one pool


class Programs:
    """Hostile programs that were tried. tried: by sandbox. failures: with the programs among which the culprit is."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.failures: list[str] = []

    def run(self, seed: int, deadline: float | None, scratch: Path) -> None:
        """Grades all of them in an order that the seed draws, until the deadline in monotonic seconds."""
        sandboxes = ["limits"] if bwrap_problem() else ["bwrap", "limits"]
        keys = [(sandbox, name, form) for sandbox in sandboxes for name in HOSTILE for form in FORMS]
        random.Random(seed).shuffle(keys)
        keys.sort(key=lambda key: key[0])
        for sandbox, group in itertools.groupby(keys, key=lambda key: key[0]):
            pairs = [(name, form) for _, name, form in group]
            for start in range(0, len(pairs), TOGETHER):
                if deadline is not None and time.monotonic() > deadline:
                    return
                self._check(pairs[start : start + TOGETHER], sandbox, scratch)

    def _check(self, pairs: list[tuple[str, str]], sandbox: str, scratch: Path) -> None:
        ended = children.run(["--version"], scratch, limit=LIMIT, before=lambda: check_hostile_programs(pairs, sandbox))
        self.tried[sandbox] += len(pairs)
        if ended.code != 0:
            why = ended.err.strip().splitlines()[-1:] or [f"still running after {LIMIT:.0f} s"]
            text = f"hostile programs, {sandbox}: {why[0][:500]}\n    check_hostile_programs({pairs}, {sandbox!r})"
            self.failures.append(text)
            print(text, flush=True)

    def line(self) -> str:
        """What was tried, in words."""
        tried = ", ".join(f"{count} in {sandbox}" for sandbox, count in self.tried.items()) or "none"
        return f"hostile programs: {tried}; {len(self.failures)} failures"
