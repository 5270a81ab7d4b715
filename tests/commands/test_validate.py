from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli import cli, schema, shards
from tests.builders import rollouts, write_shards

Change = Callable[[list[dict[str, Any]]], None]


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    capfd.readouterr()
    code = cli.run(["validate", *map(str, arguments)])
    out, err = capfd.readouterr()
    return code, out.splitlines(), err


def graded(tiny: Path, tmp_path: Path, prompts: Path, primecli: Any) -> Path:
    """Shards as the stages make them."""
    out = tmp_path / "generate"
    primecli("generate", "--model", tiny, "--prompts", prompts, "--n", 2, "--max-tokens", 4, "--out", out)
    primecli("verify", out, "--max-errors", 100)
    return tmp_path / "verify"


def test_what_the_stages_make_is_right(
    tiny: Path, tmp_path: Path, prompts: Path, primecli: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capfd, graded(tiny, tmp_path, prompts, primecli))
    assert (code, out, err) == (0, ["24 rows in 1 shards: nothing is wrong"], "")


def test_a_changed_row_is_noticed(
    tiny: Path, tmp_path: Path, prompts: Path, primecli: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """As when somebody writes rewards of their own into a shard and keeps its footer."""
    (path,) = graded(tiny, tmp_path, prompts, primecli).glob("*.parquet")
    table = pq.ParquetFile(path).read()
    raw = pq.read_metadata(path).metadata[shards.FOOTER_KEY]
    place = table.column_names.index(schema.OUTCOME_REWARD)
    ones = pa.array([1.0] * table.num_rows, type=pa.float32())
    changed = table.set_column(place, table.schema.field(place), ones)
    for name, rows in [("same", table), ("changed", changed)]:
        (tmp_path / name).mkdir()
        target = tmp_path / name / path.name
        with pq.ParquetWriter(target, rows.schema, compression="zstd") as writer:
            writer.write_table(rows, row_group_size=shards.ROW_GROUP_ROWS)
            writer.add_key_value_metadata({shards.FOOTER_KEY: raw})
    assert run(capfd, tmp_path / "same")[0] == 0
    code, out, _ = run(capfd, tmp_path / "changed")
    assert code == 3
    assert "its rows are not those that were written" in out[0]


def change(**columns: Any) -> Change:
    def apply(rows: list[dict[str, Any]]) -> None:
        rows[5].update(columns)

    return apply


@pytest.mark.parametrize(
    ("damage", "column", "what"),
    [
        (change(rollout_logprobs=[-1.0]), "rollout_logprobs", "has 1 values for"),
        (change(rollout_logprobs=[float("nan")] * 6), "rollout_logprobs", "is nan at a token"),
        (change(rollout_logprobs=[0.5] * 6), "rollout_logprobs", "is above 0"),
        (change(response_ids=[], rollout_logprobs=[]), "response_ids", "is empty"),
        (change(prompt_ids=[-1]), "prompt_ids", "holds a negative token id"),
        (change(outcome_reward=7.0), "outcome_reward", "is 7; it is within 0 and 1"),
        (change(outcome_reward=None), "outcome_reward", "is null, and the verdict is"),
        (change(verdict="maybe"), "verdict", "is 'maybe'; it is one of correct"),
        (change(finish_reason="eos"), "finish_reason", "is 'eos'; it is one of stop, length"),
    ],
)
def test_each_problem_is_named(
    damage: Change, column: str, what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = rollouts(2, 4)
    damage(rows)
    code, out, err = run(capfd, write_shards(tmp_path / "a", rows), "--json")
    found = [found for found in json.loads("\n".join(out))["problems"] if "no primecli footer" not in found["what"]]
    assert code == 3
    assert [(problem["row"], problem["column"]) for problem in found] == [(5, column)]
    assert what in found[0]["what"]
    assert err == "primecli validate: 2 problems in 1 shards\n"


def test_groups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(3, 4)
    del rows[1]
    code, out, _ = run(capfd, write_shards(tmp_path / "a", rows))
    assert code == 3
    assert "row 0, sample_index: group p0@0 has the samples [0, 2, 3] of 4" in out[1]
    twice = write_shards(tmp_path / "b", [*rollouts(1, 2), *rollouts(1, 2)], per_shard=2)
    assert any("stands in" in line for line in run(capfd, twice)[1])


def test_types_and_missing_columns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = write_shards(tmp_path / "a", rollouts(1, 2))
    (path,) = directory.glob("*.parquet")
    table = pq.ParquetFile(path).read()
    place = table.column_names.index(schema.TEMPERATURE)
    wide = table.set_column(place, schema.TEMPERATURE, table[schema.TEMPERATURE].cast("double"))
    pq.write_table(wide.drop_columns([schema.SAMPLE_INDEX]), path)
    _, out, _ = run(capfd, directory)
    assert any("temperature: is double, and the schema says float32" in line for line in out)
    assert any("sample_index: is missing" in line for line in out)


def test_a_damaged_file_and_the_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(10, 4, verdict="maybe")
    directory = write_shards(tmp_path / "a", rows)
    _, out, err = run(capfd, directory, "--limit", 3)
    assert len(out) == 4
    assert out[-1] == "and 38 more (--limit)"
    assert err == "primecli validate: 41 problems in 1 shards\n"
    (path,) = directory.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    code, out, _ = run(capfd, directory)
    assert (code, "truncated or damaged" in out[0]) == (3, True)
