from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from primecli.core.advantages import (
    Centered,
    Estimator,
    discounted,
    dr_grpo,
    gae,
    group_std,
    group_sums,
    grpo,
    mean_of_others,
    on_last_token,
    reinforce,
    rloo,
    rloo_recipe,
    whiten,
    whitening,
)
from primecli.core.ragged import response_mask
from primecli.core.registry import ESTIMATORS, WITHOUT_BASELINE, estimator
from primecli.core.rewards import reward_to_go
from tests.core.reference import CASES, NAMES, float64, given, group_index, mask

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)
every_name = sorted([*ESTIMATORS, "rloo-recipe"])
each_estimator = pytest.mark.parametrize("name", every_name)


def close(ours: Tensor, reference: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, float64(reference), atol=tolerance, rtol=0)


def by_name(name: str) -> Estimator:
    return rloo_recipe if name == "rloo-recipe" else estimator(name)


def centered(case: dict[str, Any], name: str) -> Centered:
    process = given(case, "prm_minus_ref_logprobs")
    return by_name(name)(given(case, "outcome_reward"), process, mask(case), group_index(case))


@each_case
def test_rloo_is_the_papers(case: dict[str, Any]) -> None:
    parts = discounted(centered(case, "rloo"), mask(case))
    close(parts.outcome + parts.process, case["expected"]["prime_paper_rloo"]["advantages_unwhitened"], 1e-12)


@each_case
def test_rloo_with_the_recipes_baseline(case: dict[str, Any]) -> None:
    expected = case["expected"]["prime_recipe_rloo"]
    parts = discounted(centered(case, "rloo-recipe"), mask(case))
    returns = expected["outcome_coef"] * parts.outcome + expected["process_coef"] * parts.process
    close(returns, expected["returns"])
    close(whiten(returns, mask(case)), expected["advantages_whitened"])


@each_case
def test_outcome_alone_is_plain_rloo(case: dict[str, Any]) -> None:
    close(discounted(centered(case, "rloo"), mask(case)).outcome, case["expected"]["rloo_outcome"])


@each_case
def test_grpo_of_the_outcome(case: dict[str, Any]) -> None:
    close(discounted(centered(case, "grpo"), mask(case)).outcome, case["expected"]["grpo_outcome"]["advantages"])


@each_case
def test_gae(case: dict[str, Any]) -> None:
    expected, values = case["expected"]["gae"], given(case, "values")
    rewards = given(case, expected["rewards_are"])
    ours = gae(rewards, values, mask(case), gamma=expected["gamma"], lam=expected["lam"])
    close((ours + values) * mask(case), expected["returns"])
    close(whiten(ours, mask(case)), expected["advantages_whitened"])


@each_case
def test_whiten(case: dict[str, Any]) -> None:
    close(whiten(given(case, "advantages"), mask(case)), case["expected"]["whiten"])


def test_rloo_worked_by_hand_with_a_discount() -> None:
    tokens = torch.tensor([[True, True], [True, False]])
    process = float64([[0.5, 0.1], [0.2, 0.0]])
    ours = discounted(rloo(float64([1, 0]), process, tokens, torch.tensor([0, 0])), tokens, process_gamma=0.5)
    # row 0: others' mean token reward 0.2, so 0.3 and -0.1; 0.3 + 0.5 * -0.1 = 0.25
    # row 1: others' mean token reward 0.3, so -0.1
    torch.testing.assert_close(ours.process, float64([[0.25, -0.1], [-0.1, 0.0]]))
    torch.testing.assert_close(ours.outcome, float64([[1.0, 1.0], [-1.0, 0.0]]))


def test_the_outcome_is_discounted_from_the_last_token() -> None:
    tokens = torch.tensor([[True, True, True], [True, False, False]])
    ours = discounted(Centered(float64([1, -2]), torch.zeros(2, 3).double()), tokens, outcome_gamma=0.5)
    torch.testing.assert_close(ours.outcome, float64([[0.25, 0.5, 1.0], [-2.0, 0.0, 0.0]]))


def test_grpo_worked_by_hand() -> None:
    tokens = torch.tensor([[True, True], [True, False], [True, True]])
    process = float64([[1.0, 3.0], [5.0, 0.0], [2.0, 0.0]])  # mean rewards 2, 5, 1: mean 8/3, variance 13/3
    ours = grpo(float64([1, 0, 0]), process, tokens, torch.zeros(3, dtype=torch.int64))
    # outcomes: mean 1/3, unbiased variance (4/9 + 1/9 + 1/9) / 2 = 1/3
    torch.testing.assert_close(ours.outcome, float64([2 / 3, -1 / 3, -1 / 3]) / (3**-0.5 + 1e-6))
    expected = float64([[1 - 8 / 3, 3 - 8 / 3], [5 - 8 / 3, 0.0], [2 - 8 / 3, -8 / 3]]) / ((13 / 3) ** 0.5 + 1e-6)
    torch.testing.assert_close(ours.process, expected)


def test_reinforce_has_no_baseline_and_takes_groups_of_one() -> None:
    tokens = torch.tensor([[True, True]])
    ours = discounted(reinforce(float64([1]), float64([[0.5, 0.25]]), tokens, torch.tensor([0])), tokens)
    torch.testing.assert_close(ours.outcome + ours.process, float64([[1.75, 1.25]]))


def test_gae_at_lambda_one_is_return_less_value_and_at_zero_the_td_error() -> None:
    case = CASES[3]
    rewards, values, tokens = given(case, "prm_minus_ref_logprobs"), given(case, "values"), mask(case)
    monte_carlo = reward_to_go(rewards * tokens, 0.9) - values * tokens
    torch.testing.assert_close(gae(rewards, values, tokens, gamma=0.9, lam=1.0), monte_carlo)
    ended = torch.cat([(values * tokens)[:, 1:], torch.zeros(len(values), 1).double()], dim=1)
    error = (rewards + 0.9 * ended - values) * tokens
    torch.testing.assert_close(gae(rewards, values, tokens, gamma=0.9, lam=0.0), error)


def test_gae_is_linear_so_sources_can_be_told_apart() -> None:
    case = CASES[1]
    process, values, tokens = given(case, "prm_minus_ref_logprobs"), given(case, "values"), mask(case)
    outcome = on_last_token(given(case, "outcome_reward"), tokens)
    nothing = torch.zeros_like(values)
    whole = gae(2 * outcome + process, values, tokens)
    parts = 2 * gae(outcome, nothing, tokens) + gae(process, nothing, tokens) + gae(nothing, values, tokens)
    torch.testing.assert_close(whole, parts)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    rows = groups * size
    lengths = torch.tensor(draw(st.lists(st.integers(1, 6), min_size=rows, max_size=rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = response_mask(lengths)
    process = torch.randn(tokens.shape, generator=generator, dtype=torch.float64) * tokens
    outcome = torch.randint(0, 2, (rows,), generator=generator).double()
    return outcome, process, tokens, torch.arange(rows) // size


names = st.sampled_from(every_name)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def advantages(name: str, outcome: Tensor, process: Tensor, tokens: Tensor, groups: Tensor, gamma: float) -> Tensor:
    found = by_name(name)(outcome, process, tokens, groups)
    if name == "gae":
        reward = on_last_token(found.outcome, tokens) + found.process
        return gae(reward, process.cos(), tokens, gamma=gamma)
    parts = discounted(found, tokens, outcome_gamma=gamma, process_gamma=gamma)
    return parts.outcome + parts.process


@settings(deadline=None, max_examples=100)
@for_all(batches(), st.integers(1, 3), st.floats(0.1, 1.0), names)
def test_padding_changes_nothing(batch: Batch, extra: int, gamma: float, name: str) -> None:
    outcome, process, tokens, groups = batch
    narrow = advantages(name, *batch, gamma)
    garbage = torch.full((len(outcome), extra), 7.0, dtype=torch.float64)
    wide_mask = torch.cat([tokens, torch.zeros_like(garbage, dtype=torch.bool)], dim=1)
    wide = advantages(name, outcome, torch.cat([process, garbage], dim=1), wide_mask, groups, gamma)
    torch.testing.assert_close(wide[:, : tokens.shape[1]], narrow, rtol=0, atol=1e-9)
    assert not wide[:, tokens.shape[1] :].any()
    if tokens.sum() > 1:
        torch.testing.assert_close(whiten(wide, wide_mask)[:, : tokens.shape[1]], whiten(narrow, tokens))


@settings(deadline=None, max_examples=100)
@for_all(batches(), st.randoms(use_true_random=False), names)
def test_row_order_changes_nothing(batch: Batch, random: Any, name: str) -> None:
    outcome, process, tokens, groups = batch
    order = list(range(len(outcome)))
    random.shuffle(order)
    straight = advantages(name, *batch, 0.9)
    shuffled = advantages(name, outcome[order], process[order], tokens[order], groups[order], 0.9)
    torch.testing.assert_close(shuffled, straight[order], rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=50)
@for_all(batches(), st.sampled_from(sorted({*every_name} - {*WITHOUT_BASELINE})))
def test_centred_rewards_sum_to_zero_in_a_group(batch: Batch, name: str) -> None:
    outcome, process, tokens, groups = batch
    found = by_name(name)(outcome, process, tokens, groups)
    assert float(group_sums(found.outcome, groups).abs().max()) < 1e-9
    means = found.process.sum(-1) / tokens.sum(-1)  # of each response
    scale = 1 + float(found.process.abs().max())
    assert float(group_sums(means, groups).abs().max()) < 1e-9 * scale


@settings(deadline=None, max_examples=50)
@for_all(batches())
def test_the_group_estimators_are_multiples_of_each_other(batch: Batch) -> None:
    outcome, _, _, groups = batch
    sizes = group_sums(torch.ones_like(outcome), groups)
    plain, leave_one_out = dr_grpo(*batch), rloo(*batch)
    torch.testing.assert_close(leave_one_out.outcome, plain.outcome * sizes / (sizes - 1))
    torch.testing.assert_close(grpo(*batch).outcome, plain.outcome / (group_std(outcome, groups) + 1e-6))


@each_estimator
def test_rewards_off_the_mask_do_not_count(name: str) -> None:
    """With rewards only at the ends of steps, the other tokens are neither rewarded nor part of a baseline."""
    ends = torch.tensor([[False, True, False, True], [False, False, False, True]])
    process = float64([[9, 1, 9, 2], [9, 9, 9, 4]])
    clean = process * ends
    groups = torch.tensor([0, 0])
    ours = by_name(name)(float64([1, 0]), process, ends, groups)
    torch.testing.assert_close(ours.process, by_name(name)(float64([1, 0]), clean, ends, groups).process)
    assert not ours.process[~ends].any()
    if name == "rloo":
        torch.testing.assert_close(ours.process, float64([[0, 1 - 4, 0, 2 - 4], [0, 0, 0, 4 - 1.5]]))


@pytest.mark.parametrize("name", ["rloo", "rloo-recipe", "grpo", "dr-grpo"])
def test_a_group_of_one_is_refused(name: str) -> None:
    tokens = torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="only one response"):
        by_name(name)(torch.ones(3), torch.ones(3, 1), tokens, torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="only one response"):
        mean_of_others(torch.ones(3), torch.tensor([0, 0, 1]))


def test_the_recipes_baseline_is_the_papers_by_another_factor() -> None:
    case = CASES[0]
    n = case["group_size"]
    paper, recipe = centered(case, "rloo").process, centered(case, "rloo-recipe").process
    means = (given(case, "prm_minus_ref_logprobs") * mask(case)).sum(-1) / mask(case).sum(-1)
    # recipe = paper + (r - own mean) / (n - 1)
    own = (given(case, "prm_minus_ref_logprobs") - means[:, None]) * mask(case) / (n - 1)
    torch.testing.assert_close(recipe, paper + own)


def test_whitened_values_have_unbiased_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = response_mask(torch.tensor([3, 7, 5]))
    plain = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    values = whiten(plain, tokens)[tokens]
    assert abs(float(values.mean())) < 1e-12
    assert abs(float(values.var(correction=1)) - 1) < 1e-7
    mean, scale = whitening(plain, tokens)
    torch.testing.assert_close((plain[tokens] - mean) * scale, values)


def test_one_token_cannot_be_whitened() -> None:
    with pytest.raises(ValueError, match="at least two tokens"):
        whiten(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
