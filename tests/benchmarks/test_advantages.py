from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import advantages


@pytest.mark.parametrize("words", advantages.VARIANTS)
def test_every_variant_is_a_command_line(words: str) -> None:
    advantages.options_of(words.split())


def test_one_variant_is_measured(tmp_path: Path) -> None:
    (tmp_path / "score-prm").mkdir()
    advantages.make(tmp_path / "score-prm", 16, 90)
    found = advantages.run_one(tmp_path, ["--granularity", "step", "--process-baseline", "pooled"])
    assert found["seconds"] > 0
    assert found["peak_mib"] >= 0
