from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

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
        rewards[sum(len(text) + 1 for text in response.split("\n")[:line])] = -1.0
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
    command = [sys.executable, str(EXAMPLE / "wrong_step.py"), str(place)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})


def test_the_share_that_is_found(tmp_path: Path) -> None:
    shards(tmp_path / "1" / "score-prm", [0, 0, 0])  # of the two wrong ones the first is found
    shards(tmp_path / "2" / "score-prm", [2, 0, 1])  # both
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "wrong_step.csv").read_text().splitlines()))
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
