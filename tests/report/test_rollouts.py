from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from primecli.models.token_text import Spellers
from primecli.report.rollouts import choose, embed
from primecli.report.runs import find_run
from primecli.shards import schema
from tests.builders import rollout
from tests.made_runs import make_byte_tokenizer, make_run, trained_rows, write_stage, write_summary
from tests.report.reading import columns, texts


def test_within_the_limit_all_rollouts_are_taken_from_their_latest_stage(tmp_path: Path) -> None:
    choice = choose([find_run(make_run(tmp_path, iterations=2))], 10_000)
    assert choice.rollouts == choice.available == 2 * 16 + 2 * 2
    taken = Counter((group.purpose, group.stage, group.dropped) for group in choice.groups)
    assert taken == {
        ("training", "compute-advantages", False): 6,
        ("training", "verify", True): 2,
        ("eval", "verify", False): 2,
    }


def test_under_a_limit_whole_groups_are_taken_evenly_from_iterations(tmp_path: Path) -> None:
    run = find_run(make_run(tmp_path, iterations=5, groups=6))
    for limit in (3, 41, 60):
        choice = choose([run], limit)
        assert choice.rollouts <= limit < choice.rollouts + 4
        assert all(len(group.rows) == (2 if group.purpose == "eval" else 4) for group in choice.groups)
        per_iteration = Counter(group.iteration for group in choice.groups if group.purpose == "training")
        if limit == 60:
            assert set(per_iteration) == {1, 2, 3, 4, 5}
            assert max(per_iteration.values()) - min(per_iteration.values()) <= 1


def test_groups_are_spread_over_an_iteration(tmp_path: Path) -> None:
    rows = [rollout(group, index, 2) for group in range(40) for index in range(2)]
    write_stage(tmp_path / "1" / "verify", rows)
    names = [int(group.name.split("@")[1]) for group in choose([find_run(tmp_path)], 16).groups]
    assert len(names) == 8
    gaps = np.diff([*names, 40])
    assert gaps.max() <= 2 * 40 / 8


def test_two_runs_share_the_limit(tmp_path: Path) -> None:
    runs = [find_run(make_run(tmp_path / name, iterations=3)) for name in ("a", "b")]
    choice = choose(runs, 40)
    counts = [sum(len(group.rows) for group in choice.groups if group.run == run) for run in (0, 1)]
    assert abs(counts[0] - counts[1]) <= 4  # a group


def test_deleted_shards_are_skipped(tmp_path: Path) -> None:
    make_run(tmp_path, iterations=1)
    for stage in ("generate", "verify", "filter"):
        shutil.rmtree(tmp_path / "1" / stage)
    write_summary(tmp_path / "1" / "verify", "verify", shards=["rollouts-00000-of-00001.parquet"])
    groups = choose([find_run(tmp_path)], 100).groups
    assert {group.stage for group in groups if group.purpose == "training"} == {"compute-advantages"}


def test_a_filter_that_is_still_running_has_dropped_nothing(tmp_path: Path) -> None:
    write_stage(tmp_path / "1" / "verify", [rollout(1, index, 2) for index in range(2)])
    write_summary(tmp_path / "1" / "filter", "filter", status="running")
    assert [group.dropped for group in choose([find_run(tmp_path)], 100).groups] == [False]


@pytest.mark.parametrize("compress", [True, False])
def test_the_page_holds_what_the_shards_hold(tmp_path: Path, compress: bool) -> None:
    make_run(tmp_path / "run", iterations=2, response="é</script>\u2028", extracted_answer=None)
    choice = choose([find_run(tmp_path / "run")], 10_000)
    page = columns(embed(choice, Spellers()).encode(compress=compress), compressed=compress)
    names = texts(page, "group.name")
    shown = {
        (names[page["group"][row]], int(page["sample"][row])): row
        for row in range(page["index"]["rows"])
        if not page["dropped"][row]
    }
    starts = {
        name: np.concatenate([[0], np.cumsum(np.where(np.isnan(page[f"{name}.scale"]), 0, page["tokens"]))]).astype(int)
        for name in (schema.PROCESS_REWARDS, schema.ADVANTAGES)
    }
    rows = trained_rows(tmp_path / "run")
    assert len(rows) == 24
    for original in rows:
        row = shown[original[schema.GROUP_ID], original[schema.SAMPLE_INDEX]]
        assert texts(page, "text")[row] == original[schema.RESPONSE]
        assert texts(page, "answer")[row] == ""
        assert page["index"]["verdicts"][page["verdict"][row]] == original[schema.VERDICT]
        assert page["outcome"][row] == original[schema.OUTCOME_REWARD]
        assert page["sum"][row] == pytest.approx(sum(original[schema.PROCESS_REWARDS]), rel=1e-6)
        for name, offsets in starts.items():
            scale = page[f"{name}.scale"][row]
            values = page[name][offsets[row] : offsets[row + 1]] * (scale / 127)
            np.testing.assert_allclose(values, original[name], atol=scale / 254 * 1.001)


def test_token_texts_are_measured_in_utf16_units(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer(tmp_path / "tokenizer")
    from tokenizers import Tokenizer

    text = "𝑥=€"  # four bytes and two UTF-16 units; three bytes and one unit
    ids = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode(text).ids
    row = rollout(1, 0, 1, response=text, response_ids=ids, rollout_logprobs=[0.0] * len(ids))
    write_stage(tmp_path / "run" / "1" / "verify", [row])
    embedding = embed(choose([find_run(tmp_path / "run")], 10), Spellers(str(tokenizer)))
    assert columns(embedding.encode(compress=True), compressed=True)["pieces"].tolist() == [0, 0, 0, 2, 1, 0, 0, 1]


def test_rows_are_read_from_every_row_group(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [rollout(group, index, 3, response=f"{group}-{index}") for group in range(9) for index in range(3)]
    directory = write_stage(tmp_path / "1" / "verify", rows)
    path = directory / "rollouts-00000-of-00001.parquet"
    shuffled = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(shuffled, schema=pq.read_schema(path)), path, row_group_size=4)
    embedding = embed(choose([find_run(tmp_path)], 12), Spellers())
    page = columns(embedding.encode(compress=False), compressed=False)
    names = texts(page, "group.name")
    expected = [
        f"{names[group].split('@')[1]}-{sample}" for group, sample in zip(page["group"], page["sample"], strict=True)
    ]
    assert texts(page, "text") == expected
    assert len(expected) == 12
