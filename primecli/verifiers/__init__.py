"""How responses are graded: one verifier a file, behind one Protocol, found by name.

Importing this package is cheap; a verifier's own imports happen when it is loaded. A new verifier is one
file and one line in `VERIFIERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from primecli.errors import UsageError

VERDICTS = ("correct", "wrong", "unparseable", "timeout", "error")

VERIFIERS: dict[str, str] = {
    "code": "primecli.verifiers.code:CodeVerifier",
    "math": "primecli.verifiers.math:MathVerifier",
}


@dataclass(frozen=True, slots=True)
class Task:
    """One response and the ground truth it is compared with (None where the data has none)."""

    response: str
    ground_truth: str | None


@dataclass(frozen=True, slots=True)
class Grade:
    """What a verifier says of one response.

    reward: in [0, 1]; None where the data or the verifier failed, so that no reward is known.
    verdict: correct, wrong, unparseable, timeout or error; error is the only one whose reward is None.
    extracted_answer: the part of the response that was graded, None where nothing was found.
    detail: why, for error.
    tests_passed, tests_total, first_failure: for programs; under the reward `all` the tests after a failure are not
    run. The failure is shortened.
    """

    reward: float | None
    verdict: str
    extracted_answer: str | None = None
    detail: str | None = None
    tests_passed: int | None = None
    tests_total: int | None = None
    first_failure: str | None = None

    def __post_init__(self) -> None:
        assert self.verdict in VERDICTS, self.verdict
        assert (self.reward is None) == (self.verdict == "error"), (self.reward, self.verdict)
        assert self.reward is None or 0.0 <= self.reward <= 1.0, self.reward


@dataclass(frozen=True, slots=True)
class Pending:
    """What is left to grade after the cheap part; equal ones in a batch are graded once."""

    answer: str
    ground_truth: str


class Verifier(Protocol):
    """Grades responses. May be slow or crash: `GradingPool` runs it in processes that it can kill."""

    def grade(self, task: Task) -> Grade:
        """The grade of one response. What the model caused is reward 0, never an exception."""
        ...


class StagedVerifier(Verifier, Protocol):
    """A verifier that settles most tasks by cheap means; `GradingPool` does that part in the caller."""

    def prepare(self, task: Task) -> Grade | Pending:
        """The grade, or what a worker has still to compare. Bounded in time and memory for any input."""
        ...

    def settle(self, pending: Pending) -> Grade:
        """The grade of what `prepare` left open. May take any time."""
        ...

    def probe(self, ground_truth: str) -> None:
        """Does with the ground truth alone what `settle` does with it, raising what it raises.

        After a deadline or a crash this tells whether the data or the model's answer is at fault.
        """
        ...

    def warm_up(self) -> None:
        """Imports what `settle` needs, so that no task's deadline pays for it."""
        ...


def load_verifier(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier registered as `name`, built with `options` as keyword arguments.

    >>> load_verifier("math").grade(Task(r"so \\boxed{3}", "3")).verdict
    'correct'

    Raises UsageError for a name that is not registered or options that the verifier does not have.
    """
    if name not in VERIFIERS:
        raise UsageError(f"there is no verifier {name!r}", f"known: {', '.join(sorted(VERIFIERS))}")
    module, _, attribute = VERIFIERS[name].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    try:
        return cast(Verifier, factory(**(options or {})))
    except TypeError as error:
        raise UsageError(f"verifier {name!r} does not take {dict(options or {})}: {error}") from error
