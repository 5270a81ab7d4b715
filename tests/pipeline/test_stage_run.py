"""What all stages that write shards guarantee, tested with the cheapest ones: verify and filter."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from primecli.files import LOCK_NAME, lock
from primecli.pipeline import progress
from primecli.pipeline.summary import Summary
from primecli.shards import parquet, schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "runs" / "generate", rollouts(4, 2), per_shard=2)


def test_output_goes_next_to_the_input_with_the_same_names(generated: Path, primecli: Any) -> None:
    result = primecli("verify", generated)
    expected = generated.parent / "verify"
    assert result.paths == [expected / path.name for path in sorted(generated.glob("*.parquet"))]
    assert [row[schema.VERDICT] for row in read_rows(expected)] == ["wrong", "correct", "correct", "wrong"] * 2
    assert summary(expected)["metrics"]["accuracy"] == 0.5


def test_files_and_globs_work_too(generated: Path, tmp_path: Path, primecli: Any) -> None:
    one = sorted(generated.glob("*.parquet"))[0]
    assert len(primecli("verify", one, "--out", tmp_path / "a").paths) == 1
    assert len(primecli("verify", f"{generated}/*.parquet", "--out", tmp_path / "b").paths) == 4


def test_progress_is_of_the_shards_that_are_named(
    generated: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    first, second, *_ = sorted(generated.glob("*.parquet"))
    for given, total in (([first], 2), ([first, second], 4), ([generated], 8)):
        err = primecli("verify", *given, "--force").err
        assert f" {total} of {total} rollouts, " in err
        assert {words.split()[0] for words in err.split(" of ")[1:]} == {str(total)}


def test_progress_is_of_all_shards_where_one_comes_through_the_pipe(
    generated: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    (tmp_path / "stdin").write_text(f"{min(generated.glob('*.parquet'))}\n")
    with open(tmp_path / "stdin") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert " 2 of 8 rollouts, " in primecli("verify", "-", "--partial").err


def test_the_provenance_chain_grows(generated: Path, primecli: Any) -> None:
    primecli("verify", generated)
    primecli("filter", generated.parent / "verify", "--accuracy", 0, 1)
    for path in (generated.parent / "filter").glob("*.parquet"):
        chain = parquet.read_footer(path).provenance
        assert [record["stage"] for record in chain] == ["verify", "filter"]
        verified = parquet.read_footer(generated.parent / "verify" / path.name)
        assert chain[1]["inputs"][0]["content"] == verified.content
        assert chain[1]["config"]["accuracy"] == [0, 1]
        assert {"version", "command", "started", "seconds", "seed", "models", "fingerprint"} <= set(chain[1])


def test_a_changed_input_is_not_skipped(generated: Path, primecli: Any) -> None:
    primecli("verify", generated)
    write_shards(generated, rollouts(4, 2, response="7"), per_shard=2)
    refused = primecli("verify", generated, check=False)
    assert (refused.code, "its input has changed" in refused.line()) == (1, True)
    primecli("verify", generated, "--force")
    assert summary(generated.parent / "verify")["metrics"]["accuracy"] == 1


def test_metrics_cover_the_whole_directory_after_a_rerun_too(generated: Path, primecli: Any) -> None:
    first = primecli("verify", generated)
    whole = summary(generated.parent / "verify")["metrics"]
    first.paths[1].unlink()
    primecli("verify", generated)
    assert summary(generated.parent / "verify")["metrics"] == whole


def test_a_rerun_says_what_existed_and_keeps_the_timings(generated: Path, primecli: Any) -> None:
    primecli("verify", generated)
    before = summary(generated.parent / "verify")
    assert "(4 of 4 shards existed already)" in primecli("verify", generated).err
    assert summary(generated.parent / "verify") == before


def test_shards_of_another_run_do_not_stay_among_the_new_ones(generated: Path, primecli: Any) -> None:
    primecli("verify", generated)
    stray = generated.parent / "verify" / "rollouts-00009-of-00010.parquet"
    shutil.copy(generated.parent / "verify" / "rollouts-00000-of-00004.parquet", stray)
    refused = primecli("verify", generated, check=False)
    assert (refused.code, stray.name in refused.line()) == (1, True)
    primecli("verify", generated, "--force")
    assert not stray.exists()


def test_files_of_other_tools_are_never_removed(generated: Path, tmp_path: Path, primecli: Any) -> None:
    for name in ("train.parquet", "rollouts-00009-of-00010.parquet"):
        (tmp_path / "out").mkdir(exist_ok=True)
        pq.write_table(pa.table({"mine": [1]}), tmp_path / "out" / name)
        primecli("verify", generated, "--out", tmp_path / "out", "--force")
        assert pq.read_table(tmp_path / "out" / name).column_names == ["mine"]


def test_a_refused_rerun_leaves_the_summary_of_the_complete_run(generated: Path, primecli: Any) -> None:
    primecli("verify", generated)
    before = summary(generated.parent / "verify")
    assert primecli("verify", generated, "--timeout", 9, check=False).code == 1
    assert summary(generated.parent / "verify") == before
    assert len(primecli("filter", generated.parent / "verify", "--accuracy", 0, 1).paths) == 4


def test_partial_accepts_a_killed_run_and_counts_its_rows(generated: Path, primecli: Any) -> None:
    Summary("generate", "running").write(generated)
    result = primecli("verify", generated, check=False)
    assert (result.code, "generate was killed after 4 shards" in result.line()) == (3, True)
    assert len(primecli("verify", generated, "--partial").paths) == 4


def test_no_input_shard_may_be_in_the_output_directory(generated: Path, tmp_path: Path, primecli: Any) -> None:
    other = tmp_path / "other"
    other.mkdir()
    first, *rest = sorted(generated.glob("*.parquet"))
    shutil.move(first, other / first.name)
    before = rest[0].read_bytes()
    result = primecli("verify", other / first.name, *rest, "--out", generated, "--force", check=False)
    assert (result.code, "holds the input" in result.err) == (2, True)
    assert rest[0].read_bytes() == before


def test_the_sibling_of_a_relative_path(generated: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(generated)
    assert primecli("verify", *sorted(path.name for path in generated.glob("*.parquet"))).paths[0].parent == Path(
        "../verify"
    )


def test_a_damaged_output_is_made_again(generated: Path, primecli: Any) -> None:
    first = primecli("verify", generated)
    first.paths[1].write_bytes(first.paths[1].read_bytes()[:-9])
    again = primecli("verify", generated)
    assert "making it again" in again.err
    assert len(read_rows(generated.parent / "verify")) == 8


@pytest.mark.parametrize("counts", [{"correct": 2.0}, {"correct": 1.0, "reward": 1e308}])
def test_an_output_with_other_counts_is_made_again(generated: Path, primecli: Any, counts: dict[str, float]) -> None:
    primecli("verify", generated)
    before = summary(generated.parent / "verify")["metrics"]
    path = sorted((generated.parent / "verify").glob("*.parquet"))[1]
    footer = parquet.read_footer(path)
    parquet.write_shard(
        path,
        parquet.read_table(path),
        fingerprint=str(footer.fingerprint),
        recipe=dict(footer.recipe or {}),
        counts=counts,
        provenance=footer.provenance,
    )
    result = primecli("verify", generated)
    assert summary(generated.parent / "verify")["metrics"] == before
    assert "its footer are not those of verify: making it again" in result.err


def test_a_duplicate_column_is_refused(generated: Path, primecli: Any) -> None:
    first = sorted(generated.glob("*.parquet"))[0]
    table = pq.read_table(first)
    pq.write_table(table.append_column(schema.RESPONSE, table[schema.RESPONSE]), first)
    result = primecli("verify", generated, check=False)
    assert (result.code, "has two columns named response" in result.line()) == (3, True)


def test_a_producer_that_failed_stops_the_stage(generated: Path, primecli: Any) -> None:
    names = [path.name for path in sorted(generated.glob("*.parquet"))]
    Summary("generate", "failed", shards=names, error="out of memory").write(generated)
    result = primecli("verify", generated, check=False)
    assert result.code == 3
    assert "generate failed after 4 shards: out of memory" in result.line()
    assert not list(generated.parent.glob("verify/*.parquet"))
    assert len(primecli("verify", generated, "--partial").paths) == 4


def test_two_writers(generated: Path, primecli: Any) -> None:
    out = generated.parent / "verify"
    out.mkdir()
    with lock(out / LOCK_NAME, str(out)):
        result = primecli("verify", generated, check=False)
    assert (result.code, f"{out} is being written by primecli, process" in result.line()) == (1, True)
    assert not list(out.glob("*.parquet"))


def empty(directory: Path) -> None:
    first = sorted(directory.glob("*.parquet"))[0]
    pq.write_table(pq.read_table(first).slice(0, 0), first)


def truncated(directory: Path) -> None:
    first = sorted(directory.glob("*.parquet"))[0]
    first.write_bytes(first.read_bytes()[:-30])


def no_parquet(directory: Path) -> None:
    sorted(directory.glob("*.parquet"))[0].write_text("hello")


def no_column(directory: Path) -> None:
    first = sorted(directory.glob("*.parquet"))[0]
    pq.write_table(pq.read_table(first).drop_columns([schema.RESPONSE]), first)


def cut_group(directory: Path) -> None:
    first = sorted(directory.glob("*.parquet"))[0]
    pq.write_table(pq.read_table(first).slice(0, 1), first)


def wrong_type(directory: Path) -> None:
    first = sorted(directory.glob("*.parquet"))[0]
    table = pq.read_table(first)
    place = table.schema.get_field_index(schema.SAMPLE_INDEX)
    pq.write_table(table.set_column(place, schema.SAMPLE_INDEX, pa.array([["x"], ["y"]])), first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (empty, "the shard has no rows"),
        (truncated, "a truncated or damaged Parquet file"),
        (no_parquet, "not a Parquet file"),
        (no_column, "lacks the column response (made by `primecli generate`)"),
        (cut_group, "group p0@0 is incomplete: it has 1 of 2 samples"),
        (wrong_type, "sample_index is list"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_3(damage: Any, message: str, generated: Path, primecli: Any) -> None:
    damage(generated)
    result = primecli("verify", generated, check=False)
    assert result.code == 3
    assert message in result.line()
    assert str(generated / "rollouts-00000-of-00004.parquet") in result.line()
    assert not list((generated.parent / "verify").glob("rollouts-*"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [("nowhere", "nowhere: no such file or directory"), ("nowhere/*.parquet", "no file matches"), (".", "no shards")],
)
def test_missing_input_is_named(
    argument: str, message: str, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = primecli("verify", argument, check=False)
    assert (result.code, message in result.line()) == (3, True)


def test_no_input_at_all_is_a_usage_error(primecli: Any) -> None:
    result = primecli("verify", check=False)
    assert (result.code, "no shards given" in result.line()) == (2, True)


def test_the_output_may_not_be_the_input(generated: Path, primecli: Any) -> None:
    result = primecli("verify", generated, "--out", generated, check=False)
    assert (result.code, "holds the input" in result.line()) == (2, True)


def test_an_output_directory_that_cannot_be_created(generated: Path, tmp_path: Path, primecli: Any) -> None:
    (tmp_path / "file").touch()
    result = primecli("verify", generated, "--out", tmp_path / "file" / "out", check=False)
    assert (result.code, "cannot make the directory" in result.line()) == (1, True)


def test_a_read_only_output_directory(generated: Path, mounted: Any, primecli: Any) -> None:
    place = mounted("size=1m,ro")
    result = primecli("verify", generated, "--out", place / "out", check=False)
    assert (result.code, "Read-only file system" in result.line()) == (1, True)
    result = primecli("verify", generated, "--out", place, check=False)
    assert (result.code, "Read-only file system" in result.line()) == (1, True)


def test_a_full_disk_loses_nothing_and_a_rerun_continues(
    generated: Path, tmp_path: Path, mounted: Any, primecli: Any
) -> None:
    place = mounted("size=32k")
    result = primecli("verify", generated, "--out", place, check=False)
    assert result.code == 1
    assert "No space left on device" in result.line()
    kept = sorted(path.name for path in place.glob("*.parquet"))
    assert 0 < len(kept) < 4
    assert not list(place.glob(".tmp-*"))
    for name in kept:
        assert pq.read_table(place / name).num_rows == 2
    subprocess.run(["mount", "-o", "remount,size=1m", str(place)], check=True)
    assert len(primecli("verify", generated, "--out", place).paths) == 4
    primecli("verify", generated, "--out", tmp_path / "plain")
    assert read_rows(place) == read_rows(tmp_path / "plain")


def test_rows_that_cannot_be_graded_are_quarantined(tmp_path: Path, primecli: Any) -> None:
    rows = rollouts(2, 2)
    rows[3][schema.GROUND_TRUTH] = None
    directory = write_shards(tmp_path / "generate", rows)
    result = primecli("verify", directory, "--quiet", check=False)
    assert result.code == 4
    assert "1 rows could not be graded, and --max-errors allows 0" in result.line()
    graded = read_rows(tmp_path / "verify")
    assert (graded[3][schema.OUTCOME_REWARD], graded[3][schema.VERDICT]) == (None, "error")
    assert graded[3][schema.VERIFIER_DETAIL]
    found = summary(tmp_path / "verify")
    assert (found["status"], found["metrics"]["error"]) == ("complete", 1)
    assert primecli("verify", directory, "--max-errors", 1).code == 0
