"""Conditions under which an audit fails: `--fail-on 'pair-accuracy<0.6'` ends it with exit code 5."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from primecli.analysis.audit import METRICS
from primecli.errors import GateError, InputError, PrimecliError, UsageError

_BOTH = "it needs a group that holds both such a response and another"
NEEDS = {
    "repeats-preferred": _BOTH,
    "truncation-preferred": _BOTH,
    "last-lowest": "it needs responses of several steps: --step-separator says where steps end, if the shards do not",
}
"""What metrics need, if it is not what most of them do."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition on a metric under which an audit fails.

    metric: a name of METRICS, such as pair-accuracy.
    sign: `<` or `>`: fails where the value is below, or above, the bound.
    bound: a finite number.
    """

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"

    def problem(self, value: float | None, where: str = "") -> PrimecliError | None:
        """The error that a value of the metric ends the audit with; None where it passes.

        where: which input the value is of, to begin the message with.
        """
        if value is None:
            return InputError(
                f"{where}{self.metric} cannot be computed, and --fail-on asks for {self}",
                NEEDS.get(self.metric, "it needs right and wrong responses in one group, and scores that vary"),
            )
        if self.sign == "<" and value < self.bound:
            return GateError(f"{where}{self.metric} is {value:.4g}, below the bound {self.bound:g}")
        if self.sign == ">" and value > self.bound:
            return GateError(f"{where}{self.metric} is {value:.4g}, above the bound {self.bound:g}")
        return None


def parse_gate(text: str) -> Gate:
    """The gate that --fail-on gives, such as `auc<0.6`. Raises UsageError where it is none."""
    match = re.fullmatch(r"\s*([\w-]+)\s*([<>])\s*(\S+)\s*", text)
    bound = _number(match[3]) if match else math.nan
    if match is None or not math.isfinite(bound):
        hint = "quote it, or the shell takes < and > for files" if re.fullmatch(r"[\w-]+", text) else None
        raise UsageError(f"--fail-on {text!r} is not METRIC<VALUE or METRIC>VALUE, with a finite number", hint)
    if match[1] not in METRICS:
        raise UsageError(f"--fail-on {text!r}: there is no metric {match[1]}", f"there are {', '.join(METRICS)}")
    return Gate(match[1], match[2], bound)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_gates(gates: Sequence[Gate], reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises GateError where a gate holds, else InputError where one cannot be told; says all of them on stderr.

    reports: what `audit_responses` gives, by the label of its input.
    """
    from primecli.pipeline.progress import say

    problems = sorted(_problems(gates, reports), key=lambda problem: isinstance(problem, GateError))
    for problem in problems[:-1]:
        say("audit", str(problem))
    if problems:
        raise problems[-1]  # a gate that holds decides the exit code


def _problems(gates: Sequence[Gate], reports: Mapping[str, Mapping[str, Any]]) -> Iterator[PrimecliError]:
    for label, report in reports.items():
        for gate in gates:
            value = report["metrics"][gate.metric]["value"]
            problem = gate.problem(value, where=f"{label}: " if len(reports) > 1 else "")
            if problem is not None:
                yield problem
