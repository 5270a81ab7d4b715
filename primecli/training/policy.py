"""The training of the policy in update-policy: which rollouts it may learn from, its loss, its steps, its health."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import GateError, InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts, check_untouched_distribution, truncated_sampling
from primecli.training.options import FROM_SHARDS
from primecli.training.policy_loss import marked_by_covariance, policy_loss
from primecli.training.policy_options import PolicyOptions
from primecli.training.trainer import MicroBatch, Trainer, select_rows, token_positions

if TYPE_CHECKING:
    from torch import Tensor


def check_sampling(rollouts: Rollouts, options: PolicyOptions) -> str | None:
    """Raises InputError if the log-probabilities of the rollouts cannot be used as the options demand.

    Returns a warning for the user, or None.
    """
    if (rollouts.values[schema.TEMPERATURE] <= 0).any():
        raise InputError(
            "some rollouts were sampled greedily (temperature 0)", "generate with a temperature above 0 to train on"
        )
    if options.old_logprobs == "rollout":
        check_untouched_distribution(rollouts.values, "--old-logprobs rollout", temperature=False)
    for option, given in (*options.against_sampler(), ("--off-policy-mask", options.off_policy_mask is not None)):
        if given:
            check_untouched_distribution(rollouts.values, option, temperature=False)
    if options.ref == FROM_SHARDS:
        check_untouched_distribution(rollouts.values, "--ref shards")
    biased = truncated_sampling(rollouts.values)
    if biased is not None and options.strict:
        raise InputError(biased, "sample with --top-p 1 --top-k 0, or train without --strict")
    return biased


def check_staleness(rollouts: Rollouts, lineage: tuple[str, ...], allowed: int) -> int:
    """How many updates the oldest rollouts are behind the policy to be updated.

    lineage: fingerprints of that policy's weights and of those they were trained from, the oldest first.

    Raises InputError if it is more than allowed, or if rollouts come from weights outside the lineage.
    """
    newest_first = list(reversed(lineage))
    staleness = 0
    for fingerprint in sorted(set(rollouts.strings[schema.POLICY_FINGERPRINT])):
        if fingerprint not in newest_first:
            raise InputError(
                f"rollouts were sampled with the weights {fingerprint}, which belong neither to --policy "
                f"({newest_first[0]}) nor to an ancestor of it",
                "generate with the policy that you want to update",
            )
        staleness = max(staleness, newest_first.index(fingerprint))
    if staleness > allowed:
        raise InputError(
            f"rollouts are {staleness} update{'s' if staleness > 1 else ''} behind --policy, and {allowed} are allowed",
            f"generate with the current policy, or pass --max-staleness {staleness}",
        )
    return staleness


@dataclass(slots=True)
class OldLogprobs:
    """The log-probabilities under the old policy, the denominator of PPO's probability ratio.

    values: (N,) float32, nats.
    from_first_forward: whether `values` still has to be filled, by the forward pass of the one optimizer step. A single
        step does not change the weights before that pass, so this saves a pass and makes every ratio exactly 1.
    """

    values: np.ndarray
    from_first_forward: bool


def preflight(trainer: Trainer, rollouts: Rollouts, options: PolicyOptions) -> None:
    """Tries the largest micro-batch; see `Trainer.preflight`."""
    sequences = rollouts.sequences(temperature=True)

    def forward(batch: scoring.Batch) -> Tensor:
        logprobs, entropy = scoring.sequence_logprobs(
            trainer.model, trainer.placement, sequences, batch, with_entropy=True
        )
        return logprobs.sum() + (entropy.sum() if options.entropy_coef else 0.0)

    trainer.preflight(sequences, trainer.mini_batches(len(rollouts)), forward)


def needed_columns(options: PolicyOptions) -> list[str]:
    """The columns that training needs besides the token ids."""
    needed = [schema.ROLLOUT_LOGPROBS, schema.ADVANTAGES, *schema.SAMPLED_WITH]
    needed += [schema.POLICY_FINGERPRINT, schema.FINISH_REASON]
    return [*needed, schema.REF_LOGPROBS] if options.ref == FROM_SHARDS else needed


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], old: OldLogprobs, options: PolicyOptions) -> None:
    """Takes one optimizer step of the policy over the mini-batch `rows`."""
    import torch

    sequences = rollouts.sequences(temperature=True)
    names = (schema.ADVANTAGES, schema.ROLLOUT_LOGPROBS, schema.REF_LOGPROBS)
    marks = _covariance_marks(trainer, rollouts, rows, old, options)  # (N,) each, by option
    # |log p - log p_old| has no gradient where it is 0, but one of full size where rounding makes it 1e-7
    exactly_one = bool(marks) and _unmoved(trainer, options)

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        logprobs, entropy = scoring.sequence_logprobs(
            trainer.model, trainer.placement, sequences, batch, with_entropy=True
        )  # (n,) each
        positions = token_positions(rollouts, batch.rows)  # (n,), among the batch's N tokens
        if old.from_first_forward:
            old.values[positions] = logprobs.detach().float().cpu().numpy()
        old_logprobs = logprobs.detach() if exactly_one else trainer.device_tensor(old.values[positions])  # (n,)
        columns = {
            name: trainer.device_tensor(rollouts.values[name][positions]) for name in names if name in rollouts.values
        }  # (n,) each
        device = trainer.placement.device
        marked = {name: torch.from_numpy(tokens[positions]).to(device) for name, tokens in marks.items()}  # (n,) each
        weights = trainer.token_weights(rollouts, rows, batch, options.aggregation())  # (n,)
        lengths = torch.from_numpy(rollouts.response_lengths[batch.rows]).to(device)  # (b,)
        return policy_loss(logprobs, entropy, old_logprobs, columns, weights, lengths, marked, options)

    trainer.take_step(sequences, rows, micro_batch, denominator=int(rollouts.response_lengths[rows].sum()))


def _unmoved(trainer: Trainer, options: PolicyOptions) -> bool:
    """Whether the weights are still those that the old log-probabilities were taken under."""
    return not trainer.history and options.old_logprobs == "recompute"


def _covariance_marks(
    trainer: Trainer, rollouts: Rollouts, rows: list[int], old: OldLogprobs, options: PolicyOptions
) -> dict[str, np.ndarray]:
    """The tokens of the mini-batch `rows` that Clip-Cov and KL-Cov choose: (N,) bool by option, among all N tokens.

    This takes the log-probabilities of the whole mini-batch, under the weights before its step.
    """
    if not options.by_covariance():
        return {}
    positions = token_positions(rollouts, rows)  # (n,)
    if _unmoved(trainer, options):
        logprobs = old.values[positions]
    else:
        logprobs = trainer.score(select_rows(rollouts.sequences(temperature=True), rows))
    chosen = marked_by_covariance(
        logprobs,
        old.values[positions],
        rollouts.values[schema.ADVANTAGES][positions],
        rollouts.response_lengths[rows],
        options,
        np.random.Generator(np.random.PCG64([trainer.options.seed, trainer.step])),
    )
    marks = {name: np.zeros(len(old.values), dtype=bool) for name in chosen}
    for name, tokens in chosen.items():
        marks[name][positions] = tokens
    return marks


def logprob_gap(rollouts: Rollouts, old: OldLogprobs, limit: float | None) -> dict[str, float]:
    """How far the trainer's log-probabilities are from the sampler's, in nats: metrics by name.

    old: the trainer's, under the weights before the update. limit: of the mean gap; None for no limit.

    Raises GateError if the mean gap is above the limit.
    """
    import torch

    from primecli.core.metrics import effective_sample_size

    log_ratio = old.values - rollouts.values[schema.ROLLOUT_LOGPROBS]  # (N,)
    gap = np.abs(log_ratio)
    metrics = {
        "logprob_gap_mean": float(gap.mean()),
        "logprob_gap_p95": float(np.quantile(gap, 0.95)),
        "logprob_gap_max": float(gap.max()),
        "effective_sample_size": effective_sample_size(torch.from_numpy(log_ratio)),
    }
    if limit is not None and metrics["logprob_gap_mean"] > limit:
        raise GateError(
            f"the mean gap |rollout_logprobs - old_logprobs| is {metrics['logprob_gap_mean']:.4g} nats, and "
            f"--max-logprob-gap is {limit:g} (p95 {metrics['logprob_gap_p95']:.4g}, max "
            f"{metrics['logprob_gap_max']:.4g})",
            "the sampler and the trainer disagree about the same weights; no checkpoint was written",
        )
    return metrics


def batch_health(rollouts: Rollouts, parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Metrics of the batch itself: response lengths, truncation, and each reward's share of the advantages' variance.

    parts: (N,) each, the parts of the advantages that the shards have, by column, such as process_advantages.
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
            for name, part in parts.items()
            if math.isfinite(share := variance_share(torch.from_numpy(part), advantages))
        },
    }


def measure_update(trainer: Trainer, rollouts: Rollouts, old: OldLogprobs, responses: int) -> dict[str, float]:
    """How far the finished update has moved the policy, measured on some of its rollouts, spread over the batch.

    kl_update: the mean of k3 over tokens, in nats, an estimate of KL(old || new) that is never negative.
    ratio_update_min, ratio_update_max: the extremes, over tokens, of new over old probability.

    responses: how many to measure on.
    """
    import torch

    from primecli.core.losses import kl_estimate

    rows = np.linspace(0, len(rollouts) - 1, min(responses, len(rollouts))).astype(int).tolist()
    new_logprobs = torch.from_numpy(trainer.score(select_rows(rollouts.sequences(temperature=True), rows)))  # (n,)
    old_logprobs = torch.from_numpy(old.values[token_positions(rollouts, rows)])  # (n,)
    ratio = (new_logprobs - old_logprobs).exp()
    return {
        "kl_update": float(kl_estimate(old_logprobs, new_logprobs, "k3").mean()),
        "ratio_update_min": float(ratio.min()),
        "ratio_update_max": float(ratio.max()),
    }
