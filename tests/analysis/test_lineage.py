"""Chains that are made by hand; tests/commands/test_lineage.py has those of real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli.analysis.lineage import Difference, Origin, differences, replay_script
from primecli.errors import InputError


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


def test_stages_that_follow_each_other_are_piped() -> None:
    chain = (
        record("generate"),
        record("verify", "runs/1/generate/a.parquet"),
        record("score-prm", "runs/1/verify/a.parquet"),
    )
    assert replay_script(origin(*chain)).splitlines() == [
        "set -euo pipefail",
        "primecli generate \\",
        "  | primecli verify \\",
        "  | primecli score-prm > /dev/null",
    ]


def test_a_stage_that_read_several_directories_cannot_be_replayed() -> None:
    chain = (record("generate"), record("verify", "runs/1/generate/a.parquet", "runs/2/generate/b.parquet"))
    with pytest.raises(InputError, match="read 2 directories"):
        replay_script(origin(*chain))
