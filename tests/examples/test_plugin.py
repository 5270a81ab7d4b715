"""examples/plugin, installed as somebody would install it, and used by its names."""

from __future__ import annotations

import doctest
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.models.identity import model_fingerprint
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


def test_an_estimator(site: Path, tmp_path: Path, primecli: Any) -> None:
    rewards = [1.0, 0.0, 0.0, 1.0, 0.25, 1.0]  # two groups of three, with medians of 0 and 1
    rows = rollouts(2, 3)
    for row, reward in zip(rows, rewards, strict=True):
        row[schema.OUTCOME_REWARD] = reward
        row[schema.PROCESS_REWARDS] = [0.0] * len(row[schema.RESPONSE_IDS])
    directory = write_shards(tmp_path / "in", rows)
    command = ["compute-advantages", "--estimator", "median", "--no-whiten", directory, "--out", tmp_path / "out"]
    primecli(*command)
    found = [row[schema.ADVANTAGES] for row in read_rows(tmp_path / "out")]
    expected = [1.0, 0.0, 0.0, 0.0, -0.75, 0.0]
    assert found == [[value] * len(row[schema.RESPONSE_IDS]) for value, row in zip(expected, rows, strict=True)]
    config = summary(tmp_path / "out")["config"]
    assert config["estimator"] == "median"
    assert config["estimator_plugin"].startswith("primecli_example.estimators:median@")
    with open(site / "primecli_example/__init__.py", "a", encoding="utf-8") as code:
        code.write("# changed\n")
    refused = primecli(*command, check=False)
    assert (refused.code, "estimator_plugin was" in refused.line()) == (1, True)


def test_a_policy_loss(site: Path, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    """On a batch whose ratios are known: the old log-probabilities are the sampler's."""
    rows = rollouts(3, 4, policy_fingerprint=model_fingerprint(tiny))
    primecli("score-prm", "--prm", tiny, "--ref", tiny, write_shards(tmp_path / "in", rows), "--out", tmp_path / "now")
    generator = np.random.default_rng(0)
    moved, advantages = [], []
    for row, now in zip(rows, read_rows(tmp_path / "now"), strict=True):
        moved.append(generator.normal(0, 0.3, len(now[schema.PRM_LOGPROBS])))
        advantages.append(generator.normal(size=len(moved[-1])))
        row[schema.ROLLOUT_LOGPROBS] = (np.array(now[schema.PRM_LOGPROBS]) - moved[-1]).tolist()
        row[schema.ADVANTAGES] = advantages[-1].tolist()
    directory = write_shards(tmp_path / "batch", rows)
    update = ["update-policy", "--policy", tiny, directory, "--old-logprobs", "rollout", "--clip-high", 0.3, "--lr", 0]
    primecli(*update, "--policy-loss", "smooth", "--checkpoint", tmp_path / "1", "--micro-batch-tokens", 40)
    found = summary(tmp_path / "1")["metrics"]
    ratio, credit = np.exp(np.concatenate(moved)) - 1, np.concatenate(advantages)
    bound = np.where(ratio > 0, 0.3, 0.2)
    assert found["loss"] == pytest.approx(np.mean(-credit * (1 + bound * np.tanh(ratio / bound))), abs=1e-5)
    for name, side in (("clip_fraction_high", credit > 0), ("clip_fraction_low", credit < 0)):
        assert found[name] == pytest.approx(np.mean((abs(ratio) > bound) & side), abs=1e-6)
    config = json.loads((tmp_path / "1/trainer/primecli.json").read_text())["recipe"]["config"]
    assert (config["policy_loss"], config["clip_low"], config["clip_high"]) == ("smooth", 0.2, 0.3)
    assert config["policy_loss_plugin"].startswith("primecli_example.losses:smooth@")
    refused = primecli(
        *update, "--policy-loss", "smooth", "--dual-clip", 3, "--checkpoint", tmp_path / "2", check=False
    )
    assert (refused.code, "--dual-clip belongs to --policy-loss ppo and gspo, not to" in refused.line()) == (2, True)


@pytest.mark.parametrize("module", ["estimators", "losses", "objectives"])
def test_its_examples_hold(module: str, site: Path) -> None:
    found = doctest.testmod(importlib.import_module(f"primecli_example.{module}"))
    assert found.attempted
    assert not found.failed
