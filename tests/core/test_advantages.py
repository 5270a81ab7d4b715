from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from primecli.core.advantages import group_sums, mean_of_others, rloo, whiten
from primecli.core.ragged import response_mask
from tests.core.reference import CASES, NAMES, float64, given, group_index, mask

each_case = pytest.mark.parametrize("case", CASES, ids=NAMES)


def close(ours: Tensor, reference: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, float64(reference), atol=tolerance, rtol=0)


@each_case
def test_rloo_is_the_papers(case: dict[str, Any]) -> None:
    ours = rloo(given(case, "outcome_reward"), given(case, "prm_minus_ref_logprobs"), mask(case), group_index(case))
    close(ours, case["expected"]["prime_paper_rloo"]["advantages_unwhitened"], 1e-12)


@each_case
def test_rloo_with_the_recipes_baseline(case: dict[str, Any]) -> None:
    expected = case["expected"]["prime_recipe_rloo"]
    returns = rloo(
        given(case, "outcome_reward"),
        given(case, "prm_minus_ref_logprobs"),
        mask(case),
        group_index(case),
        outcome_coef=expected["outcome_coef"],
        process_coef=expected["process_coef"],
        process_baseline="recipe",
    )
    close(returns, expected["returns"])
    close(whiten(returns, mask(case)), expected["advantages_whitened"])


@each_case
def test_outcome_alone_is_plain_rloo(case: dict[str, Any]) -> None:
    ours = rloo(
        given(case, "outcome_reward"),
        given(case, "prm_minus_ref_logprobs"),
        mask(case),
        group_index(case),
        process_coef=0,
    )
    close(ours, case["expected"]["rloo_outcome"])


@each_case
def test_whiten(case: dict[str, Any]) -> None:
    close(whiten(given(case, "advantages"), mask(case)), case["expected"]["whiten"])


def test_rloo_worked_by_hand_with_a_discount() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    process = float64([[0.5, 0.1], [0.2, 0.0]])
    ours = rloo(float64([1, 0]), process, mask, torch.tensor([0, 0]), gamma=0.5, outcome_coef=2)
    # row 0: others' mean token reward 0.2, so 0.3 and -0.1; 0.3 + 0.5 * -0.1 = 0.25; outcome 2 * (1 - 0)
    # row 1: others' mean token reward 0.3, so -0.1; outcome 2 * (0 - 1)
    torch.testing.assert_close(ours, float64([[2.25, 1.9], [-2.1, 0.0]]))


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


baselines = st.sampled_from(["paper", "recipe"])


@settings(deadline=None, max_examples=50)
@for_all(batches(), st.integers(1, 3), st.floats(0.1, 1.0), baselines)
def test_padding_changes_nothing(
    batch: tuple[Tensor, Tensor, Tensor, Tensor], extra: int, gamma: float, baseline: str
) -> None:
    outcome, process, tokens, groups = batch
    narrow = rloo(outcome, process, tokens, groups, gamma=gamma, process_baseline=baseline)
    garbage = torch.full((len(outcome), extra), 7.0, dtype=torch.float64)
    wide_mask = torch.cat([tokens, torch.zeros_like(garbage, dtype=torch.bool)], dim=1)
    wide = rloo(
        outcome, torch.cat([process, garbage], dim=1), wide_mask, groups, gamma=gamma, process_baseline=baseline
    )
    torch.testing.assert_close(wide[:, : tokens.shape[1]], narrow, rtol=0, atol=1e-12)
    assert not wide[:, tokens.shape[1] :].any()
    torch.testing.assert_close(whiten(wide, wide_mask)[:, : tokens.shape[1]], whiten(narrow, tokens))


@settings(deadline=None, max_examples=50)
@for_all(batches(), st.randoms(use_true_random=False), baselines)
def test_row_order_changes_nothing(batch: tuple[Tensor, Tensor, Tensor, Tensor], random: Any, baseline: str) -> None:
    outcome, process, tokens, groups = batch
    order = list(range(len(outcome)))
    random.shuffle(order)
    straight = rloo(outcome, process, tokens, groups, process_baseline=baseline)
    shuffled = rloo(outcome[order], process[order], tokens[order], groups[order], process_baseline=baseline)
    torch.testing.assert_close(shuffled, straight[order], rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=50)
@for_all(batches())
def test_outcome_advantages_sum_to_zero_in_a_group(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    outcome, process, tokens, groups = batch
    first_token = rloo(outcome, process, tokens, groups, process_coef=0)[:, 0]
    torch.testing.assert_close(group_sums(first_token, groups), torch.zeros_like(first_token), rtol=0, atol=1e-12)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="one response only"):
        mean_of_others(torch.ones(3), torch.tensor([0, 0, 1]))


def test_whitened_values_have_unbiased_variance_one() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = response_mask(torch.tensor([3, 7, 5]))
    values = whiten(torch.randn(3, 7, generator=generator, dtype=torch.float64), tokens)[tokens]
    assert abs(float(values.mean())) < 1e-12
    assert abs(float(values.var(correction=1)) - 1) < 1e-7
