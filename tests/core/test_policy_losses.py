"""The policy losses against public implementations, with gradients, and what holds for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from primecli.core.losses import PolicyLoss, kl_estimate, ppo_clip, token_weights
from primecli.core.mismatch import ratio_by, truncated
from primecli.core.policy_losses import cispo, dppo, gmpo, gspo, ppo, sapo
from primecli.core.ragged import row_sums
from primecli.core.registry import POLICY_LOSSES, policy_loss
from tests.core.reference import float64, given, mask
from tests.core.reference_2 import CASES_2, NAMES_2

Variant = dict[str, Any]
each_loss = pytest.mark.parametrize("name", POLICY_LOSSES)


def lengths_of(case: dict[str, Any]) -> Tensor:
    return torch.tensor(case["lengths"])


def flat(case: dict[str, Any], name: str) -> Tensor:
    """(N,): an input without its padding; one number per row is repeated for the row's tokens."""
    values = given(case, name)
    return values[mask(case)] if values.dim() == 2 else values.repeat_interleave(lengths_of(case))


def weights_of(case: dict[str, Any], aggregation: str, width: int | None = None) -> Tensor:
    lengths = lengths_of(case)
    if aggregation == "seq-mean-token-sum-norm":  # verl's, and TRL's dr_grpo: a constant for the whole batch
        share = 1 / (len(lengths) * (width or mask(case).shape[1]))
        return torch.full((int(lengths.sum()),), share, dtype=torch.float64)
    return token_weights(lengths, aggregation, tokens=int(lengths.sum()), responses=len(lengths))


def capped_at_two(case: dict[str, Any]) -> Tensor:
    ratio = ratio_by("token", flat(case, "old_logprobs"), flat(case, "rollout_logprobs"), lengths_of(case))
    return truncated(ratio, high=2.0)


def clip_of(variant: Variant) -> dict[str, float]:
    return {name: variant[name] for name in ("clip_low", "clip_high")}


OF_TRL = {
    "grpo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "luspo": "seq-mean-token-sum",
    "dr_grpo": "seq-mean-token-sum-norm",
    "bnpo": "token-mean",
    "dapo": "token-mean",
    "cispo": "token-mean",
}
BY_RESPONSE = ("verl_gspo", "verl_sapo", "verl_geo_mean", "slime_gspo")


def aggregation_of(entry: str, variant: Variant) -> str:
    if entry in BY_RESPONSE:
        return "seq-mean-token-mean"
    return variant["agg"] if "agg" in variant else OF_TRL[variant["loss_type"]]


def taus(variant: Variant) -> dict[str, float]:
    return {"tau_positive": variant["tau_pos"], "tau_negative": variant["tau_neg"]}


LOSSES: dict[str, Callable[[Variant], tuple[Any, dict[str, Any]]]] = {
    "verl_dapo_clip_higher": lambda v: (ppo, {**clip_of(v), "dual_clip": v["dual_clip"]}),
    "trl_grpo_family": lambda v: (ppo, clip_of(v)),
    "verl_gspo": lambda v: (gspo, clip_of(v)),
    "trl_gspo": lambda v: (gspo, clip_of(v)),
    "slime_gspo": lambda v: (gspo, {**clip_of(v), "dual_clip": v["dual_clip"]}),
    "verl_cispo": lambda v: (cispo, clip_of(v)),
    # TRL's bound is the largest ratio itself, and there is no lower one
    "trl_cispo": lambda v: (cispo, {"clip_low": math.inf, "clip_high": v["clip_high"] - 1}),
    "verl_sapo": lambda v: (sapo, taus(v)),
    "trl_sapo": lambda v: (sapo, taus(v)),
    "verl_dppo_tv": lambda v: (
        dppo,
        {"clip_low": v["delta_low"], "clip_high": v["delta_high"], "ratio_cap": v["ratio_cap"]},
    ),
    "verl_geo_mean": lambda v: (gmpo, clip_of(v)),
}


def variants() -> Iterator[Any]:
    for case, name in zip(CASES_2, NAMES_2, strict=True):
        for entry in LOSSES:
            for number, variant in enumerate(case["expected"][entry]["variants"]):
                if "delta" not in variant:  # TRL's cap on the ratio of the branch that is not clipped
                    yield pytest.param(case, entry, variant, id=f"{name}-{entry}-{number}")


@pytest.mark.parametrize(("case", "entry", "variant"), list(variants()))
def test_losses_and_gradients_are_those_of_public_implementations(
    case: dict[str, Any], entry: str, variant: Variant
) -> None:
    function, arguments = LOSSES[entry](variant)
    logprobs = flat(case, "logprobs").requires_grad_()
    old, advantages = flat(case, "old_logprobs"), flat(case, variant.get("advantages_are", "advantages_per_sequence"))
    weights = weights_of(case, aggregation_of(entry, variant), variant.get("max_completion_length"))
    if variant.get("is_weights"):
        importance = capped_at_two(case)
        if entry == "verl_geo_mean":  # which weights a response by their geometric mean
            rows = (row_sums(importance.log(), lengths_of(case)) / lengths_of(case)).exp()
            weights = weights * rows.repeat_interleave(lengths_of(case))
        else:
            advantages = advantages * importance
    found: PolicyLoss = function(logprobs, old, advantages, weights, lengths_of(case), **arguments)
    loss = found.loss
    if "kl_beta" in variant:
        loss = loss + variant["kl_beta"] * (kl_estimate(logprobs, flat(case, "ref_logprobs"), "k3") * weights).sum()
    expected = variant.get("loss", variant.get("loss_seq_mean_token_mean"))
    assert float(loss.detach()) == pytest.approx(expected, abs=2e-7)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, float64(variant["grad_logprobs"])[mask(case)], rtol=0, atol=2e-7)
    if entry in ("verl_dapo_clip_higher", "verl_gspo", "verl_dppo_tv"):
        clipped = (found.clipped_low | found.clipped_high).double().mean()
        assert float(clipped) == pytest.approx(variant["pg_clipfrac"], abs=2e-7)


@pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)
def test_dppo_against_the_sampler_with_a_penalty(case: dict[str, Any]) -> None:
    """prime-rl compares with the sampler, writes the ratio into the loss, and adds a squared log-ratio."""
    tokens = int(lengths_of(case).sum())
    for variant in case["expected"]["prime_rl_losses"]["variants"]:
        if variant["kind"] != "dppo_kl":
            continue
        logprobs = flat(case, "logprobs").requires_grad_()
        sampled, advantages = flat(case, "rollout_logprobs"), variant["adv_tau"] * flat(case, "advantages")
        bounds = {"clip_low": variant["dppo_mask_low"], "clip_high": variant["dppo_mask_high"]}
        found = dppo(
            logprobs,
            sampled,
            advantages,
            weights_of(case, "token-mean"),
            lengths_of(case),
            **bounds,
            ratio_cap=math.inf,
        )
        penalty = variant["kl_tau"] * (logprobs - sampled).square().sum() / tokens
        gradient = torch.autograd.grad(found.loss + penalty, logprobs)[0]
        torch.testing.assert_close(gradient, float64(variant["grad_logprobs"])[mask(case)], rtol=0, atol=2e-7)
        left_out = found.clipped_low | found.clipped_high
        value = -(advantages * found.ratio * ~left_out).sum() / tokens + penalty
        assert float(value.detach()) == pytest.approx(variant["loss"], abs=2e-7)
        shares = row_sums(left_out.double(), lengths_of(case)) / lengths_of(case)
        assert shares.tolist() == pytest.approx(variant["is_masked_per_sequence"], abs=1e-6)


def of_case(case: dict[str, Any], name: str, order: list[int] | None = None, aggregation: str = "token-mean") -> Any:
    """The loss, its gradient by row, and how many tokens were clipped, with the rows in another order."""
    lengths = lengths_of(case)
    rows = list(range(len(lengths))) if order is None else order
    parts = {
        key: torch.cat([torch.split(flat(case, key), case["lengths"])[row] for row in rows])
        for key in ("logprobs", "old_logprobs", "advantages")
    }
    logprobs = parts["logprobs"].requires_grad_()
    whole = {"tokens": int(lengths.sum()), "responses": len(lengths)}
    weights = token_weights(lengths[rows], aggregation, **whole)
    found = policy_loss(name)(logprobs, parts["old_logprobs"], parts["advantages"], weights, lengths[rows])
    (gradient,) = torch.autograd.grad(found.loss, logprobs)
    pieces = dict(zip(rows, torch.split(gradient, lengths[rows].tolist()), strict=True))
    clipped = int((found.clipped_low | found.clipped_high).sum())
    return float(found.loss.detach()), pieces, clipped


@each_loss
@settings(deadline=None, max_examples=10)
@for_all(st.integers(0, len(CASES_2) - 1), st.randoms(use_true_random=False))
def test_neither_row_order_nor_micro_batches_change_a_loss(name: str, number: int, random: Any) -> None:
    case = CASES_2[number]
    order = list(range(len(case["lengths"])))
    random.shuffle(order)
    loss, gradients, clipped = of_case(case, name)
    cut = random.randint(1, len(order) - 1)
    for parts in ([order], [order[:cut], order[cut:]]):
        found = [of_case(case, name, part) for part in parts]
        assert sum(part[0] for part in found) == pytest.approx(loss, abs=1e-12)
        assert sum(part[2] for part in found) == clipped
        for pieces in (part[1] for part in found):
            for row, piece in pieces.items():
                torch.testing.assert_close(piece, gradients[row], rtol=0, atol=1e-12)


@each_loss
def test_a_token_without_weight_has_no_part_in_a_loss(name: str) -> None:
    case = CASES_2[2]
    function, lengths = policy_loss(name), lengths_of(case)
    weights = weights_of(case, "token-mean")
    weights[::3] = 0
    wild = flat(case, "advantages")
    wild[::3] = 1e6
    logprobs = flat(case, "logprobs").requires_grad_()
    losses = [
        function(logprobs, flat(case, "old_logprobs"), advantages, weights, lengths).loss
        for advantages in (flat(case, "advantages"), wild)
    ]
    assert float(losses[0].detach()) == float(losses[1].detach()) != 0
    (gradient,) = torch.autograd.grad(losses[1], logprobs)
    assert not gradient[::3].any()
    assert gradient.any()


@each_loss
def test_on_policy_every_loss_has_the_gradient_of_reinforce(name: str) -> None:
    """At ratio 1, in which all of them agree; gmpo where a response has one advantage."""
    case = CASES_2[0]
    logprobs = flat(case, "logprobs").requires_grad_()
    advantages, weights = flat(case, "advantages_per_sequence"), weights_of(case, "seq-mean-token-mean")
    loss = policy_loss(name)(logprobs, logprobs.detach(), advantages, weights, lengths_of(case)).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient, -advantages * weights, rtol=0, atol=1e-12)


BOUNDS: dict[str, Any] = {"clip_low": 0.1, "clip_high": 0.2, "dual_clip": 3.0}


def test_gspo_of_single_tokens_is_ppo() -> None:
    case = CASES_2[2]
    logprobs = flat(case, "logprobs").requires_grad_()
    old, advantages = flat(case, "old_logprobs"), flat(case, "advantages")
    weights = weights_of(case, "token-mean")
    ours = gspo(logprobs, old, advantages, weights, torch.ones(len(old), dtype=torch.int64), **BOUNDS)
    plain = ppo_clip(logprobs, old, advantages, weights, **BOUNDS)
    assert float(ours.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-15)
    torch.testing.assert_close(torch.autograd.grad(ours.loss, logprobs), torch.autograd.grad(plain.loss, logprobs))
    assert torch.equal(ours.clipped_high, plain.clipped_high)


def test_gspo_has_one_ratio_for_a_response_and_none_of_another() -> None:
    new, old = float64([0.4, 0.0, 5.0]), float64([0.0, 0.0, 0.0])
    ones = torch.ones(3, dtype=torch.float64)
    found = gspo(new, old, ones, ones, torch.tensor([2, 1]), clip_low=0.1, clip_high=math.inf)
    assert found.ratio.tolist() == pytest.approx([math.exp(0.2), math.exp(0.2), math.exp(5)])


def test_cispo_still_learns_where_ppo_does_not_and_is_bounded() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    old, advantages = torch.zeros(4, dtype=torch.float64), float64([1, 1, -1, -1])
    logprobs = float64([1.2, 1e3, -4, -1e3]).requires_grad_()
    lengths = torch.tensor([4])
    plain = ppo_clip(logprobs, old, advantages, ones)
    assert torch.autograd.grad(plain.loss, logprobs)[0].tolist() == [0, 0, 0, 0]
    ours = cispo(logprobs, old, advantages, ones, lengths, clip_low=0.2, clip_high=0.3)
    assert torch.autograd.grad(ours.loss, logprobs)[0].tolist() == pytest.approx([-1.3, -1.3, 0.8, 0.8])
    assert ours.clipped_high.tolist() == [True, True, False, False]
    assert ours.clipped_low.tolist() == [False, False, True, True]


def test_dppo_looks_at_probabilities_and_not_at_ratios() -> None:
    chances = float64([[0.001, 0.1], [0.5, 0.8], [0.8, 0.5], [0.5, 0.8]])  # old, new
    old, new = chances.log().T
    advantages = float64([1, 1, -1, -1])
    logprobs = new.clone().requires_grad_()
    found = dppo(logprobs, old, advantages, torch.ones_like(old), torch.tensor([4]), clip_low=0.2, clip_high=0.2)
    assert found.clipped_high.tolist() == [False, True, False, False]
    assert found.clipped_low.tolist() == [False, False, True, False]
    # the rare token's ratio is 100, and counts 20 at most
    expected = [-20, 0, 0, 1.6]
    assert torch.autograd.grad(found.loss, logprobs)[0].tolist() == pytest.approx(expected)


def test_sapo_fades_with_the_distance_from_ratio_one() -> None:
    logprobs = float64([0, 1, 2, -2]).requires_grad_()
    ones = torch.ones(4, dtype=torch.float64)
    loss = sapo(logprobs, 0 * ones, ones, ones, torch.tensor([4]), tau_positive=2.0).loss
    slope = (-torch.autograd.grad(loss, logprobs)[0] / logprobs.detach().exp()).tolist()  # per unit of the ratio
    assert slope[0] == pytest.approx(1)
    assert slope[0] > slope[1] > slope[2] > 0
    outside = 1 / (1 + math.exp(-2 * (math.exp(-2) - 1)))
    assert slope[3] == pytest.approx(4 * outside * (1 - outside))


def test_gmpo_clips_each_token_before_the_mean() -> None:
    new = float64([0.9, 0.1, -2.0, 0.0])
    advantages = float64([1, 1, 1, 1])
    weights = token_weights(torch.tensor([2, 2]), "seq-mean-token-mean", tokens=4, responses=2)
    found = gmpo(new, torch.zeros(4).double(), advantages, weights, torch.tensor([2, 2]), clip_low=0.4, clip_high=0.4)
    # 0.9 is held at 0.4; -2 is not, since the advantage pulls it back
    assert float(found.loss) == pytest.approx(-(math.exp(0.25) + math.exp(-1)) / 2)
    assert found.clipped_high.tolist() == [True, False, False, False]
