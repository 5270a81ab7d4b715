"""examples/plugin, installed as somebody would install it, and used by its names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
PIP = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed package, in a directory of its own."""
    directory = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, directory / "source", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", *PIP, "--target", str(directory / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory / "site"


@pytest.fixture
def site(wheel: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which Python finds packages during the test."""
    copy = shutil.copytree(wheel, here / "site")
    monkeypatch.syspath_prepend(copy)
    return copy


def scores_and_outcomes(primecli: Any, prm: Path, ref: Path, directory: Path, out: Path) -> tuple[Any, Any]:
    primecli("score-prm", "--prm", prm, "--ref", ref, directory, "--out", out)
    rows = read_rows(out)
    scores = np.array([np.sum(row[schema.PROCESS_REWARDS], dtype=np.float64) for row in rows])
    return scores, np.array([row[schema.OUTCOME_REWARD] for row in rows])


def test_an_objective_of_the_prm(site: Path, tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    directory = write_shards(tmp_path / "in", rollouts(3, 4))
    update = ["update-prm", "--prm", other, "--ref", tiny, directory, "--lr", "3e-3", "--epochs", 4, "--quiet"]
    primecli(*update, "--loss", "focal", "--checkpoint", tmp_path / "prm")
    found = summary(tmp_path / "prm")["metrics"]
    for when, prm in (("before", other), ("after", tmp_path / "prm")):
        scores, outcomes = scores_and_outcomes(primecli, prm, tiny, directory, tmp_path / when)
        wrong_by = np.abs(1 / (1 + np.exp(-scores)) - outcomes)
        assert found[f"loss_{when}"] == pytest.approx(np.mean(-(wrong_by**2) * np.log(1 - wrong_by)), abs=1e-6)
    assert found["loss_after"] < found["loss_before"]
    config = json.loads((tmp_path / "prm/trainer/primecli.json").read_text())["recipe"]["config"]
    assert config["loss"] == "focal"
    assert config["loss_plugin"].startswith("primecli_example.objectives:focal@")

    again = primecli(*update, "--loss", "again=primecli_example.objectives:focal", "--micro-batch-tokens", 1,
                     "--checkpoint", tmp_path / "again")  # fmt: skip
    assert not again.err
    assert summary(tmp_path / "again")["metrics"]["grad_norm"] == pytest.approx(found["grad_norm"], rel=1e-4)


def test_a_changed_plug_in_makes_another_result(site: Path, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory, checkpoint = write_shards(tmp_path / "in", rollouts(2, 2)), tmp_path / "prm"
    update = ["update-prm", "--prm", tiny, "--ref", tiny, directory, "--loss", "focal", "--checkpoint", checkpoint]
    primecli(*update)
    assert "exists already, made from the same input" in primecli(*update).err
    with open(site / "primecli_example/objectives.py", "a", encoding="utf-8") as code:
        code.write("# changed\n")
    refused = primecli(*update, check=False)
    assert refused.code == 1
    assert "loss_plugin was primecli_example.objectives:focal@" in refused.line()


LOSSES = """
import torch

def none(rewards, response_mask, outcome_rewards, group_accuracy):
    return None

def mean(rewards, response_mask, outcome_rewards, group_accuracy):
    return rewards.mean()

def detached(rewards, response_mask, outcome_rewards, group_accuracy):
    return torch.zeros(len(rewards))

def wrong(rewards):
    return rewards

def by_means(rewards, response_mask, outcome_rewards, group_accuracy):
    return ((rewards * response_mask).sum(-1) / response_mask.sum(-1) - group_accuracy) ** 2

by_means.of_means = True
"""


@pytest.mark.parametrize(
    ("function", "code", "says"),
    [
        ("none", 1, "--loss mine (my_functions:none): returned NoneType for 4 responses"),
        ("mean", 1, "--loss mine (my_functions:mean): returned shape () for 4 responses"),
        ("detached", 1, "--loss mine (my_functions:detached): its losses have no gradient"),
        ("wrong", 1, "mine (my_functions:wrong) failed: TypeError: wrong() takes 1 positional argument but 4 were"),
        ("missing", 2, "mine (my_functions:missing) cannot be imported: AttributeError"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(
    function: str, code: int, says: str, here: Path, tiny: Path, primecli: Any
) -> None:
    (here / "my_functions.py").write_text(LOSSES)
    directory = write_shards(here / "in", rollouts(2, 2))
    update = ["update-prm", "--prm", tiny, "--ref", tiny, directory, "--checkpoint", here / "prm", "--no-evaluate"]
    result = primecli(*update, "--loss", f"mine=my_functions:{function}", check=False)
    assert (result.code, says in result.line()) == (code, True), result.err
    assert not (here / "prm").exists()


def test_an_objective_says_that_its_scores_are_means(here: Path, tiny: Path, other: Path, primecli: Any) -> None:
    (here / "my_functions.py").write_text(LOSSES)
    directory = write_shards(here / "in", rollouts(2, 4))
    update = ["update-prm", "--prm", other, "--ref", tiny, directory, "--checkpoint", here / "prm", "--lr", 0]
    primecli(*update, "--loss", "mine=my_functions:by_means")
    primecli("score-prm", "--prm", other, "--ref", tiny, directory, "--out", here / "scored")
    means = np.array([np.mean(row[schema.PROCESS_REWARDS], dtype=np.float64) for row in read_rows(here / "scored")])
    found = summary(here / "prm")["metrics"]
    assert found["mean_score"] == pytest.approx(means.mean(), abs=1e-6)
    assert found["loss"] == pytest.approx(np.mean((means - 0.5) ** 2), abs=1e-6)
