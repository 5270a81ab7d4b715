"""Functions of one's own, named on the command line: what they are given, and what they may do wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.models.identity import model_fingerprint
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows, summary

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


ESTIMATORS = """
def nan_padding(outcome_rewards, process_rewards, reward_mask, group_index):
    process = process_rewards.clone()
    process[~reward_mask] = float("nan")  # outside the mask nothing counts
    return outcome_rewards, process

def one(outcome_rewards, process_rewards, reward_mask, group_index):
    return outcome_rewards

def swapped(outcome_rewards, process_rewards, reward_mask, group_index):
    return process_rewards, outcome_rewards

def infinite(outcome_rewards, process_rewards, reward_mask, group_index):
    return outcome_rewards / 0, process_rewards
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


def advantages(here: Path) -> list[Any]:
    """compute-advantages on two groups of two responses with process rewards, and the module beside it."""
    (here / "my_functions.py").write_text(ESTIMATORS)
    rows = rollouts(2, 2)
    for row in rows:
        row[schema.PROCESS_REWARDS] = [0.5] * len(row[schema.RESPONSE_IDS])
    return ["compute-advantages", write_shards(here / "in", rows), "--out", here / "out", "--estimator"]


def test_only_what_an_estimator_returns_under_the_mask_counts(here: Path, primecli: Any) -> None:
    primecli(*advantages(here), "mine=my_functions:nan_padding", "--no-whiten", "--process-norm", "none")
    for row in read_rows(here / "out"):
        tokens = np.arange(len(row[schema.RESPONSE_IDS]), 0, -1)
        assert row[schema.ADVANTAGES] == pytest.approx(row[schema.OUTCOME_REWARD] + 0.5 * tokens)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            "one",
            "--estimator mine (my_functions:one): returned Tensor for outcome rewards (4,) and process",
        ),
        ("swapped", "--estimator mine (my_functions:swapped): returned (4, 6), (4,) for outcome rewards (4,) and"),
        ("infinite", "--estimator mine (my_functions:infinite): returned values that are not finite"),
    ],
)
def test_what_an_estimator_does_wrong_is_one_line(function: str, says: str, here: Path, primecli: Any) -> None:
    result = primecli(*advantages(here), f"mine=my_functions:{function}", check=False)
    assert (result.code, says in result.line()) == (1, True), result.err


POLICY_LOSSES = """
def terms_alone(logprobs, old_logprobs, advantages, lengths, *, clip_low, clip_high):
    return -advantages * logprobs

def summed(logprobs, old_logprobs, advantages, lengths, *, clip_low, clip_high):
    return (-advantages * logprobs).sum(), logprobs > 0

def detached(logprobs, old_logprobs, advantages, lengths, *, clip_low, clip_high):
    return -advantages, logprobs > 0
"""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            "terms_alone",
            "--policy-loss mine (my_functions:terms_alone): did not return the terms of 16 tokens and",
        ),
        ("summed", "--policy-loss mine (my_functions:summed): did not return the terms of 16 tokens and which were"),
        ("detached", "--policy-loss mine (my_functions:detached): its terms have no gradient"),
    ],
)
def test_what_a_policy_loss_does_wrong_is_one_line(
    function: str, says: str, here: Path, tiny: Path, primecli: Any
) -> None:
    (here / "my_functions.py").write_text(POLICY_LOSSES)
    rows = rollouts(2, 2, policy_fingerprint=model_fingerprint(tiny))
    for row in rows:
        row[schema.ADVANTAGES] = [1.0] * len(row[schema.RESPONSE_IDS])
    update = ["update-policy", "--policy", tiny, write_shards(here / "in", rows), "--checkpoint", here / "policy"]
    result = primecli(*update, "--policy-loss", f"mine=my_functions:{function}", check=False)
    assert (result.code, says in result.line()) == (1, True), result.err
    assert not (here / "policy").exists()
