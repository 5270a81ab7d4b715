from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.benchmarks import start


def test_both_moments_are_measured_and_failures_are_not(tmp_path: Path) -> None:
    start.make(tmp_path)
    ready = start.seconds_to_first_shard(start.READY["verify"], tmp_path, os.environ)
    whole = start.seconds_to_end(["verify", "--out", "out", "rollouts"], tmp_path, os.environ)
    assert 0.01 < ready < whole
    assert (tmp_path / "out" / "_summary.json").exists()
    for measure in (start.seconds_to_first_shard, start.seconds_to_end):
        with pytest.raises(SystemExit, match="nowhere: no such file"):
            measure(["verify", "nowhere"], tmp_path, os.environ)


def test_the_stages_that_are_measured_are_forked() -> None:
    from primecli.catalog import COMMANDS

    assert set(start.READY) | set(start.WHOLE) <= {command.name for command in COMMANDS if command.forked}
