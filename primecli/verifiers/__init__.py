"""How responses are graded: one verifier a file, behind one Protocol, found by name.

Importing this package is cheap; a verifier's own imports happen when it is loaded. A new verifier is one
file and one line in `VERIFIERS`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from primecli.errors import UsageError
from primecli.files import file_hash

VERDICTS = ("correct", "wrong", "unparseable", "timeout", "error")

VERIFIERS: dict[str, str] = {
    "code": "primecli.verifiers.code.verifier:CodeVerifier",
    "math": "primecli.verifiers.math.verifier:MathVerifier",
}


VERSIONS: dict[str, int] = {"code": 1, "math": 1}
"""Raised when a change can alter a grade, so that earlier grades are not taken for the new ones."""

DEFAULT_VERIFIER = "math"
ENTRY_POINTS = "primecli.verifiers"


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


class FunctionVerifier:
    """A plain function as a verifier: `function(response, ground_truth)` gives a reward in [0, 1], a bool or a Grade.

    Full reward is `correct`, anything less `wrong`. What it raises, or a reward out of range, is an `error` without a
    reward.
    """

    def __init__(self, function: Callable[[str, str | None], Grade | float]) -> None:
        self.function = function

    def grade(self, task: Task) -> Grade:
        """The grade of one response."""
        result = self.function(task.response, task.ground_truth)
        if isinstance(result, Grade):
            return result
        if not isinstance(result, (bool, int, float)) or not 0 <= result <= 1:
            return Grade(None, "error", detail=f"the verifier returned {result!r}, not a reward in [0, 1]"[:300])
        return Grade(float(result), "correct" if result == 1 else "wrong")


def verifier_spec(name: str) -> str:
    """`module:attribute` of a verifier: itself, or that of a name in `VERIFIERS` or of an installed entry point.

    Entry points are of the group `primecli.verifiers`. Raises UsageError for a name that is not known.
    """
    if ":" in name:
        return name
    if name in VERIFIERS:
        return VERIFIERS[name]
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return installed[name]
    known = ", ".join(sorted({*VERIFIERS, *installed}))
    raise UsageError(f"there is no verifier {name!r}", f"known: {known}; or module:function")


def build_verifier(spec: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier at `module:attribute`: a class built with `options`, or a function.

    Raises UsageError where it cannot be imported or does not take the options.
    """
    module, _, attribute = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"verifier {spec}: {error}", "a verifier is named module:attribute") from error
    if not isinstance(found, type):
        return FunctionVerifier(found)
    try:
        return cast(Verifier, found(**(options or {})))
    except TypeError as error:
        raise UsageError(f"verifier {spec} does not take {dict(options or {})}: {error}") from error


def load_verifier(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier of this name (or `module:attribute`), built with `options` as keyword arguments.

    >>> load_verifier("math").grade(Task(r"so \\boxed{3}", "3")).verdict
    'correct'

    Raises UsageError for a name that is not known or options that the verifier does not have.
    """
    return build_verifier(verifier_spec(name), options)


def choose_verifier(ability: str | None, data_source: str | None, chosen: Mapping[str, str]) -> str:
    """The name of the verifier of a row: by its ability, then by its data source, then the default.

    chosen: names by ability or data source, as the user gave them; "" stands for all other rows. Without it, a row
    goes to the verifier that is named as its ability or data source, and else to `math`.

    >>> choose_verifier("code", "apps", {}), choose_verifier(None, "gsm8k", {"gsm8k": "mine:grade"})
    ('code', 'mine:grade')
    """
    keys = [key for key in (ability, data_source) if key]
    for key in keys:
        if key in chosen:
            return chosen[key]
    if "" in chosen:
        return chosen[""]
    return next((key for key in keys if key in VERIFIERS or key in _installed()), DEFAULT_VERIFIER)


@functools.cache
def _installed() -> frozenset[str]:
    return frozenset(point.name for point in entry_points(group=ENTRY_POINTS))


def verifier_identity(name: str) -> str:
    """What tells a verifier from another version of it: its number in `VERSIONS`, or the hash of its module's file.

    Raises UsageError for a name that is not known or a module that is not found.
    """
    if name in VERSIONS:
        return str(VERSIONS[name])
    module = verifier_spec(name).partition(":")[0]
    try:
        found = None if module.endswith(".py") else importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise UsageError(f"verifier {name}: {error}", "a verifier is named module:attribute") from error
    if module.endswith(".py"):
        raise UsageError(
            f"verifier {name}: a module is meant, not a file", f"leave out .py: {name.replace('.py:', ':')}"
        )
    if found is None:
        raise UsageError(f"verifier {name}: there is no module {module}", "is its directory on PYTHONPATH?")
    return file_hash(Path(found.origin)) if found.origin and Path(found.origin).is_file() else module
