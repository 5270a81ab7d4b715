"""From a batch's rewards to its advantages: what stands between the shards and `core/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primecli.core.advantages import ESTIMATORS, Parts, discounted, gae, on_last_token, whitening
from primecli.core.ragged import pad, response_mask, unpad
from primecli.core.rewards import drop_last_token, last_token, scale_over_batch, sum_into
from primecli.errors import InputError, UsageError
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts


@dataclass(frozen=True, slots=True)
class Settings:
    """How rewards become advantages: see `primecli compute-advantages --help`."""

    estimator: str
    outcome_coef: float
    process_coef: float
    outcome_gamma: float
    process_gamma: float
    lam: float | None
    granularity: str
    step_separator: str | None
    process_norm: str
    process_baseline: str
    drop_last_token_reward: bool
    whiten: bool

    def check(self) -> None:
        """Raises UsageError for settings that do not fit together."""
        if not self.outcome_coef and not self.process_coef:
            raise UsageError("--outcome-coef and --process-coef are both 0: nothing is rewarded")
        if self.process_baseline == "recipe" and self.estimator != "rloo":
            raise UsageError(f"--process-baseline recipe is of --estimator rloo, not of {self.estimator}")
        if self.estimator == "gae" and self.outcome_gamma != self.process_gamma:
            raise UsageError(
                f"--estimator gae takes one discount, and --outcome-gamma is {self.outcome_gamma:g}, --process-gamma "
                f"{self.process_gamma:g}",
                "one critic expects one return: give both the same",
            )

    def as_json(self) -> dict[str, Any]:
        """As a recipe stores it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def advantages_of(rollouts: Rollouts, settings: Settings, ends: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The columns of this stage, each (N,) float32, rows one after another; computed in float64.

    ends: (N,) bool, the last tokens of steps, for the granularity that has them.
    """
    lengths = torch.from_numpy(rollouts.response_lengths)
    mask = response_mask(lengths)  # (B, T)
    outcome = _outcome_rewards(rollouts)  # (B,)
    process, reward_mask = _process_rewards(rollouts, settings, mask, ends)  # (B, T), (B, T)
    name = "rloo-recipe" if settings.process_baseline == "recipe" else settings.estimator
    try:
        centered = ESTIMATORS[name](outcome, process, reward_mask, torch.from_numpy(rollouts.group_index))
        values = baseline = torch.zeros_like(process)  # (B, T)
        if settings.lam is None:
            parts = discounted(
                centered, mask, outcome_gamma=settings.outcome_gamma, process_gamma=settings.process_gamma
            )
        else:
            horizon = {"gamma": settings.process_gamma, "lam": settings.lam}
            values = pad(torch.from_numpy(rollouts.values[schema.VALUES]).double(), lengths)
            nothing = torch.zeros_like(values)
            parts = Parts(
                gae(on_last_token(centered.outcome, mask), nothing, mask, **horizon),
                gae(centered.process, nothing, mask, **horizon),
            )
            baseline = gae(nothing, values, mask, **horizon)
        parts = Parts(settings.outcome_coef * parts.outcome, settings.process_coef * parts.process)
        plain = parts.outcome + parts.process + baseline  # (B, T)
        mean, scale = whitening(plain, mask) if settings.whiten else (plain.new_zeros(()), plain.new_ones(()))
    except ValueError as error:
        raise InputError(str(error), "sample more responses of each prompt with `generate --n`") from error
    columns = {schema.ADVANTAGES: (plain - mean) * scale, schema.RETURNS: plain + values}
    if settings.outcome_coef:
        columns[schema.OUTCOME_ADVANTAGES] = parts.outcome * scale
    if settings.process_coef:
        columns[schema.PROCESS_ADVANTAGES] = parts.process * scale
    return {column: unpad(found, mask).float().numpy() for column, found in columns.items()}


def _outcome_rewards(rollouts: Rollouts) -> Tensor:
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
    rollouts: Rollouts, settings: Settings, mask: Tensor, ends: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """Process rewards, (B, T), as they enter the estimator, and where they stand, (B, T) bool."""
    reward_mask = mask
    if settings.granularity == "whole":
        reward_mask = last_token(mask)
    elif ends is not None:
        reward_mask = pad(torch.from_numpy(ends), torch.from_numpy(rollouts.response_lengths))
    if schema.PROCESS_REWARDS not in rollouts.values:
        return torch.zeros(mask.shape, dtype=torch.float64), reward_mask
    flat = torch.from_numpy(rollouts.values[schema.PROCESS_REWARDS].astype(np.float64))
    process = pad(flat, torch.from_numpy(rollouts.response_lengths))
    if settings.drop_last_token_reward:
        process = drop_last_token(process, mask)
    if settings.granularity != "token":
        process = sum_into(process, reward_mask, mask)
    if settings.process_norm == "batch":
        process = scale_over_batch(process, mask, settings.process_gamma)
    return process, reward_mask
