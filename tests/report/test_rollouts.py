from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from primecli.models.token_text import Spellers
from primecli.report.payload import quantise
from primecli.report.rollouts import choose, embed
from primecli.report.runs import find_run
from primecli.shards import schema
from tests.builders import rollout
from tests.made_runs import make_byte_tokenizer, make_run, trained_rows, write_stage, write_summary
from tests.report.reading import columns, texts


def test_all_are_taken_where_there_is_room_each_where_most_is_known_of_it(tmp_path: Path) -> None:
    choice = choose([find_run(make_run(tmp_path, iterations=2))], 10_000)
    assert choice.rollouts == choice.there == 2 * 16 + 2 * 2
    reached = Counter((group.purpose, group.stage, group.dropped) for group in choice.groups)
    assert reached == {
        ("training", "compute-advantages", False): 6,
        ("training", "verify", True): 2,
        ("eval", "verify", False): 2,
    }


def test_a_limit_is_kept_with_whole_groups_evenly_over_iterations(tmp_path: Path) -> None:
    run = find_run(make_run(tmp_path, iterations=5, groups=6))
    for limit in (3, 41, 60):
        choice = choose([run], limit)
        assert choice.rollouts <= limit < choice.rollouts + 4
        assert all(len(group.rows) == (2 if group.purpose == "eval" else 4) for group in choice.groups)
        per_iteration = Counter(group.iteration for group in choice.groups if group.purpose == "training")
        if limit == 60:
            assert set(per_iteration) == {1, 2, 3, 4, 5}
            assert max(per_iteration.values()) - min(per_iteration.values()) <= 1


def test_within_an_iteration_the_groups_are_spread(tmp_path: Path) -> None:
    rows = [rollout(group, index, 2) for group in range(40) for index in range(2)]
    write_stage(tmp_path / "1" / "verify", rows)
    names = [int(group.name.split("@")[1]) for group in choose([find_run(tmp_path)], 16).groups]
    assert len(names) == 8
    gaps = np.diff([*names, 40])
    assert gaps.max() <= 2 * 40 / 8


def test_two_runs_share_the_room(tmp_path: Path) -> None:
    runs = [find_run(make_run(tmp_path / name, iterations=3)) for name in ("a", "b")]
    choice = choose(runs, 40)
    counts = [sum(len(group.rows) for group in choice.groups if group.run == run) for run in (0, 1)]
    assert abs(counts[0] - counts[1]) <= 4  # a group


def test_shards_that_were_deleted_are_not_missed(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    for stage in ("generate", "verify", "filter"):
        shutil.rmtree(tmp_path / "1" / stage)
    write_summary(tmp_path / "1" / "verify", "verify", shards=["rollouts-00000-of-00001.parquet"])
    groups = choose([find_run(tmp_path)], 100).groups
    assert {group.stage for group in groups if group.purpose == "training"} == {"compute-advantages"}


def test_a_filter_that_is_still_at_work_has_dropped_nothing(tmp_path: Path) -> None:
    write_stage(tmp_path / "1" / "verify", [rollout(1, index, 2) for index in range(2)])
    write_summary(tmp_path / "1" / "filter", "filter", status="running")
    assert [group.dropped for group in choose([find_run(tmp_path)], 100).groups] == [False]


@pytest.mark.parametrize("compress", [True, False])
def test_what_is_embedded_is_what_the_shards_hold(tmp_path: Path, compress: bool) -> None:
    make_run(tmp_path / "run", iterations=2, response="é</script>\u2028", extracted_answer=None)
    choice = choose([find_run(tmp_path / "run")], 10_000)
    found = columns(embed(choice, Spellers()).encode(compress=compress), compressed=compress)
    names = texts(found, "group.name")
    shown = {
        (names[found["group"][row]], int(found["sample"][row])): row
        for row in range(found["index"]["rows"])
        if not found["dropped"][row]
    }
    starts = {
        name: np.concatenate([[0], np.cumsum(np.where(np.isnan(found[f"{name}.scale"]), 0, found["tokens"]))]).astype(
            int
        )
        for name in (schema.PROCESS_REWARDS, schema.ADVANTAGES)
    }
    rows = trained_rows(tmp_path / "run")
    assert len(rows) == 24
    for original in rows:
        row = shown[original[schema.GROUP_ID], original[schema.SAMPLE_INDEX]]
        assert texts(found, "text")[row] == original[schema.RESPONSE]
        assert texts(found, "answer")[row] == ""
        assert found["index"]["verdicts"][found["verdict"][row]] == original[schema.VERDICT]
        assert found["outcome"][row] == original[schema.OUTCOME_REWARD]
        assert found["sum"][row] == pytest.approx(sum(original[schema.PROCESS_REWARDS]), rel=1e-6)
        for name, offsets in starts.items():
            scale = found[f"{name}.scale"][row]
            values = found[name][offsets[row] : offsets[row + 1]] * (scale / 127)
            np.testing.assert_allclose(values, original[name], atol=scale / 254 * 1.001)


def test_pieces_are_counted_as_a_page_counts(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "tokenizer")
    from tokenizers import Tokenizer

    text = "𝑥=€"  # four bytes and two UTF-16 units; three bytes and one unit
    ids = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode(text).ids
    row = rollout(1, 0, 1, response=text, response_ids=ids, rollout_logprobs=[0.0] * len(ids))
    write_stage(tmp_path / "run" / "1" / "verify", [row])
    embedding = embed(choose([find_run(tmp_path / "run")], 10), Spellers(str(tokenizer)))
    assert columns(embedding.encode(compress=True), compressed=True)["pieces"].tolist() == [0, 0, 0, 2, 1, 0, 0, 1]


def test_rows_of_any_row_group_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [rollout(group, index, 3, response=f"{group}-{index}") for group in range(9) for index in range(3)]
    directory = write_stage(tmp_path / "1" / "verify", rows)
    path = directory / "rollouts-00000-of-00001.parquet"
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(shuffled, schema=pq.read_schema(path)), path, row_group_size=4)
    embedding = embed(choose([find_run(tmp_path)], 12), Spellers())
    found = columns(embedding.encode(compress=False), compressed=False)
    names = texts(found, "group.name")
    expected = [
        f"{names[group].split('@')[1]}-{sample}" for group, sample in zip(found["group"], found["sample"], strict=True)
    ]
    assert texts(found, "text") == expected
    assert len(expected) == 12


def test_zeros_have_no_scale_and_no_noise() -> None:
    values, scale = quantise(np.zeros(3, dtype=np.float32))
    assert (values.tolist(), float(scale)) == ([0, 0, 0], 0.0)
