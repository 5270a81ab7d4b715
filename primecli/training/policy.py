"""What update-policy does between its input and its checkpoint: identity, log-probabilities, steps, health."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import GateError, InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts, check_untouched_distribution, truncated_sampling
from primecli.training.options import FROM_SHARDS, PolicyOptions
from primecli.training.trainer import MicroBatch, Trainer, device_tensor, token_positions

if TYPE_CHECKING:
    from torch import Tensor


def check_sampling(rollouts: Rollouts, options: PolicyOptions) -> str | None:
    """Raises InputError for rollouts whose log-probabilities cannot be used as the options ask.

    Returns what the user is to be warned of, None where there is nothing.
    """
    if (rollouts.values[schema.TEMPERATURE] <= 0).any():
        raise InputError("some rollouts were sampled greedily (temperature 0)", "train on samples")
    if options.old_logprobs == "rollout":
        check_untouched_distribution(rollouts.values, "--old-logprobs rollout", temperature=False)
    if options.tis_cap is not None:
        check_untouched_distribution(rollouts.values, "--tis-cap", temperature=False)
    if options.ref == FROM_SHARDS:
        check_untouched_distribution(rollouts.values, "--ref shards")
    biased = truncated_sampling(rollouts.values)
    if biased is not None and options.strict:
        raise InputError(biased, "sample with --top-p 1 --top-k 0, or leave --strict out")
    return biased


def check_staleness(rollouts: Rollouts, lineage: tuple[str, ...], allowed: int) -> int:
    """How many updates the oldest rollouts are behind. Raises InputError when that is more than allowed."""
    newest_first = list(reversed(lineage))
    worst = 0
    for found in sorted(set(rollouts.strings[schema.POLICY_FINGERPRINT])):
        if found not in newest_first:
            raise InputError(
                f"rollouts were sampled by the weights {found}, which are neither those of --policy "
                f"({newest_first[0]}) nor an ancestor's",
                "generate with the policy that is to be updated",
            )
        worst = max(worst, newest_first.index(found))
    if worst > allowed:
        raise InputError(
            f"rollouts are {worst} update{'s' if worst > 1 else ''} behind --policy, and {allowed} are allowed",
            f"generate with the current policy, or pass --max-staleness {worst}",
        )
    return worst


class OldLogprobs:
    """(N,) log-probabilities that the ratio is taken to.

    With a single step the trainer's own log-probabilities before it are those of the step's forward pass:
    they are kept from there, which saves the extra pass and makes the ratio exactly 1.
    """

    def __init__(self, values: np.ndarray, *, from_first_forward: bool) -> None:
        self.values = values
        self.from_first_forward = from_first_forward


def preflight(trainer: Trainer, rollouts: Rollouts, options: PolicyOptions) -> None:
    """Tries the largest micro-batch, see `Trainer.preflight`."""
    sequences = rollouts.sequences(temperature=True)

    def forward(batch: scoring.Batch) -> Tensor:
        found = scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch, with_entropy=True)
        return found.logprobs.sum() + (found.entropy.sum() if options.entropy_coef else 0.0)

    trainer.preflight(sequences, trainer.mini_batches(len(rollouts)), forward)


def columns(options: PolicyOptions) -> list[str]:
    """The columns that training needs, beside the token ids."""
    needed = [schema.ROLLOUT_LOGPROBS, schema.ADVANTAGES, *schema.SAMPLED_WITH]
    needed += [schema.POLICY_FINGERPRINT, schema.FINISH_REASON]
    return [*needed, schema.REF_LOGPROBS] if options.ref == FROM_SHARDS else needed


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], old: OldLogprobs, options: PolicyOptions) -> None:
    """One optimizer step of the policy over a mini-batch."""
    from primecli.core.losses import token_weights

    sequences = rollouts.sequences(temperature=True)
    tokens = int(rollouts.response_lengths[rows].sum())

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        import torch

        logprobs, entropy = scoring.sequence_logprobs(
            trainer.model, trainer.placement, sequences, batch, with_entropy=True
        )  # (N,)
        places = token_positions(rollouts, batch.rows)
        if old.from_first_forward:
            old.values[places] = logprobs.detach().float().cpu().numpy()
        weights = token_weights(
            torch.from_numpy(rollouts.response_lengths[batch.rows]),
            options.loss_aggregation,
            tokens=tokens,
            responses=len(rows),
        ).to(trainer.placement.device)
        given = {name: device_tensor(rollouts.values[name][places], trainer.placement) for name in _given(rollouts)}
        return policy_terms(
            logprobs, entropy, device_tensor(old.values[places], trainer.placement), given, weights, options
        )

    def finish(sums: dict[str, float]) -> dict[str, float]:
        whole = {"loss", "ratio_min", "ratio_max"}
        return {name: value if name in whole else value / tokens for name, value in sums.items()}

    trainer.take_step(sequences, rows, micro_batch, finish)


def _given(rollouts: Rollouts) -> list[str]:
    names = (schema.ADVANTAGES, schema.ROLLOUT_LOGPROBS, schema.REF_LOGPROBS)
    return [name for name in names if name in rollouts.values]


def policy_terms(
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    given: dict[str, Tensor],
    weights: Tensor,
    options: PolicyOptions,
) -> MicroBatch:
    """The loss of some tokens, all (N,), and its metrics, summed over tokens: what `PolicyOptions` asks for."""
    from primecli.core.losses import importance_weights, kl_estimate, ppo_clip

    advantages = given[schema.ADVANTAGES]
    sums: dict[str, float] = {}
    if options.tis_cap is not None:
        importance = importance_weights(old_logprobs, given[schema.ROLLOUT_LOGPROBS], options.tis_cap)
        advantages = advantages * importance
        sums["importance_weight"] = float(importance.sum())
        sums["importance_capped"] = float((importance >= options.tis_cap).sum())
    clip_low, clip_high = (options.clip_low, options.clip_high) if options.clip else (math.inf, math.inf)
    dual_clip = options.dual_clip if options.clip else None
    result = ppo_clip(
        logprobs, old_logprobs, advantages, weights, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    loss = result.loss
    if schema.REF_LOGPROBS in given:
        kl = kl_estimate(logprobs, given[schema.REF_LOGPROBS], options.kl)
        sums["kl_ref"] = float(kl.detach().sum())
        if options.kl_coef:
            loss = loss + options.kl_coef * (kl * weights.to(kl.dtype)).sum()
    if options.entropy_coef:
        loss = loss - options.entropy_coef * (entropy * weights.to(entropy.dtype)).sum()
    sums |= {
        "clip_fraction": float((result.clipped_low | result.clipped_high).sum()),
        "clip_fraction_low": float(result.clipped_low.sum()),
        "clip_fraction_high": float(result.clipped_high.sum()),
        **({"dual_clip_fraction": float(result.dual_clipped.sum())} if dual_clip is not None else {}),
        "kl": float((old_logprobs - logprobs.detach()).sum()),
        "entropy": float(entropy.detach().sum()),
    }
    extremes = {"ratio_min": float(result.ratio.min()), "ratio_max": float(result.ratio.max())}
    return MicroBatch(loss, sums, extremes)


def logprob_gap(rollouts: Rollouts, old: OldLogprobs, limit: float | None) -> dict[str, float]:
    """How far the trainer's log-probabilities of the same weights are from the sampler's: mean, p95, max; nats.

    Raises GateError where the mean is above the limit.
    """
    import torch

    from primecli.core.metrics import effective_sample_size

    difference = old.values - rollouts.values[schema.ROLLOUT_LOGPROBS]
    gap = np.abs(difference)
    found = {
        "logprob_gap_mean": float(gap.mean()),
        "logprob_gap_p95": float(np.quantile(gap, 0.95)),
        "logprob_gap_max": float(gap.max()),
        "effective_sample_size": effective_sample_size(torch.from_numpy(difference)),
    }
    if limit is not None and found["logprob_gap_mean"] > limit:
        raise GateError(
            f"the mean gap |rollout_logprobs - old_logprobs| is {found['logprob_gap_mean']:.4g} nats, and "
            f"--max-logprob-gap is {limit:g} (p95 {found['logprob_gap_p95']:.4g}, max {found['logprob_gap_max']:.4g})",
            "the sampler and the trainer disagree on the same weights; no checkpoint was written",
        )
    return found


def batch_health(rollouts: Rollouts, shares: dict[str, np.ndarray]) -> dict[str, float]:
    """What the batch itself says: lengths, truncation, and the share of advantage variance from each source.

    shares: (N,) parts of the advantages by name, where the shards have them.
    """
    import torch

    from primecli.core.metrics import variance_share

    advantages = torch.from_numpy(rollouts.values[schema.ADVANTAGES])
    lengths = rollouts.response_lengths
    return {
        "response_tokens": float(lengths.mean()),
        "response_tokens_max": float(lengths.max()),
        "truncation_rate": float(np.mean([reason == "length" for reason in rollouts.strings[schema.FINISH_REASON]])),
        **{
            f"{name.removesuffix('_advantages')}_variance_share": share
            for name, part in shares.items()
            if math.isfinite(share := variance_share(torch.from_numpy(part), advantages))
        },
    }


def measure_update(trainer: Trainer, rollouts: Rollouts, old: OldLogprobs, responses: int) -> dict[str, float]:
    """How far the finished update has moved the policy, measured on so many of its rollouts, spread over the batch.

    kl_update: mean of k3 over tokens, nats, an estimate of KL(old || new) that is never negative. ratio_update_…: the
    extremes of new over old probability.
    """
    import torch

    from primecli.core.losses import kl_estimate

    rows = np.linspace(0, len(rollouts) - 1, min(responses, len(rollouts))).astype(int).tolist()
    sequences = rollouts.sequences(temperature=True)
    chosen = replace(
        sequences,
        prompt_ids=[sequences.prompt_ids[row] for row in rows],
        response_ids=[sequences.response_ids[row] for row in rows],
        temperature=rollouts.values[schema.TEMPERATURE][rows],
    )
    new = torch.from_numpy(
        scoring.score(trainer.model, trainer.placement, chosen, micro_batch_tokens=trainer.options.micro_batch_tokens)
    )
    before = torch.from_numpy(old.values[token_positions(rollouts, rows)])
    ratio = (new - before).exp()
    return {
        "kl_update": float(kl_estimate(before, new, "k3").mean()),
        "ratio_update_min": float(ratio.min()),
        "ratio_update_max": float(ratio.max()),
    }
