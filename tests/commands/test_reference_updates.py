"""The reference cases through the updates, with rollouts for which a tiny model's numbers equal the case's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from primecli.models.device import resolve_placement
from primecli.models.identity import model_fingerprint
from primecli.models.loading import load_model
from primecli.models.scoring import score
from primecli.shards import schema
from primecli.shards.rollouts import Sequences
from tests.builders import rollout, write_shards
from tests.conftest import summary
from tests.core.reference import CASES, NAMES
from tests.core.reference_2 import CASES_2, NAMES_2

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)


def case_rows(
    case: dict[str, Any], model: Path, taken: list[int] | None = None, size: int | None = None
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The responses of a case as rows of arbitrary token ids, with the model's log-probabilities of these.

    taken, size: only some rows of the case, in groups of another size.
    """
    rows, size = [], size or case["group_size"]
    lengths = case["lengths"] if taken is None else [case["lengths"][row] for row in taken]
    for row, length in enumerate(lengths):
        group, index = divmod(row, size)
        ids = [(31 * row + 7 * place) % 250 for place in range(length)]
        columns = {schema.RESPONSE_IDS: ids, schema.ROLLOUT_LOGPROBS: [-1.0] * length}
        rows.append(rollout(group, index, size, policy_fingerprint=model_fingerprint(model), **columns))
    place = resolve_placement("cpu", "float32")
    sequences = Sequences(
        [np.array(row[schema.PROMPT_IDS]) for row in rows], [np.array(row[schema.RESPONSE_IDS]) for row in rows]
    )
    flat = score(load_model(model, place), place, sequences, micro_batch_tokens=10**6)
    return rows, np.split(flat, np.cumsum(lengths)[:-1])


def cut(case: dict[str, Any], name: str, row: int) -> np.ndarray:
    """A row of an input without its padding."""
    return np.array(case["inputs"][name][row][: case["lengths"][row]])


def update(primecli: Any, stage: str, directory: Path, model: Path, *options: Any) -> dict[str, float]:
    """The metrics of one step over the whole case, with a learning rate of 0."""
    role = {"update-policy": "--policy", "update-prm": "--prm", "update-critic": "--critic"}[stage]
    target = directory.parent / f"{stage}-{len(list(directory.parent.iterdir()))}"
    primecli(stage, role, model, "--checkpoint", target, directory, "--lr", 0, "--mini-batch", 1000, *options)
    return dict(summary(target)["metrics"])


@each_case
def test_cross_entropy_and_pair_accuracy(case: dict[str, Any], tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows, logprobs = case_rows(case, tiny)
    for number, row in enumerate(rows):
        # the reference is set so that the PRM's log-probabilities minus it are the case's log-ratios
        row[schema.ROLLOUT_LOGPROBS] = (logprobs[number] - cut(case, "prm_minus_ref_logprobs", number)).tolist()
        row[schema.OUTCOME_REWARD] = case["inputs"]["outcome_reward"][number]  # fractional in some cases
    expected = case["expected"]["prm_ce_loss"]
    directory = write_shards(tmp_path / "in", rows)
    found = update(primecli, "update-prm", directory, tiny, "--ref", "rollout", "--beta", expected["beta"])
    for metric in ("loss", "loss_before", "loss_after"):
        assert found[metric] == pytest.approx(expected["loss"], abs=1e-5)
    accuracy = case["expected"]["prm_pair_accuracy"]
    assert accuracy["labels"] == case["inputs"]["outcome_reward"]
    assert found["pair_accuracy_by_group_before"] == pytest.approx(accuracy["value"], abs=1e-5)


@pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)
def test_the_loss_of_pairs(case: dict[str, Any], tiny: Path, tmp_path: Path, primecli: Any) -> None:
    for number, variant in enumerate(case["expected"]["dpo_rm_pairs_loss"]["variants"]):
        pairs = [row for pair in zip(variant["chosen"], variant["rejected"], strict=True) for row in pair]
        rows, logprobs = case_rows(case, tiny, pairs, size=2)
        for place, (row, source) in enumerate(zip(rows, pairs, strict=True)):
            row[schema.ROLLOUT_LOGPROBS] = (logprobs[place] - cut(case, "prm_minus_ref_logprobs", source)).tolist()
            row[schema.OUTCOME_REWARD] = float(source in variant["chosen"])
        directory = write_shards(tmp_path / str(number), rows)
        options = ["--ref", "rollout", "--loss", "dpo", "--beta", variant["beta"], "--micro-batch-tokens", 1]
        found = update(primecli, "update-prm", directory, tiny, *options)
        for metric in ("loss", "loss_before", "loss_after"):
            assert found[metric] == pytest.approx(variant["loss_pair_mean"], abs=1e-5)


@pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)
@pytest.mark.parametrize(
    ("loss", "name", "variants"),
    [("prefix", "ipvrm_prefix_loss", (3, 4, 5)), ("ce", "implicit_prm_loss_weighted", (2,))],
    ids=["prefix", "ce"],
)
def test_balanced_prm_losses(
    loss: str, name: str, variants: tuple[int, ...], case: dict[str, Any], tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    rows, logprobs = case_rows(case, tiny)
    for number, row in enumerate(rows):
        row[schema.ROLLOUT_LOGPROBS] = (logprobs[number] - cut(case, "prm_minus_ref_logprobs", number)).tolist()
        row[schema.OUTCOME_REWARD] = case["inputs"]["outcome_reward"][number]
    directory = write_shards(tmp_path / "in", rows)
    for variant in (case["expected"][name]["variants"][number] for number in variants):
        balance = [*(["boundary"] if variant["adb"] else []), *(["weight"] if variant["dlw"] else [])]
        options = ["--ref", "rollout", "--loss", loss, "--beta", variant["beta"]]
        options += ["--margin", variant["base_margin"]] if variant["base_margin"] is not None else []
        options += ["--balance", ",".join(balance)] if balance else []
        found = update(primecli, "update-prm", directory, tiny, *options)
        for metric in ("loss", "loss_before", "loss_after"):
            assert found[metric] == pytest.approx(variant["loss"], abs=1e-5)


@each_case
@pytest.mark.parametrize("name", ["ppo_clip_loss", "ppo_clip_higher_loss"])
def test_policy_losses(case: dict[str, Any], name: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    expected = case["expected"][name]
    rows, logprobs = case_rows(case, tiny)
    for number, row in enumerate(rows):
        log_ratio = cut(case, "logprobs", number) - cut(case, "old_logprobs", number)
        row[schema.ROLLOUT_LOGPROBS] = (logprobs[number] - log_ratio).tolist()
        row[schema.ADVANTAGES] = cut(case, "advantages", number).tolist()
    options = ["--old-logprobs", "rollout", "--loss-aggregation", expected["agg"], "--dual-clip", expected["dual_clip"]]
    options += ["--clip-low", expected["clip_low"], "--clip-high", expected["clip_high"]]
    found = update(primecli, "update-policy", write_shards(tmp_path / "in", rows), tiny, *options)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert found["clip_fraction"] == pytest.approx(expected["clip_fraction"], abs=1e-6)
    assert found["clip_fraction_low"] + found["clip_fraction_high"] == pytest.approx(found["clip_fraction"])
    if "approx_kl" in expected:
        assert found["kl"] == pytest.approx(expected["approx_kl"], abs=1e-5)
        assert found["dual_clip_fraction"] == pytest.approx(expected["dual_clip_fraction"], abs=1e-6)


@each_case
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_to_the_reference(case: dict[str, Any], kind: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    rows, logprobs = case_rows(case, tiny)
    for number, row in enumerate(rows):
        difference = cut(case, "logprobs", number) - cut(case, "ref_logprobs", number)
        row[schema.REF_LOGPROBS] = (logprobs[number] - difference).tolist()
        row[schema.ADVANTAGES] = [0.0] * case["lengths"][number]
    options = ["--ref", "shards", "--kl", kind, "--kl-coef", 0.5]
    found = update(primecli, "update-policy", write_shards(tmp_path / "in", rows), tiny, *options)
    mask = torch.tensor(case["response_mask"])
    expected = float(torch.tensor(case["expected"]["kl_penalty"][kind])[mask].double().mean())
    assert found["kl_ref"] == pytest.approx(expected, abs=1e-5)
    assert found["loss"] == pytest.approx(0.5 * expected, abs=1e-5)


@each_case
def test_value_loss(case: dict[str, Any], tiny: Path, tmp_path: Path, primecli: Any) -> None:
    expected = case["expected"]["value_loss"]
    rows, _ = case_rows(case, tiny)
    for number, row in enumerate(rows):
        # a new critic predicts 0 where the case has values + 0.1 * advantages, so everything is shifted by that
        shift = cut(case, "values", number) + 0.1 * cut(case, "advantages", number)
        row[schema.VALUES] = (cut(case, "values", number) - shift).tolist()
        row[schema.RETURNS] = (cut(case, expected["returns_are"], number) - shift).tolist()
    found = update(
        primecli, "update-critic", write_shards(tmp_path / "in", rows), tiny, "--value-clip", expected["clip"]
    )
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    assert found["clip_fraction"] == pytest.approx(expected["clip_fraction"], abs=1e-6)
