"""The loss of the policy as the options describe it: between the columns of the shards and the formulas in core/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import PrimecliError
from primecli.plugins import Plugin
from primecli.shards import schema
from primecli.training.policy_options import PolicyOptions
from primecli.training.trainer import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor

    from primecli.core.losses import PolicyLoss

CLIP_COV, KL_COV = "clip_cov", "kl_cov"


def policy_loss(
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    columns: Mapping[str, Tensor],
    weights: Tensor,
    lengths: Tensor,
    marked: Mapping[str, Tensor],
    options: PolicyOptions,
) -> MicroBatch:
    """The loss that the options describe, of the n tokens of a micro-batch, and its metrics, summed over these tokens.

    logprobs, entropy: (n,) nats, under the weights to be trained. old_logprobs: (n,) nats.
    columns: (n,) each, by name: advantages, rollout_logprobs and, for the KL, ref_logprobs.
    weights: (n,), what each token counts in the loss. lengths: (b,), tokens of each response.
    marked: (n,) bool each, by option: the tokens that Clip-Cov leaves out and that KL-Cov penalises.
    """
    from primecli.core.losses import kl_estimate

    advantages, counted, sums = _corrected(logprobs, old_logprobs, columns, weights, lengths, options)
    if CLIP_COV in marked:
        counted = counted * ~marked[CLIP_COV]
        sums["clip_cov_masked"] = float(marked[CLIP_COV].sum())
    arguments = options.loss_arguments()
    function = loss_function(options)
    result = function(logprobs, old_logprobs, advantages, counted, lengths, **arguments)
    loss = result.loss
    if KL_COV in marked:
        moved = (logprobs - old_logprobs).abs() * marked[KL_COV]
        loss = loss + options.kl_cov_coef * (moved * counted.to(moved.dtype)).sum()
        sums["kl_cov_penalised"] = float(marked[KL_COV].sum())
    if schema.REF_LOGPROBS in columns:
        kl = kl_estimate(logprobs, columns[schema.REF_LOGPROBS], options.kl)
        sums["kl_ref"] = float(kl.detach().sum())
        if options.kl_coef:
            loss = loss + options.kl_coef * (kl * weights.to(kl.dtype)).sum()
    if options.entropy_coef:
        loss = loss - options.entropy_coef * (entropy * weights.to(entropy.dtype)).sum()
    sums |= {
        "clip_fraction": float((result.clipped_low | result.clipped_high).sum()),
        "clip_fraction_low": float(result.clipped_low.sum()),
        "clip_fraction_high": float(result.clipped_high.sum()),
        **({"dual_clip_fraction": float(result.dual_clipped.sum())} if arguments.get("dual_clip") is not None else {}),
        "kl": float((old_logprobs - logprobs.detach()).sum()),
        "entropy": float(entropy.detach().sum()),
    }
    extremes = {"ratio_min": float(result.ratio.min()), "ratio_max": float(result.ratio.max())}
    return MicroBatch(loss, sums, extremes)


def loss_function(options: PolicyOptions) -> Callable[..., PolicyLoss]:
    """The function of the loss, as `core.policy_losses.Objective`.

    A plug-in is called as `function(logprobs, old_logprobs, advantages, lengths, clip_low=…, clip_high=…)` and returns
    the term of each token, and which terms were clipped, (n,) each; the terms are weighted and summed here.
    """
    from primecli.core.registry import policy_loss as own

    plugin = options.plugin()
    return own(options.policy_loss) if plugin is None else partial(_plugged_in, plugin)


def _plugged_in(
    plugin: Plugin,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    **bounds: float,
) -> PolicyLoss:
    """The loss of a plug-in. Raises PrimecliError where that is not as `loss_function` says."""
    import torch

    from primecli.core.losses import MAX_LOG_RATIO, PolicyLoss

    found = plugin.call(logprobs, old_logprobs, advantages, lengths, **bounds)
    shapes = tuple(getattr(part, "shape", None) for part in found) if isinstance(found, tuple) else ()
    if shapes != (logprobs.shape, logprobs.shape) or found[1].dtype != torch.bool:
        raise PrimecliError(
            f"--policy-loss {plugin}: did not return the terms of {len(logprobs)} tokens and which were clipped",
            f"return a pair of tensors ({len(logprobs)},), the second of bools",
        )
    terms, clipped = found
    if logprobs.requires_grad and not terms.requires_grad:
        raise PrimecliError(
            f"--policy-loss {plugin}: its terms have no gradient", "compute them from logprobs without detaching"
        )
    inside = weights > 0
    log_ratio = (logprobs - old_logprobs).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return PolicyLoss(
        loss=(terms * weights.to(terms.dtype)).sum(),
        ratio=log_ratio.exp(),
        clipped_low=clipped & (advantages < 0) & inside,
        clipped_high=clipped & (advantages > 0) & inside,
        dual_clipped=torch.zeros_like(clipped),
    )


def _corrected(
    logprobs: Tensor,
    old_logprobs: Tensor,
    columns: Mapping[str, Tensor],
    weights: Tensor,
    lengths: Tensor,
    options: PolicyOptions,
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The advantages with importance weights; what each token counts, 0 where it is masked; and how much that removed.

    The arguments are those of `policy_loss`. Masks concern this loss only: the KL to a reference and the entropy bonus
    still count every token.
    """
    from primecli.core.mismatch import on_policy_enough, ratio_by, truncated, within

    advantages, sampled = columns[schema.ADVANTAGES], columns[schema.ROLLOUT_LOGPROBS]
    kept = weights > 0  # (n,)
    sums: dict[str, float] = {}
    if options.mismatch_band is not None:
        ratio = ratio_by(options.mismatch_level, old_logprobs, sampled, lengths)
        inside = within(ratio, *options.mismatch_band)
        sums["mismatch_masked"] = float((~inside).sum())
        kept = kept & inside
    if options.off_policy_mask is not None:
        near = on_policy_enough(logprobs, sampled, advantages, lengths, options.off_policy_mask)
        sums["off_policy_masked"] = float((~near).sum())
        kept = kept & near
    if options.tis_cap is not None:
        ratio = ratio_by(options.tis_level, old_logprobs, sampled, lengths)
        importance = truncated(ratio, options.tis_floor, options.tis_cap)
        sums["importance_weight"] = float(importance.sum())
        sums["importance_capped"] = float((importance >= options.tis_cap).sum())
        if options.tis_floor:
            sums["importance_floored"] = float((importance <= options.tis_floor).sum())
        advantages = advantages * importance
    return advantages, weights * kept, sums


def marked_by_covariance(
    logprobs: np.ndarray,
    old_logprobs: np.ndarray,
    advantages: np.ndarray,
    lengths: np.ndarray,
    options: PolicyOptions,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The tokens of a whole mini-batch that --clip-cov leaves out and that --kl-cov penalises: (n,) bool by option.

    logprobs: (n,) nats, under the weights before the step. old_logprobs, advantages: (n,). lengths: (b,), tokens.
    generator: draws the tokens of --clip-cov.
    """
    import torch

    from primecli.core.covariance import clip_cov, covariances, kl_cov

    new, old, credit = (torch.from_numpy(values).double() for values in (logprobs, old_logprobs, advantages))
    covariance = covariances(credit, new)
    marked = {}
    if options.clip_cov is not None:
        ones = torch.ones_like(new)
        function = loss_function(options)
        result = function(new, old, credit, ones, torch.from_numpy(lengths), **options.loss_arguments())
        draws = torch.from_numpy(generator.random(len(new)))
        clipped = result.clipped_low | result.clipped_high
        marked[CLIP_COV] = clip_cov(covariance, clipped, draws, options.clip_cov, *options.clip_cov_band).numpy()
    if options.kl_cov is not None:
        marked[KL_COV] = kl_cov(covariance, options.kl_cov).numpy()
    return marked
