"""The losses that `update-policy --policy-loss` offers, each a function of the same arguments.

logprobs, old_logprobs: (N,) nats, of the tokens of whole responses, row after row. advantages: (N,).
weights: (N,), what each token counts in the loss (`losses.token_weights`); 0 where a mask leaves it out.
lengths: (B,), tokens of each response, N in total.
clip_low, clip_high: the bounds; what they bound differs from loss to loss, and infinite ones bound nothing.

The denominator is in the weights, so the losses of micro-batches add up to that of the mini-batch. A response is never
split over micro-batches, so sums over a response are complete in each.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from primecli.core.losses import MAX_LOG_RATIO, PolicyLoss, clipped_surrogate, ppo_clip
from primecli.core.ragged import row_sums

RATIO_CAP = 20.0  # DPPO's own: a ratio above it belongs to a token that was nearly impossible before


class Objective(Protocol):
    """A policy loss; the module says what the arguments are."""

    __name__: str

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        weights: Tensor,
        lengths: Tensor,
        **settings: float | None,
    ) -> PolicyLoss:
        """The loss, and what to watch about it. settings: clip_low, clip_high, and those that the registry names."""


def ppo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """`losses.ppo_clip`, for which it makes no difference where a response begins."""
    return ppo_clip(
        logprobs, old_logprobs, advantages, weights, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate with one ratio for a response: the geometric mean of its tokens' ratios.

    This is the form by token: the value of the ratio is the response's, its gradient the token's own, so each token has
    its own advantage. Where all tokens of a response have the same one, it is the form by sequence. A masked token
    still counts in the ratio of its response. GSPO (arXiv 2507.18071), equation 14.

    >>> ones = torch.ones(2)
    >>> found = gspo(torch.tensor([0.3, 0.1]), 0 * ones, ones, ones, torch.tensor([2]), clip_high=1.0)
    >>> found.ratio
    tensor([1.2214, 1.2214])
    """
    mean = row_sums((logprobs - old_logprobs).detach(), lengths) / lengths  # (B,)
    log_ratio = mean.repeat_interleave(lengths) + (logprobs - logprobs.detach())
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return clipped_surrogate(ratio, advantages, weights, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> PolicyLoss:
    """REINFORCE weighted with the clipped ratio: -clip(ratio, 1 - clip_low, 1 + clip_high) * A * log p.

    The ratio has no gradient, so a token whose ratio is outside the bounds still learns, with a bounded weight, where
    PPO's gradient is zero. A `clip_low` of 1 is no lower bound. CISPO (arXiv 2506.13585), equation 4.

    >>> at = torch.tensor([2.0], requires_grad=True)
    >>> loss = cispo(at, torch.zeros(1), torch.ones(1), torch.ones(1), torch.tensor([1]), clip_high=0.5).loss
    >>> torch.autograd.grad(loss, at)[0]
    tensor([-1.5000])
    """
    ratio = _ratio(logprobs, old_logprobs).detach()
    terms = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages * logprobs
    return _loss(terms, weights, ratio, low=ratio < 1 - clip_low, high=ratio > 1 + clip_high)


def sapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> PolicyLoss:
    """A soft gate in place of the clip: -A * 4 / tau * sigmoid(tau * (ratio - 1)), tau by the sign of A.

    At ratio 1 the gradient is that of REINFORCE; away from it, it fades smoothly, the faster the larger tau. Nothing is
    clipped. SAPO (arXiv 2511.20347), equations 5 and 6.

    >>> one = torch.ones(1)
    >>> sapo(0 * one, 0 * one, one, one, torch.tensor([1])).loss
    tensor(-2.)
    """
    ratio = _ratio(logprobs, old_logprobs)
    tau = torch.where(advantages > 0, tau_positive, tau_negative).to(ratio.dtype)
    terms = -advantages * 4 / tau * torch.sigmoid(tau * (ratio - 1))
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    return _loss(terms, weights, ratio, low=nothing, high=nothing)


def dppo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    *,
    clip_low: float = 0.15,
    clip_high: float = 0.15,
    ratio_cap: float = RATIO_CAP,
) -> PolicyLoss:
    """REINFORCE weighted with the ratio, without the tokens whose probability has already moved too far.

    The bounds are on the difference of probabilities, p - p_old, which is the token's share of the total variation, and
    not on the ratio: a rare token may change its ratio a lot, a likely one may not. A token is left out if A > 0 and
    p - p_old > clip_high, or A < 0 and p - p_old < -clip_low. The ratio has no gradient, and counts `ratio_cap` at
    most. The authors take the sampler's log-probabilities as old_logprobs. DPPO (arXiv 2602.04879), with the mask by
    total variation.

    >>> new, old = torch.tensor([0.9, 0.002]).log(), torch.tensor([0.5, 0.001]).log()
    >>> dppo(new, old, torch.ones(2), torch.ones(2), torch.tensor([2])).clipped_high
    tensor([ True, False])
    """
    ratio = _ratio(logprobs, old_logprobs).detach()
    moved = logprobs.detach().exp() - old_logprobs.exp()
    high = (advantages > 0) & (moved > clip_high)
    low = (advantages < 0) & (moved < -clip_low)
    kept = ~(low | high)
    terms = -advantages * ratio.clamp(max=ratio_cap) * kept * logprobs
    return _loss(terms, weights, ratio, low=low, high=high)


def gmpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    lengths: Tensor,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> PolicyLoss:
    """The mean advantage of a response times the geometric mean of its tokens' clipped ratios.

    The geometric mean is less sensitive to single large ratios than PPO's arithmetic one, so the bounds can be wider.
    They are on the logarithm of the ratio: -clip_low and clip_high. As in PPO, they hold a token only where it has gone
    too far in the direction of its advantage. A masked token counts as one whose ratio is 1.
    GMPO (arXiv 2507.20673), equation 4.

    >>> found = gmpo(torch.tensor([0.3, 0.9]), torch.zeros(2), torch.ones(2), torch.ones(2) / 2, torch.tensor([2]))
    >>> found.loss, found.clipped_high
    (tensor(-1.4191), tensor([False,  True]))
    """
    log_ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    side = advantages.sign()
    bounded = log_ratio.clamp(-clip_low, clip_high)
    held = side * bounded < side * log_ratio
    inside = torch.where(weights > 0, side * torch.where(held, side * bounded, side * log_ratio), 0.0)
    ratio = (row_sums(inside, lengths) / lengths).exp()  # (B,)
    sums = row_sums(advantages * weights.to(advantages.dtype), lengths)  # (B,)
    return PolicyLoss(
        loss=-(sums * ratio).sum(),
        ratio=ratio.detach().repeat_interleave(lengths),
        clipped_low=held & (advantages < 0) & (weights > 0),
        clipped_high=held & (advantages > 0) & (weights > 0),
        dual_clipped=torch.zeros_like(held),
    )


def _ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _loss(terms: Tensor, weights: Tensor, ratio: Tensor, *, low: Tensor, high: Tensor) -> PolicyLoss:
    inside = weights > 0
    return PolicyLoss(
        loss=(terms * weights.to(terms.dtype)).sum(),
        ratio=ratio.detach(),
        clipped_low=low & inside,
        clipped_high=high & inside,
        dual_clipped=torch.zeros_like(inside),
    )
