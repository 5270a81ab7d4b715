from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.models.identity import model_fingerprint
from primecli.shards.parquet import read_footer
from tests.builders import rollouts, write_shards
from tests.conftest import shell

PIPELINE = """
primecli generate --model {tiny} --prompts prompts.jsonl --n 2 --max-tokens 4 --prompts-per-shard 6 \
    --out runs/1/generate \
  | primecli verify --max-errors 100 \
  | primecli filter --accuracy 0 1 --allow-truncated > /dev/null
primecli update-prm --prm {tiny} --ref {tiny} --checkpoint ckpt/prm/1 runs/1/filter \
  | primecli score-prm --prm ckpt/prm/1 --ref {tiny} \
  | primecli compute-advantages \
  | primecli update-policy --policy {tiny} --checkpoint ckpt/policy/1 --lr 1e-3 > /dev/null
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path, forked: Mapping[str, str]) -> Path:
    """An iteration, by real processes."""
    place = tmp_path_factory.mktemp("lineage")
    rows = [{"prompt": f"{number}=", "answer": str(number)} for number in range(12)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = shell(PIPELINE.format(tiny=tiny), place, environment=forked)
    assert result.returncode == 0, result.stderr
    return place


@pytest.fixture
def look(made: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(made)

    def run(*arguments: object, code: int = 0) -> str:
        capfd.readouterr()
        assert cli.run(["lineage", *map(str, arguments)]) == code
        out, err = capfd.readouterr()
        return out if code == 0 else err

    return run


def test_the_tree_of_a_shard(look: Any, tiny: Path) -> None:
    lines = look("runs/1/compute-advantages").splitlines()
    order = [
        next(n for n, line in enumerate(lines) if f"─ {stage}  " in line)
        for stage in ("compute-advantages", "score-prm", "filter", "verify", "generate")
    ]
    assert order == sorted(order)
    assert any("prm: ckpt/prm/1  (" in line and "step 1" in line for line in lines)
    assert any(
        f"primecli update-prm --prm {tiny} --ref {tiny} --checkpoint ckpt/prm/1 runs/1/filter" in line for line in lines
    )
    assert any("trained on 2 shards of runs/1/filter" in line for line in lines)
    assert any(f"policy: {tiny}  ({model_fingerprint(tiny)[:12]})" in line for line in lines)


def test_the_tree_of_a_checkpoint(look: Any, made: Path) -> None:
    out = look("ckpt/policy/1")
    assert out.startswith(f"ckpt/policy/1  ({model_fingerprint(made / 'ckpt/policy/1')[:12]}, step 1)")
    assert "trained on 2 shards of runs/1/compute-advantages" in out
    chain = json.loads(look("ckpt/policy/1", "--json"))["chain"]
    assert [record["stage"] for record in chain] == ["update-policy"]


def test_the_tree_of_a_checkpoint_continues_with_its_shards(look: Any) -> None:
    lines = look("ckpt/policy/1").splitlines()
    for stage in ("update-policy", "compute-advantages", "score-prm", "update-prm", "filter", "verify", "generate"):
        assert any(f"─ {stage}  " in line for line in lines), stage
    shallow = look("ckpt/policy/1", "--depth", 0)
    assert "compute-advantages  (" in shallow
    assert "generate" not in shallow


def test_a_model_that_has_changed_is_not_followed(look: Any, made: Path) -> None:
    record = made / "ckpt" / "prm" / "1" / "trainer" / "primecli.json"
    text = record.read_text()
    record.write_text(text.replace('"weights": "', '"weights": "other'))
    try:
        out = look("runs/1/score-prm")
    finally:
        record.write_text(text)
    assert "which has changed since" in out
    assert "update-prm" not in out


def test_shards_of_a_directory_that_were_made_another_way_are_counted(
    look: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "one of 2 made the same way" in look("runs/1/verify")
    place = tmp_path / "verify"
    shutil.copytree(made / "runs/1/verify", place)
    shutil.copy(sorted((made / "runs/1/generate").glob("*.parquet"))[0], place / "rollouts-00009-of-00010.parquet")
    assert "one of 2 made the same way; 1 more made another way" in look(place)


def test_differences(look: Any, made: Path, tiny: Path, forked: Mapping[str, str]) -> None:
    result = shell(
        f"primecli score-prm --prm ckpt/prm/1 --ref {tiny} --beta 0.1 runs/1/filter --out runs/2/score-prm "
        "| primecli compute-advantages --estimator grpo > /dev/null",
        made,
        environment=forked,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(look("runs/1/compute-advantages", "--diff", "runs/2/compute-advantages", "--json"))
    assert [(row["stage"], row["name"], row["first"], row["second"]) for row in rows] == [
        ("score-prm", "beta", 0.05, 0.1),
        ("compute-advantages", "estimator", "rloo", "grpo"),
    ]
    assert "grpo" in look("runs/1/compute-advantages", "--diff", "runs/2/compute-advantages")
    assert look("runs/1/verify", "--diff", "runs/1/verify") == "nothing differs\n"
    assert "not there" in look("runs/1/verify", "--diff", "runs/1/filter")


@pytest.mark.parametrize("target", ["runs/1/compute-advantages", "ckpt/policy/1"])
def test_a_replay_makes_the_same_shards_and_checkpoints(
    target: str, look: Any, made: Path, forked: Mapping[str, str], tmp_path: Path
) -> None:
    script = look(target, "--replay")
    assert script.count("primecli generate") == script.count("primecli update-prm") == 1
    shutil.copy(made / "prompts.jsonl", tmp_path)
    result = shell(script, tmp_path, environment=forked)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    for path in sorted((made / "runs/1/compute-advantages").glob("*.parquet")):
        again = tmp_path / path.relative_to(made)
        assert read_footer(again).content == read_footer(path).content
    if target.startswith("ckpt"):
        assert model_fingerprint(tmp_path / target) == model_fingerprint(made / target)


def test_options_from_a_file_and_the_environment_are_replayed(
    look: Any, made: Path, tiny: Path, forked: Mapping[str, str]
) -> None:
    (made / "p.toml").write_text('seed = 5\n[compute-advantages]\nestimator = "grpo"\nwhiten = false\n')
    result = shell(
        "PRIMECLI_BETA=0.2 primecli score-prm --config p.toml --prm ckpt/prm/1 --ref "
        f"{tiny} runs/1/filter --out runs/3/score-prm "
        "| primecli --config=p.toml compute-advantages > /dev/null",
        made,
        environment=forked,
    )
    assert result.returncode == 0, result.stderr
    script = look("runs/3/compute-advantages", "--replay")
    assert "--beta 0.2" in script
    assert "compute-advantages --estimator grpo --no-whiten" in script
    assert "p.toml" not in script
    contents = [read_footer(path).content for path in sorted((made / "runs/3/compute-advantages").glob("*.parquet"))]
    shutil.rmtree(made / "runs/3")
    result = shell(script, made, environment=forked)
    assert result.returncode == 0, result.stderr
    again = [read_footer(path).content for path in sorted((made / "runs/3/compute-advantages").glob("*.parquet"))]
    assert again == contents


def test_bad_input(look: Any, tmp_path: Path) -> None:
    assert "no such file" in look(tmp_path / "nowhere.parquet", code=3)
    (tmp_path / "empty").mkdir()
    assert "neither a checkpoint of primecli nor a directory of shards" in look(tmp_path / "empty", code=3)
    other = write_shards(tmp_path / "other", rollouts(1, 2))
    assert "another tool made it" in look(other, code=3)
    assert "choose one" in look("runs/1/verify", "--replay", "--diff", "runs/1/filter", code=2)


def test_a_replay_needs_what_a_checkpoint_was_trained_on(
    look: Any, made: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(made / "ckpt", tmp_path / "ckpt")
    monkeypatch.chdir(tmp_path)
    assert f"# run in {made}" in look("ckpt/policy/1", "--replay").splitlines()
    (made / "runs").rename(made / "elsewhere")
    try:
        assert "the shards that ckpt/policy/1 was trained on are gone" in look("ckpt/policy/1", "--replay", code=3)
    finally:
        (made / "elsewhere").rename(made / "runs")


def test_relative_paths_start_where_the_command_was_run(
    look: Any, made: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not list(tmp_path.iterdir())
    lines = look(made / "runs/1/compute-advantages").splitlines()
    assert any("prm: " in line and "step 1" in line for line in lines)  # its checkpoint has been found
    assert not any("is gone" in line for line in lines)
