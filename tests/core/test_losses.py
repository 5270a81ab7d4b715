from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from primecli.core.losses import (
    AGGREGATIONS,
    group_rows,
    kl_estimate,
    ppo_clip,
    prm_cross_entropy,
    prm_dpo,
    token_weights,
    value_loss,
)
from tests.core.reference import CASES, NAMES, float64, given, group_index, mask
from tests.core.reference_2 import CASES_2, NAMES_2

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)
each_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS)


def weights(case: dict[str, Any], aggregation: str = "token-mean") -> Tensor:
    """The weights of a whole case, (B, T)."""
    lengths = torch.tensor(case["lengths"])
    flat = token_weights(lengths, aggregation, tokens=int(lengths.sum()), responses=len(lengths))
    padded = torch.zeros(mask(case).shape, dtype=torch.float64)
    padded[mask(case)] = flat
    return padded


def scores_of(case: dict[str, Any], beta: float) -> Tensor:
    return (beta * given(case, "prm_minus_ref_logprobs") * mask(case)).sum(-1)


@each_case
def test_prm_cross_entropy(case: dict[str, Any]) -> None:
    expected = case["expected"]["prm_ce_loss"]
    outcome = given(case, "outcome_reward")
    ours = prm_cross_entropy(scores_of(case, expected["beta"]), outcome, denominator=len(outcome))
    assert float(ours) == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)
def test_prm_dpo(case: dict[str, Any]) -> None:
    for variant in case["expected"]["dpo_rm_pairs_loss"]["variants"]:
        ratios = given(case, "prm_minus_ref_logprobs").requires_grad_()
        chosen, rejected = torch.tensor(variant["chosen"]), torch.tensor(variant["rejected"])
        scores = (variant["beta"] * ratios * mask(case)).sum(-1)[torch.cat([chosen, rejected])]
        pairs = torch.arange(len(chosen)).repeat(2)  # each pair is a group
        labels = float64([1.0] * len(chosen) + [0.0] * len(chosen))
        loss = prm_dpo(scores, labels, pairs).sum() / 2
        assert float(loss.detach()) == pytest.approx(variant["loss_sum"], abs=1e-8)
        (gradient,) = torch.autograd.grad(loss, ratios)
        torch.testing.assert_close(gradient, float64(variant["grad_prm_minus_ref_logprobs"]), rtol=0, atol=1e-8)


@each_case
def test_public_code_of_prime_teaches_what_all_responses_share_and_pairs_do_not(case: dict[str, Any]) -> None:
    expected = case["expected"]["prm_dpo_detached_loss"]
    scores, labels = scores_of(case, expected["beta"]).requires_grad_(), float64(expected["labels"])
    total = 0.0
    for rows in group_rows(group_index(case)):
        own, right = scores[rows], labels[rows] > 0
        # where a response has no opponents, it is held against the score of the reference, 0
        opponents = torch.where(right, own[~right].mean(), own[right].mean()).detach().nan_to_num()
        theirs = torch.nn.functional.softplus(torch.where(right, opponents - own, own - opponents)).sum()
        ours = prm_dpo(own, labels[rows], torch.zeros(len(rows), dtype=torch.int64)).sum()
        shared = [float(torch.autograd.grad(loss, scores, retain_graph=True)[0].sum()) for loss in (theirs, ours)]
        assert abs(shared[0]) > 0.1 or 2 * right.sum() == len(rows)
        assert shared[1] == pytest.approx(0, abs=1e-12)
        total += float(theirs.detach())
    assert total / len(labels) == pytest.approx(expected["loss"], abs=1e-5)


@each_case
def test_ppo_clip(case: dict[str, Any]) -> None:
    expected = case["expected"]["ppo_clip_loss"]
    tokens = int(mask(case).sum())
    ours = ppo_clip(
        given(case, "logprobs"),
        given(case, "old_logprobs"),
        given(case, "advantages"),
        weights(case, expected["agg"]),
        clip_low=expected["clip_low"],
        clip_high=expected["clip_high"],
        dual_clip=expected["dual_clip"],
    )
    assert float(ours.loss) == pytest.approx(expected["loss"], abs=1e-5)
    clipped = ours.clipped_low.sum() + ours.clipped_high.sum()
    assert float(clipped) / tokens == pytest.approx(expected["clip_fraction"], abs=1e-6)
    assert float(ours.dual_clipped.sum()) / tokens == pytest.approx(expected["dual_clip_fraction"], abs=1e-6)
    kl = kl_estimate(given(case, "old_logprobs"), given(case, "logprobs"), "k1") * mask(case)
    assert float(kl.sum()) / tokens == pytest.approx(expected["approx_kl"], abs=1e-6)


@each_case
def test_clip_higher(case: dict[str, Any]) -> None:
    expected = case["expected"]["ppo_clip_higher_loss"]
    ours = ppo_clip(
        given(case, "logprobs"),
        given(case, "old_logprobs"),
        given(case, "advantages"),
        weights(case, expected["agg"]),
        clip_low=expected["clip_low"],
        clip_high=expected["clip_high"],
        dual_clip=expected["dual_clip"],
    )
    assert float(ours.loss) == pytest.approx(expected["loss"], abs=1e-5)
    clipped = ours.clipped_low.sum() + ours.clipped_high.sum()
    assert float(clipped) / int(mask(case).sum()) == pytest.approx(expected["clip_fraction"], abs=1e-6)


@each_case
def test_value_loss(case: dict[str, Any]) -> None:
    expected = case["expected"]["value_loss"]
    values = given(case, "values") + 0.1 * given(case, "advantages")
    returns = given(case, expected["returns_are"])
    ours = value_loss(values, given(case, "values"), returns, weights(case), clip=expected["clip"])
    assert float(ours.loss) == pytest.approx(expected["loss"], abs=1e-5)
    assert float(ours.clipped.sum()) / int(mask(case).sum()) == pytest.approx(expected["clip_fraction"], abs=1e-6)


@each_case
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl(case: dict[str, Any], kind: str) -> None:
    ours = kl_estimate(given(case, "logprobs"), given(case, "ref_logprobs"), kind)
    torch.testing.assert_close(ours, float64(case["expected"]["kl_penalty"][kind]), atol=1e-5, rtol=0)


@settings(deadline=None)
@for_all(st.floats(-1e-2, 1e-2))
def test_kl_estimates_agree_to_second_order_in_expectation(step: float) -> None:
    """Over every token of a distribution, not a sample of it: E[k1] = E[k3] = KL exactly, E[k2] to third order."""
    base = torch.linspace(-1, 1, 7, dtype=torch.float64)
    policy = torch.log_softmax(base, 0)
    ref = torch.log_softmax(base + step * torch.sin(5 * base), 0)
    kl = float((policy.exp() * (policy - ref)).sum())
    expected = {kind: float((policy.exp() * kl_estimate(policy, ref, kind)).sum()) for kind in ("k1", "k2", "k3")}
    assert expected["k1"] == pytest.approx(kl, abs=1e-15)
    assert expected["k3"] == pytest.approx(kl, abs=1e-15)
    assert abs(expected["k2"] - kl) <= abs(step) ** 3 + 1e-15


def test_the_gradient_of_each_kl_estimate_is_what_its_docstring_says() -> None:
    base = torch.linspace(-1, 1, 5, dtype=torch.float64)
    ref = torch.log_softmax(-base, 0)

    def expected_gradient(kind: str) -> Tensor:
        logits = base.clone().requires_grad_()
        policy = torch.log_softmax(logits, 0)
        loss = (policy.detach().exp() * kl_estimate(policy, ref, kind)).sum()  # sampled tokens carry no gradient
        return torch.autograd.grad(loss, logits)[0]

    logits = base.clone().requires_grad_()
    policy = torch.log_softmax(logits, 0)
    (reverse,) = torch.autograd.grad((policy.exp() * (policy - ref)).sum(), logits)
    logits = base.clone().requires_grad_()
    (forward,) = torch.autograd.grad((ref.exp() * (ref - torch.log_softmax(logits, 0))).sum(), logits)
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros_like(base))
    torch.testing.assert_close(expected_gradient("k2"), reverse)
    torch.testing.assert_close(expected_gradient("k3"), forward)


def test_ppo_clip_worked_by_hand() -> None:
    # ratios 2, 0.5, 2, 10 with advantages 1, 1, -1, -1
    logprobs = torch.tensor([2.0, 0.5, 2.0, 10.0], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    ours = ppo_clip(logprobs, torch.zeros(4).double(), advantages, torch.ones(4).double(), clip_high=0.3, dual_clip=3)
    # clipped at 1.3; free below for a gain; free above for a loss; the last bounded by the dual clip
    assert float(ours.loss) == pytest.approx(-1.3 - 0.5 + 2.0 + 3.0)
    assert ours.clipped_high.tolist() == [True, False, False, False]
    assert ours.dual_clipped.tolist() == [False, False, False, True]
    low = ppo_clip(float64([0.5]).log(), float64([0.0]), float64([-1.0]), float64([1.0]), clip_low=0.2)
    assert float(low.loss) == pytest.approx(0.8)
    assert (bool(low.clipped_low), bool(low.clipped_high)) == (True, False)


@each_aggregation
def test_weights_worked_by_hand(aggregation: str) -> None:
    values = float64([1, 2, 30])
    flat = token_weights(torch.tensor([2, 1]), aggregation, tokens=3, responses=2)
    by_hand = {"token-mean": 11.0, "seq-mean-token-sum": (3 + 30) / 2, "seq-mean-token-mean": (1.5 + 30) / 2}
    assert float((flat * values).sum()) == pytest.approx(by_hand[aggregation])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="aggregation is 'sum'"):
        token_weights(torch.tensor([1]), "sum", tokens=1, responses=1)
    with pytest.raises(ValueError, match="the KL estimate is 'k4'"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def numeric_gradient(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        shift = torch.zeros_like(at).view(-1)
        shift[index] = step
        shift = shift.view_as(at)
        gradient.view(-1)[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


def check_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (analytic,) = torch.autograd.grad(function(at), at)
    torch.testing.assert_close(analytic, numeric_gradient(function, at.detach()), rtol=1e-5, atol=1e-9)
    return analytic


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@each_aggregation
def test_ppo_clip_gradient(dual_clip: float | None, aggregation: str) -> None:
    case = CASES[0]

    def loss(logprobs: Tensor) -> Tensor:
        old, advantages = given(case, "old_logprobs"), given(case, "advantages")
        return ppo_clip(logprobs, old, advantages, weights(case, aggregation), dual_clip=dual_clip).loss

    assert not check_gradient(loss, given(case, "logprobs"))[~mask(case)].any()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_value_loss_gradient(clip: float | None) -> None:
    case = CASES[0]

    def loss(values: Tensor) -> Tensor:
        return value_loss(values, given(case, "values"), given(case, "advantages"), weights(case), clip=clip).loss

    check_gradient(loss, given(case, "values") + 0.1 * given(case, "logprobs"))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_gradient(kind: str) -> None:
    case = CASES[0]
    check_gradient(
        lambda at: (kl_estimate(at, given(case, "ref_logprobs"), kind) * weights(case)).sum(), given(case, "logprobs")
    )


def test_prm_gradients_take_soft_labels() -> None:
    scores = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    labels = torch.tensor([0.25, 0.0, 1.0], dtype=torch.float64)
    gradient = check_gradient(lambda at: prm_cross_entropy(at, labels, denominator=3), scores)
    torch.testing.assert_close(gradient, (scores.sigmoid() - labels) / 3)
    check_gradient(lambda at: prm_dpo(at, labels, torch.tensor([0, 0, 0])).sum(), scores)


def test_a_groups_loss_of_pairs_is_their_mean_times_its_responses() -> None:
    scores, outcomes = float64([0.4, 1.0, -0.3, 2.0]), float64([1.0, 0.5, 0.5, 0.0])
    ahead = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]  # not (1, 2), whose outcomes are equal
    losses = {pair: math.log1p(math.exp(float(scores[pair[1]] - scores[pair[0]]))) for pair in ahead}
    shares = prm_dpo(scores, outcomes, torch.zeros(4, dtype=torch.int64))
    for row, share in enumerate(shares.tolist()):
        mine = sum(loss for pair, loss in losses.items() if row in pair) / 2
        assert share == pytest.approx(4 * mine / len(ahead))
    assert float(shares.mean()) == pytest.approx(sum(losses.values()) / len(ahead))


def test_groups_without_a_pair_have_no_loss() -> None:
    scores = float64([3, 4, 1, 2]).requires_grad_()
    shares = prm_dpo(scores, float64([1, 1, 0, 1]), torch.tensor([0, 0, 1, 2]))
    assert shares.tolist() == [0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(shares.sum(), scores)
    assert gradient.tolist() == [0, 0, 0, 0]


@settings(deadline=None, max_examples=30)
@for_all(st.randoms(use_true_random=False))
def test_the_loss_of_pairs_does_not_depend_on_row_order(random: Any) -> None:
    case = CASES[3]
    scores, labels, groups = scores_of(case, 0.5), given(case, "outcome_reward"), group_index(case)
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = prm_dpo(scores[order], labels[order], groups[order])
    torch.testing.assert_close(shuffled, prm_dpo(scores, labels, groups)[order])


@pytest.mark.parametrize("bounds", [{}, {"clip_low": math.inf, "clip_high": math.inf}])
def test_at_ratio_one_the_gradient_is_that_of_reinforce(bounds: dict[str, float]) -> None:
    case = CASES[1]
    logprobs = given(case, "logprobs").requires_grad_()
    tokens = int(mask(case).sum())
    clip = ppo_clip(logprobs, logprobs.detach(), given(case, "advantages"), weights(case), **bounds).loss
    reinforce = -(given(case, "advantages") * logprobs * mask(case)).sum() / tokens
    torch.testing.assert_close(torch.autograd.grad(clip, logprobs), torch.autograd.grad(reinforce, logprobs))


def test_without_clipping_the_surrogate_is_the_plain_importance_weighted_one() -> None:
    case = CASES[3]
    new, old, advantages = given(case, "logprobs"), given(case, "old_logprobs"), given(case, "advantages")
    ours = ppo_clip(new, old, advantages, weights(case), clip_low=math.inf, clip_high=math.inf)
    plain = -((new - old).exp() * advantages * weights(case)).sum()
    assert float(ours.loss) == pytest.approx(float(plain))
    assert not (ours.clipped_low | ours.clipped_high).any()


@each_case
@each_aggregation
def test_micro_batches_add_up(case: dict[str, Any], aggregation: str) -> None:
    logprobs = given(case, "logprobs").requires_grad_()
    lengths = torch.tensor(case["lengths"])

    def part(rows: slice) -> Tensor:
        flat = token_weights(lengths[rows], aggregation, tokens=int(lengths.sum()), responses=len(lengths))
        inside = mask(case)[rows]
        old, advantages = given(case, "old_logprobs")[rows], given(case, "advantages")[rows]
        return ppo_clip(logprobs[rows][inside], old[inside], advantages[inside], flat).loss

    (whole,) = torch.autograd.grad(part(slice(None)), logprobs)
    (parts,) = torch.autograd.grad(part(slice(0, 2)) + part(slice(2, 5)) + part(slice(5, None)), logprobs)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_micro_batches_of_the_prm_loss_add_up() -> None:
    scores = torch.tensor([0.3, -2.0, 5.0, 1.0], dtype=torch.float64)
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    cuts = (slice(0, 1), slice(1, 4))
    whole = prm_cross_entropy(scores, labels, denominator=4)
    torch.testing.assert_close(
        sum(prm_cross_entropy(scores[rows], labels[rows], denominator=4) for rows in cuts), whole
    )


@settings(deadline=None, max_examples=50)
@for_all(st.integers(0, 7), st.integers(0, 3), st.randoms(use_true_random=False), st.sampled_from(AGGREGATIONS))
def test_padding_and_row_order_change_no_loss(number: int, extra: int, random: Any, aggregation: str) -> None:
    """Rows in another order, rows padded with garbage, and flat tokens all have the same losses."""
    case = CASES[number]
    order = list(range(len(case["lengths"])))
    random.shuffle(order)
    inside = mask(case)
    lengths = torch.tensor(case["lengths"])
    flat = token_weights(lengths, aggregation, tokens=int(lengths.sum()), responses=len(lengths))
    names = ("logprobs", "old_logprobs", "advantages", "values", "prm_minus_ref_logprobs", "ref_logprobs")
    plain = {name: given(case, name)[inside] for name in names}

    def filled(values: Tensor, garbage: float) -> Tensor:
        padded = torch.full((len(order), inside.shape[1] + extra), garbage, dtype=torch.float64)
        padded[:, : inside.shape[1]][inside] = values
        return padded[order]

    wide = {name: filled(values, -3.0) for name, values in plain.items()}

    def losses(given_to: dict[str, Tensor], weights_of: Tensor) -> list[float]:
        new, old, advantages, values, returns, ref = given_to.values()
        policy = ppo_clip(new, old, advantages, weights_of, dual_clip=3.0)
        critic = value_loss(values + 0.1, values, returns, weights_of, clip=0.05)
        kl = (kl_estimate(new, ref, "k3") * weights_of).sum()
        taken = (policy.clipped_low, policy.clipped_high, policy.dual_clipped, critic.clipped)
        return [float(policy.loss), float(critic.loss), float(kl), *(float(which.sum()) for which in taken)]

    assert losses(wide, filled(flat, 0.0)) == pytest.approx(losses(plain, flat), abs=1e-9)
