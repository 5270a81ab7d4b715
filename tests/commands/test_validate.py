from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli import cli
from primecli.shards import parquet, schema
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


def test_shards_of_the_stages_have_no_problems(
    tiny: Path, tmp_path: Path, prompts: Path, primecli: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capfd, graded(tiny, tmp_path, prompts, primecli))
    assert (code, out, err) == (0, ["24 rows in 1 shard: no problems found"], "")


def test_a_changed_row_is_noticed(
    tiny: Path, tmp_path: Path, prompts: Path, primecli: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """As if somebody had replaced the rewards in a shard and kept its footer."""
    (path,) = graded(tiny, tmp_path, prompts, primecli).glob("*.parquet")
    table = pq.ParquetFile(path).read()
    raw = pq.read_metadata(path).metadata[parquet.FOOTER_KEY]
    place = table.column_names.index(schema.OUTCOME_REWARD)
    ones = pa.array([1.0] * table.num_rows, type=pa.float32())
    changed = table.set_column(place, table.schema.field(place), ones)
    for name, rows in [("same", table), ("changed", changed)]:
        (tmp_path / name).mkdir()
        target = tmp_path / name / path.name
        with pq.ParquetWriter(target, rows.schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(rows, row_group_size=parquet.ROW_GROUP_ROWS)
            writer.add_key_value_metadata({parquet.FOOTER_KEY: raw})
    assert run(capfd, tmp_path / "same")[0] == 0
    code, out, _ = run(capfd, tmp_path / "changed")
    assert code == 3
    assert "its rows were changed after they were written" in out[0]


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
        (change(outcome_reward=7.0), "outcome_reward", "is 7; it must be within 0 and 1"),
        (change(outcome_reward=None), "outcome_reward", "is null, though the verdict is"),
        (change(verdict="maybe"), "verdict", "is 'maybe'; it must be one of correct"),
        (change(finish_reason="eos"), "finish_reason", "is 'eos'; it must be one of stop, length"),
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
    assert err == "primecli validate: 2 problems in 8 rows in 1 shard\n"


def rewritten(source: Path, target: Path, column: str, values: pa.Array) -> Path:
    """A shard with a column replaced and its hash taken again, as a tool that knows the format would do."""
    table = pq.ParquetFile(source).read().replace_schema_metadata(None)
    place = table.column_names.index(column)
    footer = parquet.read_footer(source)
    target.mkdir()
    parquet.write_shard(
        target / source.name,
        table.set_column(place, table.schema.field(place), values),
        fingerprint=str(footer.fingerprint),
        recipe=dict(footer.recipe or {}),
        counts=dict(footer.counts or {}),
        provenance=footer.provenance,
    )
    return target


def test_rows_that_contradict_the_provenance(
    tiny: Path, other: Path, tmp_path: Path, prompts: Path, primecli: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    graded(tiny, tmp_path, prompts, primecli)
    primecli("score-prm", "--prm", other, "--ref", tiny, tmp_path / "verify")
    (path,) = (tmp_path / "score-prm").glob("*.parquet")
    table = pq.ParquetFile(path).read()
    assert run(capfd, tmp_path / "score-prm")[0] == 0
    policies = table[schema.POLICY_FINGERPRINT].to_pylist()
    policies[3] = "another"
    place = rewritten(path, tmp_path / "policy", schema.POLICY_FINGERPRINT, pa.array(policies))
    (line,) = run(capfd, place)[1]
    assert "row 3, policy_fingerprint: is not " in line
    rewards = table[schema.PROCESS_REWARDS].to_pylist()
    rewards[5][1] += 0.01
    kind = schema.BY_NAME[schema.PROCESS_REWARDS].arrow_type()
    place = rewritten(path, tmp_path / "rewards", schema.PROCESS_REWARDS, pa.array(rewards, kind))
    (line,) = run(capfd, place)[1]
    assert "row 5, process_rewards: is not 0.05 * (prm_logprobs - ref_logprobs)" in line


def test_a_footer_of_another_shard(
    tiny: Path, tmp_path: Path, prompts: Path, primecli: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    (path,) = graded(tiny, tmp_path, prompts, primecli).glob("*.parquet")
    footer = parquet.read_footer(path)
    recipe = {**(footer.recipe or {}), "seed": 99}
    broken = dict(footer.provenance[0])
    del broken["config"]
    parquet.write_shard(
        path,
        pq.ParquetFile(path).read().replace_schema_metadata(None),
        fingerprint=str(footer.fingerprint),
        recipe=recipe,
        counts={"groups": 3},
        provenance=[broken],
    )
    lines = "\n".join(run(capfd, tmp_path / "verify")[1])
    assert "link 1 of its provenance lacks config" in lines
    assert "last provenance record has another fingerprint" in lines
    assert "the fingerprint in its footer is not that of its recipe" in lines
    assert "has 12 groups, and its footer says 3" in lines


def test_several_directories_and_one_that_is_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        write_shards(tmp_path / name, rollouts(1, 2))
    (path,) = (tmp_path / "b").glob("*.parquet")
    path.write_bytes(b"PAR1")
    code, out, err = run(capfd, tmp_path / "?")
    assert (code, len(out)) == (3, 3)
    assert f"{path}: a truncated or damaged Parquet file" in out
    assert err == "primecli validate: 3 problems in 4 rows in 3 shards\n"


def test_groups(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = rollouts(3, 4)
    del rows[1]
    code, out, _ = run(capfd, write_shards(tmp_path / "a", rows))
    assert code == 3
    assert "row 0, sample_index: group p0@0 has the samples [0, 2, 3] of 4" in out[1]
    twice = write_shards(tmp_path / "b", [*rollouts(1, 2), *rollouts(1, 2)], per_shard=2)
    assert any("is also in" in line for line in run(capfd, twice)[1])


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
    assert err == "primecli validate: 41 problems in 40 rows in 1 shard\n"
    (path,) = directory.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    code, out, _ = run(capfd, directory)
    assert (code, "truncated or damaged" in out[0]) == (3, True)
