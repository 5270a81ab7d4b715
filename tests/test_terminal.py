"""No command lets what a file holds steer the terminal: not its ids, its commands, its names, nor messages about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.shards import parquet, schema
from tests.builders import rollouts, write_shards
from tests.made_runs import write_summary

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eevil\x9b31m\r\u2028"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose names, texts and records hold escapes."""
    place = tmp_path_factory.mktemp("hostile") / f"a{HOSTILE}"
    texts = (schema.PROMPT, schema.DATA_SOURCE, schema.GROUND_TRUTH, schema.RESPONSE, schema.EXTRACTED_ANSWER)
    rows = rollouts(4, 2, **dict.fromkeys(texts, HOSTILE))
    for row in rows:
        rewards = [0.5 if row[schema.OUTCOME_REWARD] else 0.7] * len(row[schema.RESPONSE_IDS])
        row |= {schema.GROUP_ID: row[schema.GROUP_ID] + HOSTILE, schema.PROCESS_REWARDS: rewards}
    path = next(write_shards(place / "1" / "score-prm", rows).glob("*.parquet"))
    record = {
        "stage": HOSTILE,
        "command": f"primecli {HOSTILE}",
        "config": {HOSTILE: HOSTILE, "model": HOSTILE},
        "models": {"policy": HOSTILE},
        "inputs": [{"path": f"{HOSTILE}/b", "content": HOSTILE}],
        "elsewhere": [HOSTILE],
        "started": HOSTILE,
        "fingerprint": HOSTILE,
    }
    chain = [record, {**record, "stage": "verify"}]
    table = parquet.read_table(path)
    parquet.write_shard(path, table, fingerprint=HOSTILE, recipe={"stage": HOSTILE}, counts={}, provenance=chain)
    write_summary(place / "1" / "score-prm", "score-prm")
    write_summary(place / "2" / "verify", "verify", status="failed", error=HOSTILE)
    (place / "3" / HOSTILE).mkdir(parents=True)
    (place / "3" / HOSTILE / "_summary.json").write_text("{")
    (place / "o.toml").write_text('"\\u001b[31m" = 1\n')
    return place


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats", "1/score-prm"],
        ["inspect", "1/score-prm", "--limit", "2"],
        ["inspect", "1/score-prm", "--json"],
        ["inspect", "1/score-prm", "--group", HOSTILE],
        ["audit", "1/score-prm"],
        ["audit", "1/score-prm", "1/score-prm/."],
        ["validate", "1/score-prm"],
        ["validate", "1/score-prm", "--json"],
        ["lineage", "1/score-prm"],
        ["lineage", "1/score-prm", "--json"],
        ["lineage", "1/score-prm", "--replay"],
        ["query", "1/score-prm", "SELECT prompt, group_id FROM rollouts"],
        ["query", "1/score-prm", "SELECT prompt FROM rollouts", "--format", "json"],
        ["query", "1/score-prm", f'SELECT "{HOSTILE}" FROM rollouts'],
        ["report", ".", "--format", "md"],
        ["watch", ".", "--once"],
        ["watch", "."],
        ["filter", "1/score-prm", "--accuracy", "0", "1", "--out", "1/score-prm"],
        ["stats", "1/score-prm", "--config", "o.toml"],
        ["stats", HOSTILE],
        [HOSTILE],
        ["stats", f"--{HOSTILE}"],
    ],
)
def test_nothing_steers_the_terminal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str]
) -> None:
    monkeypatch.chdir(place)
    places = [str(place / word) if word.startswith("1/") or word == "." else word for word in arguments]
    cli.run(places)
    text = "".join(capfd.readouterr())
    assert text.strip()
    assert "a bug" not in text
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []
