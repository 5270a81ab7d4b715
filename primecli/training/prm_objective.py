"""What update-prm trains the PRM for: the loss of responses' rewards, and the score that it makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from primecli.core.registry import PRM_OBJECTIVES
from primecli.errors import PrimecliError
from primecli.plugins import Plugin

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Graded:
    """Some responses with what an objective compares their rewards with.

    lengths: (b,) int64, tokens.
    outcomes: (b,), outcome rewards in [0, 1].
    accuracy: (b,), the mean outcome of each response's group, over the whole batch.
    shares, slopes: (b,), with dpo each response's share of the loss before the step, and the derivative of the whole
        loss with respect to its score; otherwise 0.
    """

    lengths: Tensor
    outcomes: Tensor
    accuracy: Tensor
    shares: Tensor
    slopes: Tensor

    @classmethod
    def of(cls, lengths: Tensor, outcomes: Tensor, groups: Tensor) -> Self:
        """The responses of whole groups, not compared yet. The arguments: (B,) each, groups int64."""
        from primecli.core.prm_objectives import group_accuracy

        shares, slopes = outcomes.new_zeros((2, len(outcomes)))
        return cls(lengths, outcomes, group_accuracy(outcomes, groups), shares, slopes)

    def compare(self, rows: Tensor, scores: Tensor, groups: Tensor) -> None:
        """Compares some responses, whole groups, for dpo: sets their shares and slopes.

        The responses of a group may be spread over micro-batches. With the slopes, each micro-batch has the exact
        gradient of the loss of all pairs without the scores of others. rows: (k,) int64, their numbers; scores: (k,)
        before the step; groups: (k,) int64.
        """
        import torch

        from primecli.core.losses import prm_dpo

        with torch.enable_grad():
            at = scores.detach().clone().requires_grad_()
            shares = prm_dpo(at, self.outcomes[rows], groups)
            (slopes,) = torch.autograd.grad(shares.sum(), at)
        self.shares[rows], self.slopes[rows] = shares.detach(), slopes

    def rows(self, rows: Tensor) -> Graded:
        """Only these rows, by their numbers, (k,) int64."""
        every = (self.lengths, self.outcomes, self.accuracy, self.shares, self.slopes)
        return Graded(*(values[rows] for values in every))

    def to(self, device: torch.device) -> Graded:
        """On a device, the numbers as float32."""
        every = (self.outcomes, self.accuracy, self.shares, self.slopes)
        return Graded(self.lengths.to(device), *(values.float().to(device) for values in every))


@dataclass(frozen=True, slots=True)
class PrmObjective:
    """The objective that the PRM is trained for.

    name: such as ce; one of `PRM_OBJECTIVES`, or the name of `plugin`.
    margin: by how much a score or value must be on its outcome's side, nats.
    balance: how the accuracy of a response's group enters: boundary, weight, both or neither; see
        `core.prm_objectives.balanced_logistic`.
    plugin: the function of somebody else that it is: `function(rewards, response_mask, outcome_rewards,
        group_accuracy)` returns the loss of each response, (b,); the arguments are those of `prm_prefix`. If it has an
        attribute `of_means` that is true, the score of a response is the mean of its rewards.
    """

    name: str
    margin: float = 0.0
    balance: tuple[str, ...] = ()
    plugin: Plugin | None = None

    @property
    def of_means(self) -> bool:
        """Whether the score of a response is the mean of its rewards, rather than their sum."""
        if self.plugin is not None:
            return bool(getattr(self.plugin.load(), "of_means", False))
        return PRM_OBJECTIVES[self.name].of_means

    @property
    def compares(self) -> bool:
        """Whether the responses of a group are compared, so that a mini-batch has to hold whole groups."""
        return self.name == "dpo"

    def scores(self, rewards: Tensor, lengths: Tensor) -> Tensor:
        """(b,): the score of each response, by which the objective predicts its outcome.

        It is the sum of its rewards, or their mean if the objective is one of means. rewards: (n,), row after row;
        lengths: (b,).
        """
        import torch

        scores = torch.stack([piece.sum() for piece in torch.split(rewards, lengths.tolist())])
        return scores / lengths.to(scores.dtype) if self.of_means else scores

    def loss(self, rewards: Tensor, scores: Tensor, graded: Graded, denominator: float) -> Tensor:
        """(): the loss of some responses, a sum divided by `denominator`.

        rewards: (n,), row after row. scores: (b,), those of `scores`.
        """
        from primecli.core import losses, prm_objectives
        from primecli.core.ragged import pad, response_mask

        outcomes = graded.outcomes
        if self.plugin is not None:
            return self._plugged_in(rewards, graded).sum() / denominator
        if self.name == "dpo":
            return (graded.shares + graded.slopes * (scores - scores.detach())).sum() / denominator
        prm_prefix = partial(prm_objectives.prm_prefix, margin=self.margin, balance=self.balance)
        prm_balanced = partial(prm_objectives.prm_balanced, margin=self.margin, balance=self.balance)
        if self.name == "prefix":
            padded, mask = pad(rewards, graded.lengths), response_mask(graded.lengths)  # (b, T) each
            return prm_prefix(padded, mask, outcomes, graded.accuracy, denominator=denominator)
        if self.margin or self.balance:
            return prm_balanced(scores, outcomes, graded.accuracy, denominator=denominator)
        return losses.prm_cross_entropy(scores, outcomes, denominator=denominator)

    def _plugged_in(self, rewards: Tensor, graded: Graded) -> Tensor:
        """(b,): what the plug-in returns. Raises PrimecliError where that is not one loss for each response."""
        import torch

        from primecli.core.ragged import pad, response_mask

        assert self.plugin is not None
        padded, mask = pad(rewards, graded.lengths), response_mask(graded.lengths)  # (b, T) each
        losses = self.plugin.call(padded, mask, graded.outcomes, graded.accuracy)
        if not isinstance(losses, torch.Tensor) or losses.shape != graded.outcomes.shape:
            found = f"shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise PrimecliError(
                f"--loss {self.plugin}: returned {found} for {len(graded.outcomes)} responses",
                "return a tensor with the loss of each response",
            )
        if rewards.requires_grad and not losses.requires_grad:
            raise PrimecliError(
                f"--loss {self.plugin}: its losses have no gradient", "compute them from the rewards without detaching"
            )
        return losses
