"""How the pairs of dpo are spread over micro-batches. What update-prm does with them: commands/test_update_prm.py."""

from __future__ import annotations

import pytest
import torch

from primecli.core.losses import prm_dpo
from primecli.training.prm_objective import Graded, PrmObjective


@pytest.mark.parametrize("cuts", [[[0, 1, 2, 3]], [[0], [1], [2], [3]], [[2, 0], [3, 1]]])
def test_micro_batches_have_the_loss_and_the_gradient_of_all_pairs(cuts: list[list[int]]) -> None:
    objective = PrmObjective("dpo")
    lengths, outcomes = torch.tensor([2, 1, 3, 2]), torch.tensor([1.0, 0.0, 0.5, 0.0]).double()
    groups = torch.zeros(4, dtype=torch.int64)
    rewards = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.2, 0.3, -0.7, 0.4]).double().requires_grad_()
    whole = prm_dpo(objective.scores(rewards, lengths), outcomes, groups).sum() / 4
    (expected,) = torch.autograd.grad(whole, rewards)

    graded = Graded.of(lengths, outcomes, groups)
    graded.compare(torch.arange(4), objective.scores(rewards, lengths), groups)
    tokens = torch.split(rewards, lengths.tolist())
    parts = []
    for cut in cuts:
        own, part = torch.cat([tokens[row] for row in cut]), graded.rows(torch.tensor(cut))
        parts.append(objective.loss(own, objective.scores(own, part.lengths), part, 4))
    loss = torch.stack(parts).sum()
    torch.testing.assert_close(loss, whole)
    (gradient,) = torch.autograd.grad(loss, rewards)
    torch.testing.assert_close(gradient, expected)


def test_only_the_rows_of_the_mini_batch_are_compared() -> None:
    outcomes, groups = torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), torch.tensor([7, 7, 3, 3])
    graded = Graded.of(torch.ones(4, dtype=torch.int64), outcomes, groups)
    rows, scores = torch.tensor([3, 2]), torch.tensor([1.0, 0.0]).double()
    graded.compare(rows, scores, groups[rows])
    assert graded.shares[:2].tolist() == [0, 0]
    assert graded.slopes[:2].tolist() == [0, 0]
    assert graded.shares[2:].tolist() == pytest.approx([1.3133, 1.3133], abs=1e-4)  # log(1 + e)
    assert graded.slopes[2:].tolist() == pytest.approx([-1.4621, 1.4621], abs=1e-4)  # 2 * sigmoid(1)
