"""The README's examples run, on shards made here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from primecli.catalog import NAMES
from primecli.shards import schema
from tests.builders import rollouts, write_shards

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = "examples/arithmetic/work/rloo-process-seed0/1"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_examples_run(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, primecli: Any, capfd: Any
) -> None:
    lengths = [len(row[schema.RESPONSE_IDS]) for row in rollouts(4, 2)]
    rows = [
        {**row, schema.PROCESS_REWARDS: [0.25] * length} for row, length in zip(rollouts(4, 2), lengths, strict=True)
    ]
    monkeypatch.chdir(tmp_path)
    write_shards(Path(RUN) / "score-prm", rows, per_shard=4)
    primecli("compute-advantages", f"{RUN}/score-prm")
    exec(block, {})
    out = capfd.readouterr().out
    assert "wrong" in out or "advantage" in out


def test_every_command_of_the_readme_exists_with_its_options(capfd: Any) -> None:
    from primecli import cli

    calls = re.findall(r"primecli ([a-z-]+)((?:[^|`\n]|\\\n)*)", README.replace("\\\n", " "))
    assert len(calls) > 10
    for name, rest in calls:
        if name not in NAMES:
            continue
        assert cli.run([name, "--help"]) == 0
        page = capfd.readouterr().out
        for option in re.findall(r"(--[a-z-]+)", rest):
            assert option in page, f"primecli {name} has no {option}"
