from __future__ import annotations

from typing import Any

import pytest

from primecli.analysis.audit_gates import Gate, check_gates, parse_gate
from primecli.errors import GateError, InputError, PrimecliError, UsageError


def test_a_gate_is_a_metric_a_sign_and_a_bound() -> None:
    assert parse_gate(" pair-accuracy < 6e-1 ") == Gate("pair-accuracy", "<", 0.6)
    assert str(parse_gate("repeats>0.10")) == "repeats>0.1"
    for text in ("auc", "auc=1", "auc<=1", "auc<", "auc<x", "auc<inf", "unknown<1"):
        with pytest.raises(UsageError, match="--fail-on"):
            parse_gate(text)


@pytest.mark.parametrize(
    ("gate", "value", "error"),
    [
        ("auc<0.6", 0.5, GateError),
        ("auc<0.6", 0.6, None),  # the bound itself passes
        ("auc<0.6", 0.7, None),
        ("auc>0.6", 0.7, GateError),
        ("auc>0.6", 0.6, None),
        ("auc>0.6", None, InputError),
    ],
)
def test_what_a_value_ends_the_audit_with(gate: str, value: float | None, error: type[PrimecliError] | None) -> None:
    assert type(parse_gate(gate).problem(value)) is (error or type(None))


def test_a_condition_that_holds_decides_the_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    reports: dict[str, dict[str, Any]] = {
        "runs/1": {"metrics": {"auc": {"value": 0.5}, "repeats": {"value": 0.0}}},
        "runs/2": {"metrics": {"auc": {"value": None}, "repeats": {"value": 0.0}}},
    }
    with pytest.raises(GateError, match=r"runs/1: auc is 0\.5, below the bound 0\.6"):
        check_gates([parse_gate("auc<0.6"), parse_gate("repeats>0")], reports)
    assert capfd.readouterr().err.startswith("primecli audit: runs/2: auc cannot be computed")
    check_gates([parse_gate("repeats>0")], reports)
