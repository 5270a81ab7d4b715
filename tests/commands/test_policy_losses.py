"""update-policy --policy-loss and what goes with it: against the reference cases, and however the rows are split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from primecli.core.covariance import covariances, kl_cov
from primecli.core.policy_losses import dppo
from primecli.core.registry import POLICY_LOSSES
from primecli.shards import schema
from tests.builders import write_shards
from tests.commands.test_reference_updates import case_rows, cut, update
from tests.commands.test_update_policy import batch, own_logprobs, weights
from tests.conftest import read_rows, summary
from tests.core.reference_2 import CASES_2, NAMES_2

each_case = pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)


def per_token(case: dict[str, Any], name: str, row: int) -> np.ndarray:
    values = case["inputs"][name][row]
    return np.full(case["lengths"][row], values) if isinstance(values, float) else cut(case, name, row)


def variant_of(case: dict[str, Any], entry: str, **wanted: Any) -> dict[str, Any]:
    found = case["expected"][entry]["variants"]
    return next(variant for variant in found if all(variant[name] == value for name, value in wanted.items()))


def case_directory(case: dict[str, Any], tiny: Path, to: Path, advantages: str, *ratio: str) -> tuple[Path, np.ndarray]:
    """The case as shards, in which the sampler's log-probabilities give the log-ratio ratio[0] - ratio[1].

    Returns the model's log-probabilities too.
    """
    rows, logprobs = case_rows(case, tiny)
    for number, row in enumerate(rows):
        log_ratio = cut(case, ratio[0], number) - cut(case, ratio[1], number)
        row[schema.ROLLOUT_LOGPROBS] = (logprobs[number] - log_ratio).tolist()
        row[schema.ADVANTAGES] = per_token(case, advantages, number).tolist()
    return write_shards(to, rows), np.concatenate(logprobs)


@each_case
def test_losses_of_public_implementations(case: dict[str, Any], tiny: Path, tmp_path: Path, primecli: Any) -> None:
    of_ratio = ("logprobs", "old_logprobs")
    directory, logprobs = case_directory(case, tiny, tmp_path / "in" / "all", "advantages", *of_ratio)
    common = {"advantages_are": "advantages", "is_weights": None}
    options = {
        "gspo": ("verl_gspo", ["--clip-low", 0.1, "--clip-high", 0.2]),
        "sapo": ("verl_sapo", []),
        "gmpo": ("verl_geo_mean", ["--clip-low", 0.1, "--clip-high", 0.2]),
        "cispo": ("verl_cispo", ["--clip-low", 0.2, "--clip-high", 0.2]),
    }
    for name, (entry, bounds) in options.items():
        wanted = {str(flag)[2:].replace("-", "_"): value for flag, value in zip(bounds[::2], bounds[1::2], strict=True)}
        variant = variant_of(case, entry, **common, **wanted)
        how = ["--old-logprobs", "rollout", "--policy-loss", name, *bounds, "--measure", 0]
        found = update(primecli, "update-policy", directory, tiny, *how)
        expected = variant["loss"]
        if name == "cispo":  # which is linear in the log-probabilities, and the model has its own
            gradient = np.concatenate(
                [np.array(row)[: case["lengths"][n]] for n, row in enumerate(variant["grad_logprobs"])]
            )
            expected = float((gradient * logprobs).sum())
        assert found["loss"] == pytest.approx(expected, abs=2e-6), name


def test_corrections_of_public_implementations(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    case = CASES_2[2]
    directory, _ = case_directory(case, tiny, tmp_path / "in" / "all", "advantages", "old_logprobs", "rollout_logprobs")
    mask = np.array(case["response_mask"])
    advantages = np.array(case["inputs"]["advantages"])[mask]
    plain = {"batch_normalize": False}
    for level in ("token", "sequence"):
        capped = np.array(variant_of(case, "verl_is_weights", level=level, threshold=2.0, **plain)["weights"])[mask]
        found = update(primecli, "update-policy", directory, tiny, "--tis-cap", 2, "--tis-level", level)
        assert found["loss"] == pytest.approx(-float((advantages * capped).mean()), abs=2e-6)
        assert found["importance_weight"] == pytest.approx(capped.mean(), abs=1e-6)
        # IcePop: what is outside the band counts nothing
        banded = np.array(variant_of(case, "verl_is_weights", level=level, threshold="0.8_1.25", **plain)["weights"])
        options = ["--tis-cap", 1.25, "--tis-level", level, "--mismatch-band", 0.8, 1.25, "--mismatch-level", level]
        found = update(primecli, "update-policy", directory, tiny, *options)
        assert found["loss"] == pytest.approx(-float((advantages * banded[mask]).mean()), abs=2e-6)
        assert found["mismatch_masked"] == pytest.approx(float((banded[mask] == 0).mean()))
    variant = variant_of(case, "verl_rejection_mask", option="seq_mean_k1", threshold="0.99_1.01")
    kept = np.array(variant["mask"])[mask]
    found = update(
        *(primecli, "update-policy", directory, tiny),
        *("--mismatch-band", 1 / 1.01, 1 / 0.99, "--mismatch-level", "geometric"),
    )
    assert found["loss"] == pytest.approx(-float((advantages * kept).mean()), abs=2e-6)
    assert found["mismatch_masked"] == pytest.approx(variant["masked_fraction"], abs=1e-6)


def test_the_off_policy_mask_of_a_public_implementation(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    case = CASES_2[0]
    of_ratio = ("logprobs", "rollout_logprobs")
    directory, _ = case_directory(case, tiny, tmp_path / "in" / "all", "advantages_per_sequence", *of_ratio)
    for variant in case["expected"]["trl_off_policy_sequence_mask"]["variants"][1:]:
        options = ["--old-logprobs", "rollout", "--off-policy-mask", variant["off_policy_threshold"]]
        found = update(primecli, "update-policy", directory, tiny, *options)
        kept = np.repeat(variant["keep_sequence"], case["lengths"])
        assert found["off_policy_masked"] == pytest.approx(1 - kept.mean())


def drifted(directory: Path, policy: Path) -> Path:
    """A batch whose sampler has other log-probabilities than the policy, by up to half a nat."""
    rows = read_rows(batch(directory / "exact", policy))
    generator = np.random.default_rng(1)
    for row in rows:
        drift = generator.normal(scale=0.3, size=len(row[schema.RESPONSE_IDS])) + generator.normal(scale=0.2)
        row[schema.ROLLOUT_LOGPROBS] = (np.array(row[schema.ROLLOUT_LOGPROBS]) + drift).tolist()
    return write_shards(directory / "drifted", rows)


BY_COVARIANCE = ["--clip-cov", 0.2, "--clip-cov-band", -0.1, 0.3, "--kl-cov", 0.1]
REMOVED = ("mismatch_masked", "off_policy_masked", "clip_cov_masked", "kl_cov_penalised", "clip_fraction")


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_however_rows_are_split_the_loss_is_the_same(name: str, tiny: Path, tmp_path: Path, primecli: Any) -> None:
    """Ratios away from 1, every correction at once; in one padded micro-batch, by row, and packed."""
    directory = drifted(tmp_path, tiny)
    splits = [("off", 10**6), ("on", 60), *([("off", 1)] if name == "gspo" else [])]
    ways = {
        "sampler": ["--old-logprobs", "rollout", "--off-policy-mask", 0.05, *BY_COVARIANCE],
        "trainer": ["--tis-cap", 1.2, "--mismatch-band", 0.8, 1.3, "--mismatch-level", "arithmetic"],
    }
    if name != "gspo":  # the other corrections end in weights, whatever the loss
        del ways["trainer"]
    for way, options in ways.items():
        found: list[dict[str, float]] = []
        for packing, tokens in splits:
            target = tmp_path / f"{way}-{packing}-{tokens}"
            primecli(
                *(
                    "update-policy",
                    "--policy",
                    tiny,
                    "--checkpoint",
                    target,
                    directory,
                    "--policy-loss",
                    name,
                    *options,
                ),
                *("--micro-batch-tokens", tokens, "--packing", packing, "--measure", 0, "--quiet", "--grad-clip", 0),
            )
            found.append(dict(summary(target)["metrics"]))
        for other in found[1:]:
            assert other["loss"] == pytest.approx(found[0]["loss"], rel=1e-5, abs=1e-6)
            assert other["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-4)
            for removed in set(REMOVED) & set(other):
                assert other[removed] == found[0][removed]
        shares = {key: found[0][key] for key in REMOVED if key in found[0] and key != "clip_fraction"}
        assert len(shares) == (3 if way == "sampler" else 1)
        assert all(0.02 < share < 0.9 for share in shares.values()), shares


def test_masks_that_remove_nothing_change_no_bit(tiny: Path, other: Path, tmp_path: Path, primecli: Any) -> None:
    common = ["update-policy", "--policy", tiny, batch(tmp_path / "in", tiny), "--mini-batch", 8, "--lr", 1e-2]
    primecli(*common, "--checkpoint", tmp_path / "plain")
    off = ["--mismatch-band", 0, 1e9, "--mismatch-level", "sequence", "--off-policy-mask", 1e9]
    primecli(*common, "--checkpoint", tmp_path / "masked", *off)
    assert torch.equal(weights(tmp_path / "plain"), weights(tmp_path / "masked"))
    found = summary(tmp_path / "masked")["metrics"]
    assert (found["mismatch_masked"], found["off_policy_masked"]) == (0, 0)
    tight = ["--mismatch-band", 1.5, 2, "--entropy-coef", 0.1, "--ref", other, "--kl-coef", 0.2]
    primecli(*common, "--checkpoint", tmp_path / "nothing", *tight)
    found = summary(tmp_path / "nothing")["metrics"]
    assert found["mismatch_masked"] == 1
    # the KL and the bonus count every token nevertheless
    assert found["loss"] == pytest.approx(0.2 * found["kl_ref"] - 0.1 * found["entropy"])
    assert found["kl_ref"] > 1e-3


def test_covariances_are_those_of_the_whole_mini_batch_at_each_step(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = batch(tmp_path / "in", tiny)
    target = tmp_path / "1"
    primecli(
        *("update-policy", "--policy", tiny, "--checkpoint", target, directory, "--mini-batch", 16, "--epochs", 2),
        *("--lr", 1e-2, "--no-clip", "--kl-cov", 0.1, "--kl-cov-coef", 3, "--micro-batch-tokens", 1),
    )
    first, second = [json.loads(line) for line in (target / "trainer/steps.jsonl").read_text().splitlines()]
    rows = read_rows(directory)
    old = torch.from_numpy(np.concatenate(own_logprobs(rows, tiny))).double()
    advantages = torch.tensor([value for row in rows for value in row[schema.ADVANTAGES]]).double()
    once = tmp_path / "once"
    primecli(
        *("update-policy", "--policy", tiny, "--checkpoint", once, directory, "--mini-batch", 16),
        *("--lr", 1e-2, "--no-clip", "--kl-cov", 0.1, "--kl-cov-coef", 3),
    )
    new = torch.from_numpy(np.concatenate(own_logprobs(rows, once))).double()
    held = kl_cov(covariances(advantages, new), 0.1)
    moved = new - old
    expected = -(advantages * moved.exp()).mean() + 3 * (moved.abs() * held).sum() / len(moved)
    assert (first["ratio_min"], first["ratio_max"]) == (1, 1)
    assert first["kl_cov_penalised"] == second["kl_cov_penalised"] == pytest.approx(int(0.1 * len(old)) / len(old))
    assert second["loss"] == pytest.approx(float(expected), abs=1e-4)
    assert abs(float((moved.abs() * held).sum())) > 0.01


def test_dppo_takes_the_samplers_probabilities(tiny: Path, tmp_path: Path, primecli: Any) -> None:
    directory = drifted(tmp_path, tiny)
    options = ["--policy-loss", "dppo", "--clip-low", 0.001, "--clip-high", 0.002, "--ratio-cap", 1.1]
    found = update(primecli, "update-policy", directory, tiny, "--old-logprobs", "rollout", *options)
    rows = read_rows(directory)
    new = torch.from_numpy(np.concatenate(own_logprobs(rows, tiny))).double()
    old, advantages = (
        torch.tensor([value for row in rows for value in row[name]], dtype=torch.float64)
        for name in (schema.ROLLOUT_LOGPROBS, schema.ADVANTAGES)
    )
    expected = dppo(
        *(new, old, advantages, torch.full_like(new, 1 / len(new)), torch.tensor([len(new)])),
        clip_low=0.001,
        clip_high=0.002,
        ratio_cap=1.1,
    )
    assert found["loss"] == pytest.approx(float(expected.loss), abs=1e-5)
    assert found["clip_fraction"] == pytest.approx(
        float((expected.clipped_low | expected.clipped_high).double().mean())
    )
    assert 0.05 < found["clip_fraction"] < 0.9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy-loss", "sapo", "--clip-high", 0.3], "--clip-high makes no difference to --policy-loss sapo"),
        (["--policy-loss", "sapo", "--no-clip"], "--no-clip makes no difference to --policy-loss sapo"),
        (["--tau-positive", 2], "--tau-positive belongs to --policy-loss sapo, not to ppo"),
        (
            ["--policy-loss", "cispo", "--dual-clip", 3],
            "--dual-clip belongs to --policy-loss ppo and gspo, not to cispo",
        ),
        (["--tis-level", "sequence"], "--tis-level needs --tis-cap"),
        (["--tis-floor", 0.5], "--tis-floor needs --tis-cap"),
        (["--mismatch-level", "sequence"], "--mismatch-level needs --mismatch-band"),
        (["--mismatch-band", 2, 0.5], "--mismatch-band 2 0.5: give two bounds of a ratio, the lower one first"),
        (["--mismatch-band", 0.5, "inf"], "--mismatch-band 0.5 inf: give two bounds of a ratio"),
        (["--clip-cov-band", 0, 1], "--clip-cov-band needs --clip-cov"),
        (["--clip-cov", 0.1, "--clip-cov-band", 3, 1], "--clip-cov-band 3 1: give two bounds, the lower one first"),
        (["--kl-cov-coef", 2], "--kl-cov-coef needs --kl-cov"),
        (["--mismatch-band", 0.5, 2, "--old-logprobs", "rollout"], "leave --old-logprobs at recompute"),
    ],
)
def test_contradictory_options_are_usage_errors(options: list[Any], said: str, tmp_path: Path, primecli: Any) -> None:
    common = ["update-policy", "--policy", tmp_path, "--checkpoint", tmp_path / "1", tmp_path]
    result = primecli(*common, *options, check=False)
    assert (result.code, said in result.line()) == (2, True), result.err


@pytest.mark.parametrize("option", [["--mismatch-band", 0.5, 2], ["--off-policy-mask", 0.1]])
def test_the_sampler_must_have_sampled_from_the_whole_distribution(
    option: list[Any], tiny: Path, tmp_path: Path, primecli: Any
) -> None:
    directory = batch(tmp_path / "in", tiny, top_k=20)
    common = ["update-policy", "--policy", tiny, "--checkpoint", tmp_path / "1", directory]
    result = primecli(*common, *option, check=False)
    assert (result.code, f"{option[0]} needs rollouts sampled with" in result.line()) == (3, True)
