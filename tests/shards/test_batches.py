"""What footers say of the inputs of a whole batch: one lists them, the others refer to it, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from primecli.files import fingerprint
from primecli.shards import parquet, schema
from primecli.shards.batches import listing, reference, refers_to
from primecli.shards.parquet import FOOTER_KEY, Shard, read_footer
from tests.builders import rollouts, write_shards

SHARDS, GROUP = 12, 2
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """Shards with process rewards, such as a batch has them."""
    rows = rollouts(SHARDS, GROUP)
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.1] * len(row[schema.RESPONSE_IDS])
    return write_shards(tmp_path / "score-prm", rows, per_shard=GROUP)


@pytest.fixture
def made(scored: Path, primecli: Any) -> list[Path]:
    """The outputs of `compute-advantages`, in order."""
    return list(primecli("compute-advantages", scored, "--quiet").paths)


def contents(directory: Path) -> list[str]:
    return [read_footer(path).content for path in sorted(directory.glob("*.parquet"))]


def rewrite(path: Path, change: Change) -> None:
    """Writes a shard again with another footer and the same rows. change: changes what the footer holds."""
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    change(footer)
    kept = {name: footer[name] for name in ("fingerprint", "recipe", "counts", "provenance")}
    parquet.write_shard(path, parquet.read_table(path), **kept)


def as_before(scored: Path, path: Path) -> None:
    """Gives a shard the footer that each had when all listed their inputs."""
    paths = sorted(scored.glob("*.parquet"))

    def change(footer: dict[str, Any]) -> None:
        record = footer["provenance"][-1]
        footer["recipe"]["inputs"] = contents(scored)
        record["inputs"] = [{"path": str(one), "content": read_footer(one).content} for one in paths]
        for holder in (footer["recipe"], record):
            holder.pop("batch", None)

    rewrite(path, change)


def test_the_first_lists_all_inputs_and_the_others_their_own(scored: Path, made: list[Path]) -> None:
    inputs, all_contents = sorted(scored.glob("*.parquet")), contents(scored)
    footers = [read_footer(path) for path in made]
    first, *others = footers
    assert first.recipe is not None
    assert first.fingerprint == fingerprint(dict(first.recipe)), "the recipe with all inputs"
    assert {footer.fingerprint for footer in footers} == {first.fingerprint}
    assert first.recipe["inputs"] == all_contents
    assert [entry["path"] for entry in first.provenance[-1]["inputs"]] == [str(path) for path in inputs]
    assert "batch" not in first.recipe
    assert "batch" not in first.provenance[-1]
    refers = {"shards": SHARDS, "content": fingerprint(all_contents), "listed_in": made[0].name}
    for path, footer in zip(inputs[1:], others, strict=True):
        own = read_footer(path).content
        assert footer.recipe == {**first.recipe, "inputs": [own], "batch": refers}
        record = footer.provenance[-1]
        assert (record["inputs"], record["batch"]) == ([{"path": str(path), "content": own}], refers)


def test_a_single_shard_is_as_before(tmp_path: Path, scored: Path, primecli: Any) -> None:
    first = sorted(scored.glob("*.parquet"))[0]
    (path,) = primecli("compute-advantages", first, "--out", tmp_path / "one").paths
    footer = read_footer(path)
    assert footer.recipe is not None
    assert footer.fingerprint == fingerprint(dict(footer.recipe))
    assert footer.recipe["inputs"] == [entry["content"] for entry in footer.provenance[-1]["inputs"]]
    assert set(footer.recipe) == {"stage", "schema_version", "config", "models", "inputs", "seed"}


def test_footers_do_not_grow_with_the_batch(tmp_path: Path, primecli: Any) -> None:
    sizes = {}
    for shards in (3, 30):
        rows = rollouts(shards, 1, process_rewards=None)
        for row in rows:
            row[schema.PROCESS_REWARDS] = [0.1] * len(row[schema.RESPONSE_IDS])
        directory = write_shards(tmp_path / str(shards) / "in", rows, per_shard=1)
        paths = primecli("compute-advantages", directory, "--quiet", "--estimator", "reinforce").paths
        sizes[shards] = [len(pq.read_metadata(path).metadata[FOOTER_KEY]) for path in paths]
    assert sum(sizes[30]) / 30 < 1.25 * sum(sizes[3]) / 3
    assert max(sizes[30][1:]) < 1.05 * max(sizes[3][1:])


def test_a_rerun_takes_shards_of_either_kind(scored: Path, made: list[Path], primecli: Any) -> None:
    for path in made[3:6]:
        as_before(scored, path)
    made[0].unlink()
    made[7].unlink()
    kept = {path: path.stat().st_mtime_ns for path in made if path.exists()}
    result = primecli("compute-advantages", scored)
    assert result.paths == made
    assert f"({SHARDS - 2} of {SHARDS} shards existed already)" in result.err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "no problems found" in validated(made[0].parent, primecli)


def validated(directory: Path, primecli: Any) -> str:
    result = primecli("validate", directory, check=False)
    return "\n".join([*map(str, result.paths), result.err])


@pytest.mark.parametrize("which", ["first", "other"])
def test_other_inputs_are_refused(which: str, scored: Path, made: list[Path], primecli: Any) -> None:
    for path in made[1:] if which == "first" else made[:1]:
        path.unlink()
    last = sorted(scored.glob("*.parquet"))[-1]
    parquet.write_shard(last, parquet.read_table(last), fingerprint="f", recipe={}, counts={}, provenance=[])
    result = primecli("compute-advantages", scored, check=False)
    assert (result.code, "its input has changed" in result.line()) == (1, True)


def test_other_options_are_refused_without_a_word_about_inputs(scored: Path, made: list[Path], primecli: Any) -> None:
    made[0].unlink()
    result = primecli("compute-advantages", scored, "--process-coef", "2", check=False)
    line = result.line()
    assert (result.code, "process_coef was 1.0, is 2.0" in line, "input" in line) == (1, True, False)


def test_the_lineage_of_any_shard_has_all_inputs(scored: Path, made: list[Path], tmp_path: Path, primecli: Any) -> None:
    chains = [lineage(path, primecli) for path in (made[0], made[5], made[0].parent)]
    for (record,) in chains:
        assert [entry["content"] for entry in record["inputs"]] == contents(scored)
        assert "batch" not in record
    alone = tmp_path / "alone" / made[5].name
    alone.parent.mkdir()
    shutil.copy(made[5], alone)
    (record,) = lineage(alone, primecli)
    assert [entry["path"] for entry in record["inputs"]] == [str(scored / made[5].name)]
    assert record["batch"]["shards"] == SHARDS
    assert primecli("lineage", "--replay", made[5]).code == 0
    result = primecli("lineage", "--replay", alone, check=False)
    assert (result.code, f"its inputs are listed in {made[0].name}, which is not beside it" in result.err) == (3, True)


def lineage(path: Path, primecli: Any) -> list[dict[str, Any]]:
    text = "\n".join(map(str, primecli("lineage", "--json", path).paths))
    return list(json.loads(text)["chain"])


def test_a_shard_alone_has_no_problems_and_a_wrong_list_is_one(
    scored: Path, made: list[Path], tmp_path: Path, primecli: Any
) -> None:
    assert "no problems found" in validated(made[0].parent, primecli)
    assert "no problems found" in validated(made[5], primecli)
    alone = tmp_path / "alone" / made[5].name
    alone.parent.mkdir()
    shutil.copy(made[5], alone)
    assert "no problems found" in validated(alone, primecli)
    rewrite(made[0], lambda footer: footer["provenance"][-1]["inputs"].pop())
    assert f"its inputs should be listed in {made[0].name}, and are not" in validated(made[5], primecli)


def forget(footer: dict[str, Any]) -> None:
    del footer["recipe"]["batch"]


def claim_fewer(footer: dict[str, Any]) -> None:
    for holder in (footer["recipe"], footer["provenance"][-1]):
        holder["batch"]["shards"] -= 1


def point_elsewhere(footer: dict[str, Any]) -> None:
    for holder in (footer["recipe"], footer["provenance"][-1]):
        holder["batch"]["listed_in"] = "../score-prm/rollouts-00000-of-00012.parquet"


def name_another(footer: dict[str, Any]) -> None:
    footer["recipe"]["inputs"] = ["f" * 32]
    footer["provenance"][-1]["inputs"][0]["content"] = "f" * 32


def change_the_recipe(footer: dict[str, Any]) -> None:
    footer["recipe"]["config"]["process_coef"] = 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget, "its last provenance record names other inputs than its recipe"),
        (claim_fewer, "and are not"),
        (point_elsewhere, "and are not"),
        (name_another, "the input that it names is not among those"),
        (change_the_recipe, "the fingerprint in its footer is not that of its recipe"),
    ],
)
def test_what_does_not_fit_is_a_problem(change: Change, message: str, made: list[Path], primecli: Any) -> None:
    rewrite(made[5], change)
    assert message in validated(made[5], primecli)


def test_a_reference_is_to_the_inputs_in_their_order(scored: Path) -> None:
    shards = [Shard(path, read_footer(path)) for path in sorted(scored.glob("*.parquet"))]
    batch, hashes = reference(shards), contents(scored)
    assert refers_to(batch, hashes)
    assert not refers_to(batch, hashes[::-1])
    assert not refers_to(batch, hashes[:-1])
    assert listing(Path("a/b.parquet"), batch) == Path("a", shards[0].name)
    for name in ("", ".", "..", "/etc/passwd", "x/y"):
        assert listing(Path("a/b.parquet"), {**batch, "listed_in": name}) is None
