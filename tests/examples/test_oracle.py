"""The example's stage that knows the wrong steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from oracle import rewards_of

from primecli.shards import schema
from tests.builders import rollout, write_shards

SCRIPT = Path(__file__).parents[2] / "examples" / "arithmetic" / "oracle.py"
PROMPT = "7 +5 *3 mod 10:"


@pytest.mark.parametrize(
    ("response", "blamed"),
    [
        ("7+5=2\n2*3=6\n\\boxed{6}", ""),
        ("7+5=3\n3*3=9\n\\boxed{9}", "3"),
        ("7+5=2\n2*3=16\n\\boxed{16}", "6"),  # the last digit of a result
        ("7+5=2\n2*3=6\n\\boxed{7}", "}"),
        ("7+5=2\nso\n\\boxed{6}", "o}"),  # after a line that cannot be read, the next is not right either
        ("7+5=2", "<end>"),  # what is missing is blamed on the end
    ],
)
def test_which_characters_are_blamed(response: str, blamed: str) -> None:
    rewards = rewards_of(PROMPT, response, len(response) + 1)
    characters = [*response, "<end>"]
    assert "".join(characters[place] for place, reward in enumerate(rewards) if reward) == blamed
    assert set(rewards) <= {0.0, -1.0}


def test_it_is_a_stage(tmp_path: Path) -> None:
    response = "7+5=3\n3*3=9\n\\boxed{9}"
    ids = [*response.encode(), 256]
    columns = {
        schema.PROMPT: PROMPT,
        schema.RESPONSE: response,
        schema.RESPONSE_IDS: ids,
        schema.ROLLOUT_LOGPROBS: [-1.0] * len(ids),
    }
    write_shards(tmp_path / "filter", [rollout(0, index, 2, **columns) for index in range(2)])
    for given in ([], ["--out", str(tmp_path / "x" / "y")]):
        paths = "\n".join(map(str, (tmp_path / "filter").glob("*.parquet")))
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *given], input=paths + "\n", capture_output=True, text=True, check=True
        )
        (path,) = done.stdout.split()
        assert Path(path).parent == (tmp_path / "x" / "y" if given else tmp_path / "oracle")
        rewards = pq.read_table(path)[schema.PROCESS_REWARDS].to_pylist()
        assert rewards == [rewards_of(PROMPT, response, len(ids))] * 2
    failed = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path / "none")], capture_output=True, text=True)
    assert failed.returncode == 3
    assert failed.stderr.startswith("oracle.py: ")
    assert failed.stderr.count("\n") == 1
