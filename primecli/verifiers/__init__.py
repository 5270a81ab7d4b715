"""How responses are graded: by verifiers, which are found by name and share one Protocol, `Verifier`.

| module | what is in it |
|---|---|
| `__init__` | what a verifier takes and gives (`Task`, `Grade`), what it may define, and how it is found and built |
| `pool` | `GradingPool`: grades many responses, the slow ones in worker processes with a deadline |
| `worker` | the main loop of such a process |
| `math` | the verifier of mathematical answers; its docstring is the map of that package |
| `code` | the verifier of programs, and how their output is compared |
| `sandbox` | the processes in which those programs and their tests run |

Importing this package is cheap: the imports of a verifier happen when it is loaded. A new verifier is one file, one
line in `VERIFIERS`, one in `VERSIONS`, and its name in the import contract of `verifiers` in pyproject.toml.
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
"""All values of the column `verdict`; `Grade` says what each means."""

VERIFIERS: dict[str, str] = {
    "code": "primecli.verifiers.code.verifier:CodeVerifier",
    "math": "primecli.verifiers.math.verifier:MathVerifier",
}
"""`module:attribute` of each verifier that primecli brings, by name."""

VERSIONS: dict[str, int] = {"code": 3, "math": 2}
"""Part of a shard's fingerprint. Raise a number when a change can alter a grade, so that shards are graded again."""

DEFAULT_VERIFIER = "math"
ENTRY_POINTS = "primecli.verifiers"
"""The entry-point group in which installed packages register verifiers."""

MAX_DETAIL_CHARS = 300
"""Longer reasons are cut: they end in columns that people read, and the text of an exception can be of any length."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be graded.

    response: the text that the model wrote.
    ground_truth: what it is compared with, in the form that the verifier reads; None where the data have none.
    """

    response: str
    ground_truth: str | None


@dataclass(frozen=True, slots=True)
class Grade:
    """The result for one response.

    reward: in [0, 1]; None where the data or the verifier failed, so that the reward is unknown.
    verdict: correct; wrong; unparseable (no answer, or one that cannot be read); timeout (the answer takes too long to
        compare or run); or error (the data or the verifier failed), the only one without a reward.
    extracted_answer: the part of the response that was graded; None where there is none.
    detail: the reason, for error.
    tests_passed: how many tests a program passed, such as 2.
    tests_total: how many tests there are, such as 3. Under the reward `all` those after a failure do not run.
    first_failure: which test failed first and why, shortened to MAX_DETAIL_CHARS.

    Lone surrogates in the texts, which no column can hold, are escaped.
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
        for name in ("extracted_answer", "detail", "first_failure"):
            text = getattr(self, name)
            if isinstance(text, str) and not text.isascii():  # a program can raise a lone surrogate, which UTF-8 lacks
                object.__setattr__(self, name, text.encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True, slots=True)
class Pending:
    """A comparison that is left for a worker; equal ones in a batch are made once.

    answer: the extracted answer or, from a verifier without `prepare`, the whole response.
    ground_truth: what it is compared with.
    """

    answer: str
    ground_truth: str


class Verifier(Protocol):
    """Grades responses. It may be slow or crash, since `GradingPool` runs it in processes that it can kill.

    `grade` is all that a verifier needs. `GradingPool` and `verify` use these too, where it defines them:

    - the methods of `StagedVerifier`;
    - `pool_timeout`, in seconds, for a verifier with deadlines of its own: the deadline that the pool then sets for one
      task in place of its `timeout`. It must be longer than `grade` ever takes, because a task that exceeds it counts
      as an error of the verifier, not of the model;
    - `notice`, a line that `verify` shows on stderr before it grades, or None.
    """

    def grade(self, task: Task) -> Grade:
        """Grades one response. Whatever the model did is reward 0; an exception means that the verifier failed."""
        ...


class StagedVerifier(Verifier, Protocol):
    """A verifier that grades most tasks cheaply, so that `GradingPool` need not send them to a worker."""

    def prepare(self, task: Task) -> Grade | Pending:
        """The grade, or the comparison that is left. Runs in the caller: bounded in time and memory for any input."""
        ...

    def settle(self, pending: Pending) -> Grade:
        """Makes the comparison that `prepare` left. Runs in a worker, and may take any time."""
        ...

    def probe(self, ground_truth: str) -> None:
        """Does with the ground truth alone what `settle` does with it, and raises what it raises.

        The pool calls it after a deadline or a crash, to tell whether the data or the model's answer is at fault.
        """
        ...

    def warm_up(self) -> None:
        """Imports what `settle` needs, before the deadline of the worker's first task starts."""
        ...


class FunctionVerifier:
    """A plain function as a verifier: `function(response, ground_truth)` returns a reward in [0, 1], a bool or a Grade.

    A reward of 1 is `correct`, anything less `wrong`. A reward out of range is an `error`, as is any exception.
    """

    def __init__(self, function: Callable[[str, str | None], Grade | float]) -> None:
        self.function = function

    def grade(self, task: Task) -> Grade:
        """Calls the function and makes a Grade of what it returns."""
        result = self.function(task.response, task.ground_truth)
        if isinstance(result, Grade):
            return result
        reward = _as_number(result)
        if reward is None or not 0 <= reward <= 1:
            return Grade(
                None, "error", detail=f"the verifier returned {result!r}, not a reward in [0, 1]"[:MAX_DETAIL_CHARS]
            )
        return Grade(reward, "correct" if reward == 1 else "wrong")


def _as_number(value: object) -> float | None:
    """A bool, an int, a float, or a number of NumPy or torch with one element; None for anything else."""
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def verifier_spec(name: str) -> str:
    """The `module:attribute` of a verifier. name: that itself, a name in `VERIFIERS`, or one in `ENTRY_POINTS`.

    Raises UsageError for an unknown name.
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
    """The verifier at `module:attribute`: a class, built with `options` as keyword arguments, or a function.

    Raises UsageError where it cannot be imported or does not take the options.
    """
    module, _, attribute = spec.partition(":")
    try:
        target = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"verifier {spec}: {error}", "a verifier is named module:attribute") from error
    if not isinstance(target, type):
        return FunctionVerifier(target)
    try:
        return cast(Verifier, target(**(options or {})))
    except TypeError as error:
        raise UsageError(f"verifier {spec} does not take {dict(options or {})}: {error}") from error


def load_verifier(name: str, options: Mapping[str, Any] | None = None) -> Verifier:
    """The verifier of this name (or `module:attribute`), built with `options` as keyword arguments.

    >>> load_verifier("math").grade(Task(r"so \\boxed{3}", "3")).verdict
    'correct'

    Raises UsageError for an unknown name, or for options that the verifier does not take.
    """
    return build_verifier(verifier_spec(name), options)


def choose_verifier(ability: str | None, data_source: str | None, chosen: Mapping[str, str]) -> str:
    """The name of the verifier that grades a row, by its ability, else by its data source, else the default.

    chosen: verifiers that the user named, by ability or data source; "" stands for all other rows. A row that they do
    not cover goes to the verifier whose name is its ability or data source, else to `math`.

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
    """What tells one version of a verifier from another: its number in `VERSIONS`, or the hash of its module's file.

    Raises UsageError for an unknown name, or for a module that is not found.
    """
    if name in VERSIONS:
        return str(VERSIONS[name])
    module = verifier_spec(name).partition(":")[0]
    try:
        module_spec = None if module.endswith(".py") else importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise UsageError(f"verifier {name}: {error}", "a verifier is named module:attribute") from error
    if module.endswith(".py"):
        raise UsageError(
            f"verifier {name}: this is a file, not a module", f"leave out .py: {name.replace('.py:', ':')}"
        )
    if module_spec is None:
        raise UsageError(f"verifier {name}: there is no module {module}", "is its directory on PYTHONPATH?")
    origin = module_spec.origin
    return file_hash(Path(origin)) if origin and Path(origin).is_file() else module
