"""From the rewards of a batch to its advantages: between the shards and the formulas in core/."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from primecli.core.advantages import Centered, Estimator, Parts, discounted, gae, on_last_token, rloo_recipe, whitening
from primecli.core.process_rewards import (
    by_position,
    centered_outcomes,
    pooled,
    rloo_per_token,
    source_weights,
    standardized_values,
    step_discounts,
    tokens_per_step,
)
from primecli.core.ragged import pad, response_mask, unpad
from primecli.core.registry import estimator, process_form
from primecli.core.rewards import drop_last_token, last_token, reward_to_go, scale_over_batch, sum_into
from primecli.errors import InputError, PrimecliError
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts
from primecli.training.advantage_options import AdvantageOptions


class BatchAdvantages(NamedTuple):
    """What compute-advantages finds for a batch.

    columns: those that it adds, (N,) float32 each, row after row.
    metrics: of the batch as a whole: with --process-share, the share that was reached and the weight of process rewards
        that it took; with --process-clip, the share of the tokens whose reward was beyond it.
    """

    columns: dict[str, np.ndarray]
    metrics: dict[str, float]


def batch_advantages(
    rollouts: Rollouts, options: AdvantageOptions, ends: np.ndarray | None = None, *, share: float | None = None
) -> BatchAdvantages:
    """The advantages of a batch; computed in float64.

    ends: (N,) bool, True at the last token of each step; None unless the granularity is step.
    share: the share of the variance that process rewards are to take; None to leave the weights to the coefficients.

    Raises InputError for rewards that the estimator cannot use.
    """
    lengths = torch.from_numpy(rollouts.response_lengths)
    mask = response_mask(lengths)  # (B, T)
    try:
        parts, values, baseline = _parts(rollouts, options, mask, ends)
        parts = Parts(parts.outcome.mul_(options.outcome_coef), parts.process.mul_(options.process_coef))
        metrics = _clipped(rollouts, options)
        if share is not None:
            parts, reached = _with_share(parts, mask, share)
            metrics |= reached
        plain = parts.outcome + parts.process + baseline  # (B, T), before whitening
        mean, scale = whitening(plain, mask) if options.whiten else (plain.new_zeros(()), plain.new_ones(()))
    except ValueError as error:
        raise InputError(str(error), "sample more responses to each prompt with `generate --n`") from error

    def column(padded: Tensor) -> np.ndarray:
        return unpad(padded, mask).float().numpy()

    # each (B, T) is freed before the next is made
    columns = {schema.ADVANTAGES: column((plain - mean).mul_(scale)), schema.RETURNS: column(plain + values)}
    if options.outcome_coef:
        columns[schema.OUTCOME_ADVANTAGES] = column(parts.outcome * scale)
    if options.process_coef:
        columns[schema.PROCESS_ADVANTAGES] = column(parts.process * scale)
    return BatchAdvantages(columns, metrics)


def _parts(
    rollouts: Rollouts, options: AdvantageOptions, mask: Tensor, ends: np.ndarray | None
) -> tuple[Parts, Tensor, Tensor]:
    """The advantages by source, before their coefficients; a critic's values, and its part. All (B, T) or broadcast."""
    outcome = _outcome_rewards(rollouts)  # (B,)
    process, reward_mask = _process_rewards(rollouts, options, outcome, mask, ends)  # (B, T), (B, T)
    groups = torch.from_numpy(rollouts.group_index)
    nothing = torch.zeros((), dtype=torch.float64)
    if options.estimator != "gae":
        return _by_sums(options, outcome, process, reward_mask, mask, groups), nothing, nothing
    # GAE is linear in the rewards and values, so each source of reward and the baseline get their part
    discounts = {"gamma": options.process_gamma, "lam": options.lam}
    lengths = torch.from_numpy(rollouts.response_lengths)
    values = pad(torch.from_numpy(rollouts.values[schema.VALUES]).double(), lengths)  # (B, T)
    zeros = torch.zeros_like(values)
    centered = estimator_of(options)(outcome, process, reward_mask, groups)
    parts = Parts(
        gae(on_last_token(centered.outcome, mask), zeros, mask, **discounts),
        gae(centered.process, zeros, mask, **discounts),
    )
    return parts, values, gae(zeros, values, mask, **discounts)


def _by_sums(
    options: AdvantageOptions, outcome: Tensor, process: Tensor, reward_mask: Tensor, mask: Tensor, groups: Tensor
) -> Parts:
    """Advantages without a critic: rewards minus their baseline, summed from each token on."""
    subtract_baseline, baseline = estimator_of(options), options.process_baseline
    gammas: dict[str, Any] = {
        "outcome_gamma": options.outcome_gamma,
        "process_gamma": _process_discount(options, reward_mask),
    }
    if baseline == "paper":
        return discounted(subtract_baseline(outcome, process, reward_mask, groups), mask, **gammas)
    if baseline == "recipe":
        return discounted(rloo_recipe(outcome, process, reward_mask, groups), mask, **gammas)
    outcome = centered_outcomes(subtract_baseline, outcome, groups)
    if baseline == "position":
        by_process = by_position(subtract_baseline, process, reward_mask, mask, groups)
        by_outcome = reward_to_go(on_last_token(outcome, mask), options.outcome_gamma).masked_fill_(~mask, 0.0)
        return Parts(by_outcome, by_process)
    if baseline == "per-token":
        process = rloo_per_token(process, reward_mask, groups, tokens_per_step(reward_mask))
    elif baseline == "pooled":
        process = pooled(subtract_baseline, process, reward_mask, groups)
    else:
        process = standardized_values(process, reward_mask, groups)
    return discounted(Centered(outcome, process), mask, **gammas)


def estimator_of(options: AdvantageOptions) -> Estimator:
    """The function that subtracts the baseline; a plug-in's raises PrimecliError where it returns something else."""
    plugin = options.plugin()
    if plugin is None:
        return estimator(options.estimator)

    def plugged_in(
        outcome_rewards: Tensor, process_rewards: Tensor, reward_mask: Tensor, group_index: Tensor
    ) -> Centered:
        found = plugin.call(outcome_rewards, process_rewards, reward_mask, group_index)
        wanted = (outcome_rewards.shape, process_rewards.shape)
        shapes = tuple(getattr(part, "shape", None) for part in found) if isinstance(found, tuple) else ()
        if shapes != wanted:
            shown = ", ".join(str(None if shape is None else tuple(shape)) for shape in shapes) or type(found).__name__
            raise PrimecliError(
                f"--estimator {plugin}: returned {shown} for outcome rewards {tuple(wanted[0])} and process rewards "
                f"{tuple(wanted[1])}",
                "return a pair of tensors of these shapes: both minus their baseline",
            )
        outcome, process = found
        process = torch.where(reward_mask, process, torch.zeros_like(process))
        if not (bool(outcome.isfinite().all()) and bool(process.isfinite().all())):
            raise PrimecliError(f"--estimator {plugin}: returned values that are not finite")
        return Centered(outcome, process)

    return plugged_in


def _process_discount(options: AdvantageOptions, reward_mask: Tensor) -> float | Tensor:
    """The discount of process rewards from each token to the next, (B, T), or one for all."""
    if options.process_lambda == 1.0 or options.granularity == "token":
        return options.process_gamma * options.process_lambda
    return step_discounts(reward_mask, options.process_gamma, options.process_lambda)


def _with_share(parts: Parts, mask: Tensor, share: float) -> tuple[Parts, dict[str, float]]:
    """The parts, weighted so that process rewards take a share of the variance; and what came of it, as metrics."""
    outcome, process = (float(torch.var(part[mask], correction=0)) for part in parts)
    of_outcome, of_process = source_weights(outcome, process, share)
    outcome, process = of_outcome**2 * outcome, of_process**2 * process
    return Parts(parts.outcome.mul_(of_outcome), parts.process.mul_(of_process)), {
        "process_share": process / (outcome + process) if outcome + process > 0 else 0.0,
        "process_weight": of_process,
    }


def _clipped(rollouts: Rollouts, options: AdvantageOptions) -> dict[str, float]:
    """The share of the tokens whose process reward is beyond the limit, as a metric; none where there is no limit."""
    if options.process_clip is None:
        return {}
    rewards = rollouts.values[schema.PROCESS_REWARDS]  # (N,)
    beyond = np.abs(rewards.astype(np.float64)) > options.process_clip
    return {"process_clip_fraction": float(beyond.mean()) if len(beyond) else 0.0}


def _outcome_rewards(rollouts: Rollouts) -> Tensor:
    """(B,) float64; 0 if the outcome is not used. Raises InputError for null rewards."""
    if schema.OUTCOME_REWARD not in rollouts.values:
        return torch.zeros(len(rollouts), dtype=torch.float64)
    outcome = torch.from_numpy(rollouts.values[schema.OUTCOME_REWARD].astype(np.float64))
    if bool(outcome.isnan().any()):
        raise InputError(
            f"outcome_reward is null in {int(outcome.isnan().sum())} rows",
            "the verifier could not grade them; `primecli filter` drops their groups",
        )
    return outcome


def _process_rewards(
    rollouts: Rollouts, options: AdvantageOptions, outcome: Tensor, mask: Tensor, ends: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """The process rewards, (B, T) float64, as the baseline takes them; and where there may be one, (B, T) bool."""
    reward_mask = mask
    if options.granularity == "whole":
        reward_mask = last_token(mask)
    elif ends is not None:
        reward_mask = pad(torch.from_numpy(ends), torch.from_numpy(rollouts.response_lengths))
    if schema.PROCESS_REWARDS not in rollouts.values:
        return torch.zeros(mask.shape, dtype=torch.float64), reward_mask
    flat = torch.from_numpy(rollouts.values[schema.PROCESS_REWARDS].astype(np.float64))  # (N,)
    if options.process_clip is not None:
        flat.clamp_(-options.process_clip, options.process_clip)
    process = pad(flat, torch.from_numpy(rollouts.response_lengths))  # (B, T)
    if options.drop_last_token_reward:
        process = drop_last_token(process, mask)
    if options.granularity != "token":
        process = sum_into(process, reward_mask, mask)
    if options.process_form != "plain":
        groups, temperature = torch.from_numpy(rollouts.group_index), options.temperature() or 1.0
        process = process_form(options.process_form)(process, reward_mask, outcome, groups, temperature=temperature)
    if options.process_norm == "batch":
        process = scale_over_batch(process, mask, _process_discount(options, reward_mask))
    return process, reward_mask
