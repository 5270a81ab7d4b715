"""What update-prm trains the PRM for: the loss of responses' rewards, and the score that it makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

from primecli.core.registry import PRM_OBJECTIVES

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Graded:
    """Some responses with what an objective compares their rewards with.

    lengths: (b,) int64, tokens.
    outcomes: (b,), outcome rewards in [0, 1].
    accuracy: (b,), the mean outcome of each response's group, over the whole batch.
    opponents: (b,), with dpo the mean score before the step of those that each response is compared with, in nats;
        otherwise 0.
    """

    lengths: Tensor
    outcomes: Tensor
    accuracy: Tensor
    opponents: Tensor

    @classmethod
    def of(cls, lengths: Tensor, outcomes: Tensor, groups: Tensor) -> Self:
        """The responses of whole groups, the opponents' scores being 0. The arguments: (B,) each, groups int64."""
        from primecli.core.prm_objectives import group_accuracy

        return cls(lengths, outcomes, group_accuracy(outcomes, groups), outcomes.new_zeros(len(outcomes)))

    def rows(self, rows: Tensor) -> Graded:
        """Only these rows, by their numbers, (k,) int64."""
        return Graded(self.lengths[rows], self.outcomes[rows], self.accuracy[rows], self.opponents[rows])

    def to(self, device: torch.device) -> Graded:
        """On a device, the numbers as float32."""
        single = (values.float().to(device) for values in (self.outcomes, self.accuracy, self.opponents))
        return Graded(self.lengths.to(device), *single)


@dataclass(frozen=True, slots=True)
class PrmObjective:
    """The objective that the PRM is trained for.

    name: such as ce; one of `PRM_OBJECTIVES`.
    margin: by how much a score or value must be on its outcome's side, nats.
    balance: how the accuracy of a response's group enters: boundary, weight, both or neither; see
        `core.prm_objectives.balanced_logistic`.
    """

    name: str
    margin: float = 0.0
    balance: tuple[str, ...] = ()

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
        return scores / lengths.to(scores.dtype) if PRM_OBJECTIVES[self.name].of_means else scores

    def loss(self, rewards: Tensor, scores: Tensor, graded: Graded, denominator: float) -> Tensor:
        """(): the loss of some responses, a sum divided by `denominator`.

        rewards: (n,), row after row. scores: (b,), those of `scores`.
        """
        from primecli.core import losses, prm_objectives
        from primecli.core.ragged import pad, response_mask

        outcomes = graded.outcomes
        if self.name == "dpo":
            return losses.prm_dpo(scores, graded.opponents, outcomes, denominator=denominator)
        prm_prefix = partial(prm_objectives.prm_prefix, margin=self.margin, balance=self.balance)
        prm_balanced = partial(prm_objectives.prm_balanced, margin=self.margin, balance=self.balance)
        if self.name == "prefix":
            padded, mask = pad(rewards, graded.lengths), response_mask(graded.lengths)  # (b, T) each
            return prm_prefix(padded, mask, outcomes, graded.accuracy, denominator=denominator)
        if self.margin or self.balance:
            return prm_balanced(scores, outcomes, graded.accuracy, denominator=denominator)
        return losses.prm_cross_entropy(scores, outcomes, denominator=denominator)
