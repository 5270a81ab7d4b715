from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from credit import Judged, line_sums, results_in, summarise
from oracle import rewards_of

from primecli.shards import schema
from tests.builders import rollout, write_shards

EXAMPLE = Path(__file__).parents[2] / "examples" / "arithmetic"
PROMPT = "7 +5 *3 mod 10:"
RESPONSES = {"7+5=2\n2*3=6\n\\boxed{6}": None, "7+5=3\n3*3=9\n\\boxed{9}": 0, "7+5=2\n2*3=7\n\\boxed{7}": 1}


def shards(directory: Path, lowest: list[int]) -> Path:
    """The three responses, of each of which one line has the lowest reward."""
    rows = []
    for index, (response, line) in enumerate(zip(RESPONSES, lowest, strict=True)):
        ids = [*response.encode(), 256]
        rewards = [0.01] * len(ids)
        rewards[sum(len(text) + 1 for text in response.split("\n")[:line])] = -1.0  # the first token of the line
        columns = {
            schema.PROMPT: PROMPT,
            schema.RESPONSE: response,
            schema.RESPONSE_IDS: ids,
            schema.ROLLOUT_LOGPROBS: [-1.0] * len(ids),
            schema.PROCESS_REWARDS: rewards,
            schema.VERDICT: "correct" if RESPONSES[response] is None else "wrong",
        }
        rows.append(rollout(0, index, 3, **columns))
    return write_shards(directory, rows)


def run(place: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "credit.py"), str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})


def test_the_share_that_is_found(tmp_path: Path) -> None:
    shards(tmp_path / "1" / "score-prm", [0, 0, 0])  # of the two wrong ones the first is found
    shards(tmp_path / "2" / "score-prm", [2, 0, 1])  # both
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "credit.csv").read_text().splitlines()))
    assert [(row["iteration"], row["wrong_responses"], row["found"]) for row in rows] == [
        ("1", "2", "1"),
        ("2", "2", "2"),
        ("0", "4", "3"),
    ]
    assert float(rows[0]["chance"]) == 1 / 3
    assert "0.750" in result.stdout


def test_a_run_without_shards(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert (result.returncode, "no shards of score-prm" in result.stderr) == (1, True)


def judged(
    rewards: list[float], truth: list[float], results: list[int], lines: list[float], right: list[bool]
) -> Judged:
    marks = np.isin(np.arange(len(rewards)), results)
    return Judged(np.array(rewards), np.array(truth), marks, np.array(lines), np.array(right))


def test_what_an_oracle_gives() -> None:
    response = "7+5=3\n3*3=9\n9-1=7\n\\boxed{7}"
    ids = np.array([*response.encode(), 256])
    rewards = np.array(rewards_of("7 +5 *3 -1 mod 10:", response, len(ids)))
    right = np.array([False, True, False, True])
    one = Judged(rewards, rewards, results_in(response, len(ids)), line_sums(ids, rewards), right)
    found = summarise([one])
    assert (found["share"], found["correlation"], found["format"]) == (1.0, 1.0, 0.0)
    assert found["after"] is None  # nothing comes before the first wrong line
    assert found["format_tokens"] == pytest.approx(1 - 4 / len(ids))


def test_credit_of_right_lines_after_a_wrong_one() -> None:
    first = judged([0.0] * 4, [0.0] * 4, [0], [1.0, -3.0, -1.0, -1.0], [True, False, True, True])
    second = judged([0.0] * 2, [0.0] * 2, [0], [3.0, -1.0], [True, False])
    lines = [1.0, -3.0, -1.0, -1.0, 3.0, -1.0]
    assert summarise([first, second])["after"] == pytest.approx((-1.0 - 2.0) / np.std(lines))


def test_correlation_and_format_share() -> None:
    one = judged([0.1, -0.6, 0.0, 0.2], [0.0, -1.0, 0.0, 0.0], [1, 3], [0.0, 0.0], [False, True])
    other = judged([-0.4, 0.3], [0.0, -1.0], [1], [0.0], [False])
    found = summarise([one, other])
    rewards, truth = [0.1, -0.6, 0.0, 0.2, -0.4, 0.3], [0, -1, 0, 0, 0, -1]
    assert found["correlation"] == pytest.approx(np.corrcoef(rewards, truth)[0, 1])
    assert found["format"] == pytest.approx((0.1 + 0.0 + 0.4) / 1.6)
    assert found["format_tokens"] == 3 / 6
