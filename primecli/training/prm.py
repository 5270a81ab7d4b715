"""The training of the process reward model in update-prm: its loss, its steps, and its quality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts
from primecli.training.trainer import MicroBatch, Trainer, select_rows

if TYPE_CHECKING:
    from torch import Tensor


def check_graded(rollouts: Rollouts) -> None:
    """Raises InputError if an outcome reward is null."""
    ungraded = int(np.isnan(rollouts.values[schema.OUTCOME_REWARD]).sum())
    if ungraded:
        raise InputError(
            f"outcome_reward is null in {ungraded} rows",
            "the verifier could not grade them; `primecli filter` drops their groups",
        )


def current_scores(trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float) -> np.ndarray:
    """(len(rows),) float64, nats: the score of each response under the current weights.

    It is the sum of the implicit rewards of the response's tokens, beta * (log p_prm - log p_ref).
    """
    logprobs = trainer.score(select_rows(rollouts.sequences(), rows))  # (n,): the tokens of these rows
    rewards = beta * (logprobs.astype(np.float64) - rollouts.token_rows(rows, schema.REF_LOGPROBS))  # (n,)
    starts = np.concatenate([[0], np.cumsum(rollouts.response_lengths[rows])[:-1]])  # where each row's tokens start
    return np.add.reduceat(rewards, starts)


def evaluate(trainer: Trainer, rollouts: Rollouts, beta: float, loss: str) -> dict[str, float]:
    """How well the PRM, with its current weights, ranks and predicts the outcomes of the whole batch; see `quality`."""
    scores = current_scores(trainer, rollouts, list(range(len(rollouts))), beta)
    return quality(scores, rollouts.values[schema.OUTCOME_REWARD], rollouts.group_index, loss)


def quality(scores: np.ndarray, outcomes: np.ndarray, group_index: np.ndarray, loss: str) -> dict[str, float]:
    """The metrics of the PRM's quality, by name.

    loss: the training loss, averaged over all responses.
    pair_accuracy: of the pairs of a better and a worse response in one group, the share that the scores rank correctly;
        ties count half. Left out if there are no pairs.
    pair_accuracy_by_group: the same for each group, its pairs weighted by the difference of their outcomes, averaged
        over the groups; a group without pairs counts 0.5.
    sign_accuracy: the share of responses whose score is above 0 if and only if their outcome is above 0.5.
    calibration_error: that of sigmoid(score) as the probability of a right outcome.
    reward_right, reward_wrong: the mean score of the responses with an outcome above 0.5, and of the others.

    The arguments: scores, (B,) nats; outcomes, (B,) in [0, 1]; group_index, (B,), the number of each response's group;
    loss, the one to train with, ce or dpo.
    """
    import torch

    from primecli.core.metrics import calibration_error, weighted_pair_accuracy
    from primecli.core.pairs import count_pairs

    predicted, labels = torch.from_numpy(scores).double(), torch.from_numpy(outcomes).double()
    groups = torch.from_numpy(group_index)
    accuracy = count_pairs(scores, outcomes, group_index).accuracy()
    right, wrong = predicted[labels > 0.5], predicted[labels <= 0.5]
    return {
        "loss": float(prm_loss(predicted, labels, groups, loss)),
        **({} if accuracy is None else {"pair_accuracy": accuracy}),
        "pair_accuracy_by_group": weighted_pair_accuracy(predicted, labels, groups),
        "sign_accuracy": float(((predicted > 0) == (labels > 0.5)).double().mean()),
        "calibration_error": calibration_error(predicted, labels),
        **({"reward_right": float(right.mean())} if len(right) else {}),
        **({"reward_wrong": float(wrong.mean())} if len(wrong) else {}),
    }


def prm_loss(scores: Tensor, outcomes: Tensor, groups: Tensor, loss: str) -> Tensor:
    """The mean loss, over responses, of whole groups. scores, outcomes, groups: (B,) each."""
    from primecli.core.losses import opponent_scores, prm_cross_entropy, prm_dpo

    if loss == "dpo":
        return prm_dpo(scores, opponent_scores(scores, outcomes, groups), outcomes, denominator=len(scores))
    return prm_cross_entropy(scores, outcomes, denominator=len(scores))


def mini_batches(trainer: Trainer, rollouts: Rollouts, loss: str) -> Iterator[list[int]]:
    """The row numbers of each mini-batch; with `dpo`, of whole groups."""
    if loss == "dpo":
        return trainer.group_mini_batches(rollouts.group_index)
    return trainer.mini_batches(len(rollouts))


def preflight(trainer: Trainer, rollouts: Rollouts, loss: str) -> None:
    """Tries the largest micro-batch; see `Trainer.preflight`."""
    sequences = rollouts.sequences()

    def forward(batch: scoring.Batch) -> Tensor:
        return scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs.sum()

    trainer.preflight(sequences, mini_batches(trainer, rollouts, loss), forward)


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float, loss: str) -> None:
    """Takes one optimizer step of the PRM over the mini-batch `rows`, which with `dpo` is of whole groups."""
    import torch

    from primecli.core.losses import opponent_scores, prm_cross_entropy, prm_dpo
    from primecli.core.pairs import count_pairs
    from primecli.core.rewards import implicit_process_rewards

    sequences = rollouts.sequences()
    outcomes = rollouts.values[schema.OUTCOME_REWARD]  # (B,)
    groups = torch.from_numpy(rollouts.group_index[rows])  # (len(rows),)
    all_scores = np.zeros(len(rollouts), dtype=np.float64)  # (B,), filled micro-batch by micro-batch
    opponents = np.zeros(len(rollouts), dtype=np.float64)  # (B,)
    if loss == "dpo":  # a response's opponents may be in another micro-batch, so their scores are computed first
        scores_before = torch.from_numpy(current_scores(trainer, rollouts, rows, beta))
        opponents[rows] = opponent_scores(scores_before, torch.from_numpy(outcomes[rows]).double(), groups).numpy()

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        logprobs = scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs  # (n,)
        ref_logprobs = trainer.device_tensor(rollouts.token_rows(batch.rows, schema.REF_LOGPROBS))  # (n,)
        rewards = implicit_process_rewards(logprobs, ref_logprobs, beta)  # (n,)
        lengths = rollouts.response_lengths[batch.rows]  # (b,)
        scores = torch.stack([piece.sum() for piece in torch.split(rewards, lengths.tolist())])  # (b,)
        all_scores[batch.rows] = scores.detach().double().cpu().numpy()
        outcome = trainer.device_tensor(outcomes[batch.rows])  # (b,)
        if loss == "dpo":
            opponent = trainer.device_tensor(opponents[batch.rows])  # (b,)
            value = prm_dpo(scores, opponent, outcome, denominator=len(rows))
        else:
            value = prm_cross_entropy(scores, outcome, denominator=len(rows))
        sums = {
            "sign_accuracy": float(((scores > 0) == (outcome > 0.5)).sum()),
            "mean_score": float(scores.detach().sum()),
            "mean_outcome": float(outcome.sum()),
        }
        return MicroBatch(value, sums)

    def pair_accuracy() -> dict[str, float]:
        scores = trainer.over_ranks(all_scores)
        accuracy = count_pairs(scores[rows], outcomes[rows], rollouts.group_index[rows]).accuracy()
        return {} if accuracy is None else {"pair_accuracy": accuracy}

    trainer.take_step(sequences, rows, micro_batch, len(rows), pair_accuracy)
