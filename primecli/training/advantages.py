"""From the rewards of a batch to its advantages: between the shards and the formulas in core/."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from primecli.core.advantages import Parts, discounted, gae, on_last_token, rloo_recipe, whitening
from primecli.core.ragged import pad, response_mask, unpad
from primecli.core.registry import estimator
from primecli.core.rewards import drop_last_token, last_token, scale_over_batch, sum_into
from primecli.errors import InputError
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts
from primecli.training.options import AdvantageOptions


def advantage_columns(
    rollouts: Rollouts, options: AdvantageOptions, ends: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The columns that compute-advantages adds, (N,) float32 each, row after row; computed in float64.

    ends: (N,) bool, True at the last token of each step; None unless the granularity is step.

    Raises InputError for rewards that the estimator cannot use.
    """
    lengths = torch.from_numpy(rollouts.response_lengths)
    mask = response_mask(lengths)  # (B, T)
    outcome = _outcome_rewards(rollouts)  # (B,)
    process, reward_mask = _process_rewards(rollouts, options, mask, ends)  # (B, T), (B, T)
    subtract_baseline = rloo_recipe if options.process_baseline == "recipe" else estimator(options.estimator)
    try:
        centered = subtract_baseline(outcome, process, reward_mask, torch.from_numpy(rollouts.group_index))
        values = baseline = torch.zeros_like(process)  # (B, T)
        if options.estimator != "gae":
            parts = discounted(centered, mask, outcome_gamma=options.outcome_gamma, process_gamma=options.process_gamma)
        else:
            # GAE is linear in the rewards and values, so each source of reward and the baseline get their part
            discounts = {"gamma": options.process_gamma, "lam": options.lam}
            values = pad(torch.from_numpy(rollouts.values[schema.VALUES]).double(), lengths)  # (B, T)
            zeros = torch.zeros_like(values)
            parts = Parts(
                gae(on_last_token(centered.outcome, mask), zeros, mask, **discounts),
                gae(centered.process, zeros, mask, **discounts),
            )
            baseline = gae(zeros, values, mask, **discounts)
        parts = Parts(options.outcome_coef * parts.outcome, options.process_coef * parts.process)
        plain = parts.outcome + parts.process + baseline  # (B, T), before whitening
        mean, scale = whitening(plain, mask) if options.whiten else (plain.new_zeros(()), plain.new_ones(()))
    except ValueError as error:
        raise InputError(str(error), "sample more responses to each prompt with `generate --n`") from error
    columns = {schema.ADVANTAGES: (plain - mean) * scale, schema.RETURNS: plain + values}  # (B, T) each
    if options.outcome_coef:
        columns[schema.OUTCOME_ADVANTAGES] = parts.outcome * scale
    if options.process_coef:
        columns[schema.PROCESS_ADVANTAGES] = parts.process * scale
    return {name: unpad(column, mask).float().numpy() for name, column in columns.items()}


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
    rollouts: Rollouts, options: AdvantageOptions, mask: Tensor, ends: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """The process rewards, (B, T) float64, as the estimator takes them; and where there may be one, (B, T) bool."""
    reward_mask = mask
    if options.granularity == "whole":
        reward_mask = last_token(mask)
    elif ends is not None:
        reward_mask = pad(torch.from_numpy(ends), torch.from_numpy(rollouts.response_lengths))
    if schema.PROCESS_REWARDS not in rollouts.values:
        return torch.zeros(mask.shape, dtype=torch.float64), reward_mask
    flat = torch.from_numpy(rollouts.values[schema.PROCESS_REWARDS].astype(np.float64))  # (N,)
    process = pad(flat, torch.from_numpy(rollouts.response_lengths))  # (B, T)
    if options.drop_last_token_reward:
        process = drop_last_token(process, mask)
    if options.granularity != "token":
        process = sum_into(process, reward_mask, mask)
    if options.process_norm == "batch":
        process = scale_over_batch(process, mask, options.process_gamma)
    return process, reward_mask
