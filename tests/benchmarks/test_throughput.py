from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks import throughput

TINY = "--rows 8 --tokens 9 --prompt-tokens 4 --words 50 --width 64 --layers 2 --mini-batch 4 --micro-batch-tokens 30"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primecli: Any) -> Path:
    monkeypatch.chdir(tmp_path)  # a side goes into the directory
    throughput.make(tmp_path, throughput.parse_arguments(TINY.split()))
    return tmp_path


def test_the_bare_score_is_the_stages_and_another_one_is_refused(made: Path) -> None:
    options = throughput.parse_arguments(TINY.split())
    throughput.stage_score(made, options)
    throughput.bare_score(made, options)
    throughput.check_score(made)
    found = dict(np.load(made / "bare-score.npz"))
    assert len(found["policy"]) == sum(len(ids) for ids in throughput.read(made)["response_ids"])
    found["ref"][3] += 2 * throughput.ATOL
    np.savez(made / "bare-score.npz", policy=found["policy"], ref=found["ref"])
    with pytest.raises(SystemExit, match=r"ref_logprobs.*number 3"):
        throughput.check_score(made)


def test_the_bare_steps_are_the_stages_and_others_are_refused(made: Path) -> None:
    options = throughput.parse_arguments(TINY.split())
    throughput.stage_update(made, options)
    throughput.bare_update(made, options)
    throughput.check_update(made)
    steps = json.loads((made / "bare-steps.json").read_text())
    assert len(steps) == 2
    steps[1]["grad_norm"] *= 1 + 3 * throughput.RTOL
    (made / "bare-steps.json").write_text(json.dumps(steps))
    with pytest.raises(SystemExit, match="grad_norm by step"):
        throughput.check_update(made)
