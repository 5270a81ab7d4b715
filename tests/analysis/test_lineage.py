"""Chains that are made by hand; tests/commands/test_lineage.py has those of real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primecli.analysis.lineage import Difference, Origin, differences


def record(stage: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """What a stage leaves in the provenance. inputs: the shards that it read."""
    command = " ".join(["primecli", stage, *inputs])
    entries = [{"path": path} for path in inputs]
    return {"stage": stage, "command": command, "config": config, "inputs": entries, "seed": 0, "version": "1"}


def origin(*chain: dict[str, Any], path: str = "runs/1/score-prm/a.parquet") -> Origin:
    return Origin(Path(path), chain, "0123456789abcdef")


def test_a_repeated_stage_is_compared_with_its_own_repetition() -> None:
    first = origin(record("verify", timeout=1), record("filter"), record("verify", timeout=2))
    second = origin(record("verify", timeout=1), record("verify", timeout=3))
    assert list(differences(first, second)) == [
        Difference("filter", "stage", "there", "not there"),
        Difference("verify (2)", "timeout", 2, 3),
    ]
    assert list(differences(first, first)) == []


def test_models_seeds_and_versions_are_compared() -> None:
    first = origin({**record("score-prm"), "models": {"prm": "abc"}})
    second = origin({**record("score-prm"), "models": {"prm": "xyz"}, "seed": 1, "version": "2"})
    assert [(row.name, row.first, row.second) for row in differences(first, second)] == [
        ("model prm", "abc", "xyz"),
        ("seed", 0, 1),
        ("version", "1", "2"),
    ]
