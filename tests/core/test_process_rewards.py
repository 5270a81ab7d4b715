"""Forms, baselines and weights of process rewards, against the values that public implementations return."""

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
    discounted,
    dr_grpo,
    gdpo,
    group_std,
    group_sums,
    grpo,
    maxrl,
    on_last_token,
    reinforce,
    rloo,
    rloo_recipe,
    whiten,
)
from primecli.core.process_rewards import (
    by_position,
    min_form,
    pooled,
    redistributed,
    rloo_per_token,
    softmax_over_steps,
    source_weights,
    standardized_values,
    step_discounts,
    tokens_per_step,
    trust,
    wrong_centered,
)
from primecli.core.ragged import response_mask
from primecli.core.registry import ESTIMATORS, PROCESS_FORMS, WITHOUT_BASELINE, estimator, process_form
from primecli.core.rewards import drop_last_token, reward_to_go, sum_into
from tests.core.reference import float64, given, mask
from tests.core.reference_2 import CASES_2, NAMES_2

each_case = pytest.mark.parametrize("case", CASES_2, ids=NAMES_2)


def close(ours: Tensor, reference: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(ours, float64(reference), atol=tolerance, rtol=0)


def groups_of(case: dict[str, Any]) -> Tensor:
    return torch.tensor(case["group_index"])


def ragged(rows: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as (B, T) and their mask."""
    tokens = response_mask(torch.tensor([len(row) for row in rows]))
    values = torch.zeros(tokens.shape, dtype=torch.float64)
    values[tokens] = float64([value for row in rows for value in row])
    return values, tokens


# ITPO: a turn is a run of ones in turn_mask; other tokens are the environment's and have no reward


def turn_ends(turns: Tensor) -> Tensor:
    return turns & ~torch.cat([turns[:, 1:], torch.zeros_like(turns[:, :1])], dim=1)


def summed_turns(itpo: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed reward of each turn on its last token, the ends, the turn mask, and the tokens of each turn."""
    turns = torch.tensor(itpo["turn_mask"]).bool()
    ends, rewards = turn_ends(turns), float64(itpo["token_implicit_rewards"])
    everywhere = torch.ones_like(turns)
    sums, lengths = (sum_into(values, ends, everywhere) * ends for values in (rewards * turns, turns.double()))
    return sums, ends, turns, lengths


def shares_by_turn(shares: Tensor, ends: Tensor) -> list[list[float]]:
    return [row[end].tolist() for row, end in zip(shares, ends, strict=True)]


def lengthened(sums: Tensor, ends: Tensor, lengths: Tensor) -> Tensor:
    """The source's norm variant: a turn's mean reward times the average turn length of the batch."""
    return torch.where(ends, sums / lengths.clamp(min=1) * lengths[ends].mean(), 0.0)


@each_case
def test_the_shares_of_itpo(case: dict[str, Any]) -> None:
    itpo = case["expected"]["itpo"]
    sums, ends, _, lengths = summed_turns(itpo)
    for expected in itpo["proportions"]:
        for name, logits in (
            ("softmax_of_sums", sums),
            ("softmax_of_means_times_avg_len", lengthened(sums, ends, lengths)),
        ):
            ours = shares_by_turn(softmax_over_steps(logits / expected["temperature"], ends), ends)
            for row, reference in zip(ours, expected[name], strict=True):
                assert row == pytest.approx(reference, abs=1e-6)


@each_case
def test_redistribution_through_the_estimator_of_itpo(case: dict[str, Any]) -> None:
    itpo, groups = case["expected"]["itpo"], groups_of(case)
    sums, ends, turns, lengths = summed_turns(itpo)
    outcome = float64(itpo["outcome"])
    for expected in itpo["advantage_variants"]:
        process = sums
        if expected["estimator"] == "rloo_itponorm":
            logits = lengthened(sums, ends, lengths)
            process = redistributed(logits, ends, outcome, groups, temperature=expected["temperature"])
        centered = rloo_recipe(outcome, process, ends, groups)
        last = turns.long().cumsum(-1) == turns.sum(-1, keepdim=True)  # the last turn's last token comes first in it
        on_last = (last & turns).double() * centered.outcome[:, None]
        rewards = expected["process_coef"] * centered.process + expected["outcome_coef"] * on_last
        ours = reward_to_go(rewards)
        torch.testing.assert_close(ours * turns, float64(expected["returns"]) * turns, atol=1e-6, rtol=0)
        close(whiten(ours, turns), expected["advantages_whitened"])


# PURE


@each_case
def test_the_min_form_of_pure(case: dict[str, Any]) -> None:
    pure = case["expected"]["pure_min_form"]
    steps, raw = torch.tensor(pure["step_mask"]), float64(pure["raw_step_rewards"])
    nothing = raw.new_zeros(len(raw))
    for expected in pure["variants"]:
        # without the form, the source takes the mean over the steps: that of an endless temperature
        temperature = 1e12 if expected["disable_min_form"] else expected["temperature"]
        ours = min_form(raw, steps, nothing, nothing.long(), temperature=temperature)
        close(ours, expected["step_rewards"])
        close(ours.sum(-1), expected["response_reward"])


@each_case
def test_the_estimator_of_pure(case: dict[str, Any]) -> None:
    pure, groups, tokens = case["expected"]["pure_rloo"], groups_of(case), mask(case)
    rewards, ends = float64(pure["step_rewards_on_separators"]), torch.tensor(pure["separator_mask"])
    without_separator = torch.zeros_like(rewards)  # the source's count, which leaves the separator out
    counts = [count for row, end in zip(pure["tokens_per_step_without_separator"], ends, strict=True)
              for count in row[: int(end.sum())]]  # fmt: skip
    without_separator[ends] = float64(counts)
    assert torch.equal(tokens_per_step(ends), torch.where(ends, without_separator + 1, 0.0))
    outcome = given(case, "outcome_reward")
    for expected in pure["variants"]:
        centered = rloo(outcome, rewards, ends, groups)
        process = centered.process
        if expected["baseline"] == "token":
            process = pures_per_token(rewards, ends, tokens, groups, without_separator)
        close(process + expected["verifier_coef"] * on_last_token(centered.outcome, tokens), expected["rewards"])
        parts = discounted(Centered(centered.outcome, process), tokens)
        returns = parts.process + expected["verifier_coef"] * parts.outcome
        close(returns, expected["returns"])
        close(returns.masked_fill(ends, 0.0), expected["returns_separators_zeroed"])


def pures_per_token(rewards: Tensor, ends: Tensor, tokens: Tensor, groups: Tensor, counted: Tensor) -> Tensor:
    """The source's: its lengths count separators, and the tokens of its steps do not."""
    ours = rloo_per_token(rewards, ends, groups, tokens_per_step(ends))
    baseline = torch.where(ends, (rewards - ours) / tokens_per_step(ends), 0.0)  # the others' reward per token
    assert torch.equal(tokens_per_step(ends).sum(-1), tokens.sum(-1).double())
    return (rewards - baseline * counted) * ends


@each_case
def test_the_estimator_of_pures_other_branch(case: dict[str, Any]) -> None:
    """It divides by the padded width, and its running minimum goes through the zeros between steps."""
    expected, groups, tokens = case["expected"]["pure_verl_rloo"], groups_of(case), mask(case)
    rewards = float64(case["expected"]["pure_rloo"]["step_rewards_on_separators"])
    sizes = group_sums(torch.ones(len(groups)).double(), groups)
    for variant in expected["variants"]:
        returns = reward_to_go(rewards) if variant["return_aggregate"] == "sum" else (
            rewards.flip(-1).cummin(-1).values.flip(-1)
        )  # fmt: skip
        totals = returns.sum(-1)
        others = (group_sums(totals, groups) - totals) / (sizes - 1) / rewards.shape[1]
        ours = (returns - others[:, None]) * tokens
        close(ours, variant["returns"])
        close(whiten(ours, tokens) if variant["whiten"] else ours, variant["advantages"])


# iStar: a row of the reference is a step


def steps_as_responses(istar: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The summed rewards of the steps of each trajectory, (B, S), their mask, and the trajectories' groups."""
    names = list(dict.fromkeys(istar["row_trajectory"]))
    sums = [sum(row) for row in istar["step_token_rewards"]]
    rows = [[total for total, own in zip(sums, istar["row_trajectory"], strict=True) if own == name] for name in names]
    return *ragged(rows), torch.tensor([int(name.split("-")[0]) for name in names])


def broadcast(by_row: Tensor, istar: dict[str, Any]) -> Tensor:
    return by_row[:, None] * torch.tensor(istar["row_mask"])


@each_case
def test_pooled_steps_are_those_of_istar(case: dict[str, Any]) -> None:
    istar = case["expected"]["istar"]
    rewards, steps, groups = steps_as_responses(istar)
    tokens = torch.tensor(istar["row_mask"])
    episode, rows = float64(istar["episode_reward_per_row"]), torch.tensor(istar["row_group"])
    everywhere = torch.ones(len(rows), 1, dtype=torch.bool)
    functions = {"rloo": rloo, "rloo_process_only": rloo, "grpo_mean": dr_grpo, "grpo_mean_std": grpo}
    seen = 0
    for expected in istar["variants"]:
        name = expected["estimator"]
        if expected["dedup_by"] == "every_row":  # the source takes the episode's statistics over the steps, too
            function = functions.get(name, dr_grpo)
            by_step = broadcast(pooled(function, rewards, steps, groups)[steps], istar)
            by_episode = broadcast(pooled(function, episode[:, None], everywhere, rows)[:, 0], istar)
        else:
            by_step, by_episode = (broadcast(by_first_steps(name, values, istar), istar) for values in (
                rewards[steps], episode
            ))  # fmt: skip
        if name == "reinforce_pp_baseline":
            by_step, by_episode = whiten(by_step, tokens), whiten(by_episode, tokens)
        ours = by_step if name == "rloo_process_only" else by_episode + expected["step_coef"] * by_step
        close(ours, expected["advantages"])
        seen += 1
    assert seen == 10


def by_first_steps(name: str, values: Tensor, istar: dict[str, Any]) -> Tensor:
    """The source's default: the statistics of a group are those of the first step of each of its trajectories."""
    rows, names = torch.tensor(istar["row_group"]), istar["row_trajectory"]
    first = torch.tensor([names.index(own) == number for number, own in enumerate(names)])
    found = torch.zeros_like(values)
    for group in sorted({*rows.tolist()}):
        own, counted = values[rows == group], values[(rows == group) & first]
        n = len(counted)
        centred = own - (counted.mean() if n > 1 else 0.0)
        if name.startswith("rloo"):
            centred = centred * (n / (n - 1) if n > 1 else 1.0)
        elif name == "grpo_mean_std":
            centred = centred / ((counted.std() if n > 1 else 1.0) + 1e-6)
        found[rows == group] = centred
    return found


# IPVRM


@each_case
def test_values_standardised_are_those_of_ipvrm(case: dict[str, Any]) -> None:
    """Its code takes the statistics over the whole mini-batch, leaves the last token out, and whitens each source."""
    tokens, groups, outcome = mask(case), groups_of(case), given(case, "outcome_reward")
    sizes = group_sums(torch.ones_like(outcome), groups)
    deviations = outcome - group_sums(outcome, groups) / sizes
    std = (group_sums(deviations.square(), groups) / sizes).sqrt().clamp(min=1e-6)
    for expected in case["expected"]["ipvrm_token_advantage"]["variants"]:
        rewards = drop_last_token(expected["beta"] * given(case, "prm_minus_ref_logprobs"), tokens)
        close(rewards, expected["td_rewards"])
        ours = standardized_values(rewards, tokens, torch.zeros_like(groups))
        credit = reward_to_go(ours, expected["gamma"] * expected["lam"]) * tokens
        by_source = (
            expected["process_coef"] * whiten(credit, tokens)
            + expected["outcome_coef"] * (deviations / std)[:, None] * tokens
        )
        close(by_source, expected["advantages"])
        scaled = float64(expected["scaled_td"])[tokens]  # divided by the deviation of the values, not centred
        close(ours[tokens], (scaled - scaled.mean()).tolist())


def test_values_standardised_by_group_worked_by_hand() -> None:
    rewards, tokens = ragged([[1.0, 1.0], [0.0], [3.0, -3.0], [2.0, 2.0]])
    ours = standardized_values(rewards, tokens, torch.tensor([0, 0, 1, 1]))
    # group 0: rewards 1, 1, 0, mean 2/3; values 1, 2, 0, deviation sqrt(2/3)
    # group 1: rewards 3, -3, 2, 2, mean 1; values 3, 0, 2, 4, mean 2.25, variance (.5625 + 5.0625 + .0625 + 3.0625) / 4
    first, second = (2 / 3) ** 0.5, (8.75 / 4) ** 0.5
    close(ours, [[1 / 3 / first, 1 / 3 / first], [-2 / 3 / first, 0.0], [2 / second, -4 / second], [1 / second] * 2])


# PROGRS and SPRO have no public code


def test_wrong_responses_centred_among_themselves() -> None:
    rewards, tokens = ragged([[0.9, 0.7], [0.6], [0.2, 0.4, 0.3], [0.5], [0.8]])
    outcome, groups = float64([1, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    ours = wrong_centered(rewards, tokens, outcome, groups)
    # group 0: wrong responses have means 0.6 and 0.3, mean 0.45; group 1: a single wrong one, its own mean
    close(ours, [[0.9, 0.7, 0], [0.15, 0, 0], [-0.25, -0.05, -0.15], [0, 0, 0], [0.8, 0, 0]])


def test_running_sums_are_compared_at_the_same_position() -> None:
    rewards, tokens = ragged([[1.0, 2.0, 3.0], [4.0, -2.0], [1.0]])
    # running sums 1 3 6; 4 2; 1. Means: 2 (of three), 2.5 (of two), and the third token stands alone
    ours = by_position(dr_grpo, rewards, tokens, tokens, torch.tensor([0, 0, 0]))
    close(ours, [[-1.0, 0.5, 0.0], [2.0, -0.5, 0.0], [-1.0, 0.0, 0.0]])
    others = by_position(rloo, rewards, tokens, tokens, torch.tensor([0, 0, 0]))
    close(others, [[1 - 2.5, 3 - 2, 0.0], [4 - 1, 2 - 3, 0.0], [1 - 2.5, 0.0, 0.0]])


def test_running_sums_are_compared_within_the_group() -> None:
    rewards, tokens = ragged([[1.0, 2.0], [10.0], [3.0], [20.0, 4.0]])
    ours = by_position(dr_grpo, rewards, tokens, tokens, torch.tensor([0, 1, 0, 1]))
    close(ours, [[-1.0, 0.0], [-5.0, 0.0], [1.0, 0.0], [5.0, 0.0]])


def test_positions_are_steps_where_rewards_are_by_step() -> None:
    rewards, tokens = ragged([[0.0, 1.0, 0.0, 2.0], [4.0, 0.0, -2.0]])
    ends = torch.tensor([[False, True, False, True], [True, False, True, False]])
    ours = by_position(dr_grpo, rewards, ends, tokens, torch.tensor([0, 0]))
    close(ours, [[-1.5, -1.5, 0.5, 0.5], [1.5, -0.5, -0.5, 0.0]])


# GDPO and MaxRL


@each_case
def test_sources_normalised_apart_are_gdpos(case: dict[str, Any]) -> None:
    groups, tokens, components = groups_of(case), mask(case), given(case, "reward_components")
    one = torch.ones(len(groups), 1, dtype=torch.bool)
    by_component = [gdpo(component, component[:, None], one, groups) for component in components.T]
    for found in by_component:
        torch.testing.assert_close(found.outcome, found.process[:, 0])
    for expected in case["expected"]["gdpo_verl"]["variants"]:
        weights = expected["weights"] or [1.0] * len(expected["components"])
        parts = [dr_grpo(components[:, number], one * 0.0, one, groups).outcome for number in expected["components"]]
        if expected["divide_by_std"]:
            parts = [by_component[number].outcome for number in expected["components"]]
        total = sum((weight * part for weight, part in zip(weights, parts, strict=True)), torch.zeros(len(groups)))
        close(whiten(total[:, None] * tokens, tokens), expected["advantages"])


@each_case
def test_gdpo_over_sequences_is_trls(case: dict[str, Any]) -> None:
    """TRL's epsilon is 1e-4, and it whitens over responses, with the same epsilon outside the root."""
    groups, components = groups_of(case), given(case, "reward_components")
    one = torch.ones(len(groups), 1, dtype=torch.bool)
    for expected in case["expected"]["gdpo_trl"]["variants"]:
        weights = float64(expected["weights"])
        if expected["aggregation"] == "normalize_then_sum":
            total = torch.zeros(len(groups)).double()
            for weight, component in zip(weights, components.T, strict=True):
                ours_to_theirs = (group_std(component, groups) + 1e-6) / (group_std(component, groups) + 1e-4)
                total += weight * gdpo(component, one * 0.0, one, groups).outcome * ours_to_theirs
            ours = (total - total.mean()) / (total.std() + 1e-4)
        else:
            summed = components @ weights
            plain = dr_grpo(summed, one * 0.0, one, groups).outcome
            scales: dict[str, Any] = {
                "none": 1.0,
                "batch": summed.std() + 1e-4,
                "group": group_std(summed, groups) + 1e-4,
            }
            ours = plain / scales[expected["scale_rewards"]]
        close(ours, expected["advantages_per_sequence"])


def test_gdpo_gives_both_sources_the_same_deviation_in_every_group() -> None:
    rewards, tokens = ragged([[1.0, 2.0, 3.0], [4.0, -2.0], [1.0], [0.01], [0.02, 0.05], [0.0]])
    found = gdpo(float64([1, 0, 0, 0.2, 0.3, 0]), rewards, tokens, torch.tensor([0, 0, 0, 1, 1, 1]))
    for group in (slice(0, 3), slice(3, 6)):
        assert float(found.outcome[group].std()) == pytest.approx(1, abs=1e-4)
        assert float(found.process[group].sum(-1).std()) == pytest.approx(1, abs=1e-3)


@each_case
def test_maxrl(case: dict[str, Any]) -> None:
    expected, groups = case["expected"]["maxrl"], groups_of(case)
    nothing = torch.zeros(len(groups), 1).double()
    outcome, scalar = given(case, "outcome_reward"), given(case, "scalar_reward")
    close(maxrl(outcome, nothing, nothing.bool(), groups).outcome, expected["prime_rl_outcome_reward"])
    close(maxrl(outcome, nothing, nothing.bool(), groups, epsilon=1e-6).outcome, expected["skyrl_outcome_reward"])
    ours = maxrl(scalar.abs(), nothing, nothing.bool(), groups, epsilon=1e-6).outcome
    close(ours, expected["skyrl_abs_scalar_reward"])


def test_maxrl_weighs_process_rewards_like_their_prompt() -> None:
    rewards, tokens = ragged([[0.4], [0.2], [0.4], [0.2], [1.0], [2.0]])
    found = maxrl(float64([1, 1, 1, 0, 0, 0]), rewards, tokens, torch.tensor([0, 0, 1, 1, 2, 2]))
    close(found.process, [[0.1], [-0.1], [0.2], [-0.2], [0], [0]])  # divided by 1 and by 0.5; no right one, no weight


@each_case
def test_outcome_estimators(case: dict[str, Any]) -> None:
    expected, groups, tokens = case["expected"]["outcome_estimators_verl"], groups_of(case), mask(case)
    nothing = torch.zeros(tokens.shape).double()
    for name in ("scalar_reward", "outcome_reward"):
        reward, values = given(case, name), expected[name]

        def advantages(estimator_name: str, gamma: float = 1.0, reward: Tensor = reward) -> Tensor:
            centered = estimator(estimator_name)(reward, nothing, tokens, groups)
            return discounted(centered, tokens, outcome_gamma=gamma).outcome

        close(advantages("rloo"), values["rloo"])
        close(advantages("grpo"), values["grpo"])
        close(advantages("dr-grpo"), values["dr_grpo"])
        close(whiten(advantages("reinforce++-baseline"), tokens), values["reinforce_plus_plus_baseline"])
        for variant in values["reinforce_plus_plus"]:
            returns = advantages("reinforce++", variant["gamma"])
            close(returns, variant["returns"])
            close(whiten(returns, tokens), variant["advantages"])
    both = discounted(reinforce(given(case, "scalar_reward"), given(case, "token_rewards"), tokens, groups), tokens)
    for whitened in expected["token_rewards_plus_scalar_reward"].values():
        close(whiten(both.outcome + both.process, tokens), whitened)


# Properties


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outcomes, process rewards at the ends of steps, the ends, the response mask, the groups."""
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    rows = groups * size
    lengths = torch.tensor(draw(st.lists(st.integers(1, 6), min_size=rows, max_size=rows)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = response_mask(lengths)
    ends = (torch.rand(tokens.shape, generator=generator) < draw(st.floats(0.2, 1.0))) & tokens
    ends[torch.arange(rows), lengths - 1] = True
    process = torch.randn(tokens.shape, generator=generator, dtype=torch.float64) * ends
    outcome = torch.randint(0, 2, (rows,), generator=generator).double()
    return outcome, process, ends, tokens, torch.arange(rows) // size


Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
each_form = st.sampled_from(sorted(PROCESS_FORMS))
COMPARING = [name for name in ESTIMATORS if name not in WITHOUT_BASELINE]


@settings(deadline=None, max_examples=60)
@for_all(batches(), st.floats(0.01, 10))
def test_what_is_redistributed_sums_to_the_outcome(batch: Batch, temperature: float) -> None:
    outcome, process, ends, _, groups = batch
    ours = redistributed(process, ends, outcome, groups, temperature=temperature)
    torch.testing.assert_close(ours.sum(-1), outcome, rtol=0, atol=1e-9)
    assert not ours[~ends].any()
    order = process[0][ends[0]].argsort()
    assert bool((ours[0][ends[0]][order].diff() >= 0).all())  # a better step is never credited less (outcomes are >= 0)


@settings(deadline=None, max_examples=30)
@for_all(batches())
def test_the_min_form_goes_to_the_smallest_reward(batch: Batch) -> None:
    outcome, process, ends, _, groups = batch
    ours = min_form(process, ends, outcome, groups, temperature=1e-6).sum(-1)
    smallest = process.masked_fill(~ends, torch.inf).amin(-1)
    torch.testing.assert_close(ours, smallest, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=60)
@for_all(batches(), st.floats(-3, 3), st.sampled_from(COMPARING))
def test_a_constant_process_reward_changes_no_advantage(batch: Batch, constant: float, name: str) -> None:
    """Where it is compared by reward, one constant per reward; where by token, one per token."""
    outcome, process, ends, tokens, groups = batch
    per_reward = torch.full_like(process, constant) * ends
    nothing = torch.zeros_like(process)
    for found in (
        estimator(name)(outcome, per_reward, ends, groups).process,
        standardized_values(per_reward, ends, groups),
        rloo_per_token(constant * tokens_per_step(ends), ends, groups, tokens_per_step(ends)),
        nothing if name == "maxrl" else pooled(estimator(name), per_reward, ends, groups),
        nothing if name == "maxrl" else by_position(estimator(name), per_reward, ends, tokens, groups),
    ):
        assert float(found.abs().max()) < 1e-6


def everything(name: str, batch: tuple[Tensor, ...]) -> list[Tensor]:
    outcome, process, ends, tokens, groups = batch
    formed = process_form(name)(process, ends, outcome, groups, temperature=0.5)
    return [
        formed,
        rloo_per_token(formed, ends, groups, tokens_per_step(ends)),
        pooled(grpo, formed, ends, groups),
        by_position(rloo, formed, ends, tokens, groups),
        standardized_values(formed, ends, groups),
        reward_to_go(formed, step_discounts(ends, 0.9, 0.5)) * tokens,
    ]


@settings(deadline=None, max_examples=60)
@for_all(batches(), st.integers(1, 3), each_form, st.randoms(use_true_random=False))
def test_neither_padding_nor_row_order_changes_anything(batch: Batch, extra: int, name: str, random: Any) -> None:
    outcome, process, ends, tokens, groups = batch
    straight = everything(name, batch)
    no = torch.zeros(len(outcome), extra, dtype=torch.bool)
    wide = everything(name, (outcome, *(torch.cat([part, no], 1) for part in (process, ends, tokens)), groups))
    order = list(range(len(outcome)))
    random.shuffle(order)
    shuffled = everything(name, tuple(part[order] for part in batch))
    for before, widened, moved in zip(straight, wide, shuffled, strict=True):
        torch.testing.assert_close(widened[:, : tokens.shape[1]], before, rtol=0, atol=1e-9)
        assert not widened[:, tokens.shape[1] :].any()
        torch.testing.assert_close(moved, before[order], rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=30)
@for_all(batches())
def test_wrong_responses_have_mean_zero_and_right_ones_stay(batch: Batch) -> None:
    outcome, process, ends, _, groups = batch
    ours = wrong_centered(process, ends, outcome, groups)
    right = outcome > 0.5
    assert torch.equal(ours[right], process[right])
    means = ours.sum(-1) / ends.sum(-1) * ~right
    assert float(group_sums(means, groups).abs().max()) < 1e-9


@settings(deadline=None, max_examples=30)
@for_all(batches(), st.floats(0, 1), st.floats(0.1, 1))
def test_lambda_discounts_from_step_to_step(batch: Batch, lam: float, gamma: float) -> None:
    _, process, ends, tokens, _ = batch
    ours = reward_to_go(process, step_discounts(ends, gamma, lam)) * tokens
    for row in range(len(process)):
        length = int(tokens[row].sum())
        for token in range(length):
            expected = sum(
                float(process[row, end]) * gamma ** (end - token) * lam ** int(ends[row, token:end].sum())
                for end in range(token, length)
                if ends[row, end]
            )
            assert float(ours[row, token]) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=60)
@for_all(st.floats(0.001, 0.999), st.floats(1e-11, 1e9), st.floats(1e-11, 1e9))
def test_process_rewards_take_the_share_asked_for(share: float, outcome: float, process: float) -> None:
    of_outcome, of_process = source_weights(outcome, process, share)
    weighted = of_process**2 * process
    assert weighted / (weighted + of_outcome**2 * outcome) == pytest.approx(share, abs=1e-9)
    assert of_outcome == 1.0


def test_a_source_that_says_nothing_leaves_the_other_alone() -> None:
    assert source_weights(1.0, 1e-12, 0.3) == (1.0, 0.0)
    assert source_weights(1e-12, 1.0, 0.3) == (0.0, 1.0)
    assert source_weights(1e-12, 1.0, 0.0) == (1.0, 0.0)  # without trust, process rewards never have a say
    assert source_weights(1.0, 1e-12, 1.0) == (0.0, 1.0)
    assert source_weights(1.0, 1.1e-12, 0.5)[1] > 1e5


def test_trust_is_zero_at_chance_and_below() -> None:
    assert [trust(accuracy) for accuracy in (None, 0.0, 0.5, 0.9, 1.0)] == [0, 0, 0, pytest.approx(0.8), 1]
