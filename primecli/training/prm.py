"""What update-prm does between its input and its checkpoint: reference, steps, and how good the PRM is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts, Sequences
from primecli.training.trainer import MicroBatch, Trainer, device_tensor

if TYPE_CHECKING:
    from torch import Tensor


def check_graded(rollouts: Rollouts) -> None:
    """Raises InputError where an outcome reward is null."""
    ungraded = int(np.isnan(rollouts.values[schema.OUTCOME_REWARD]).sum())
    if ungraded:
        raise InputError(
            f"outcome_reward is null in {ungraded} rows",
            "the verifier could not grade them; `primecli filter` drops their groups",
        )


def response_scores(rollouts: Rollouts, logprobs: np.ndarray, beta: float) -> np.ndarray:
    """(B,) float64: each response's sum of implicit rewards, from the PRM's (N,) log-probabilities."""
    rewards = beta * (logprobs.astype(np.float64) - rollouts.values[schema.REF_LOGPROBS])
    return np.add.reduceat(rewards, rollouts.starts()[:-1])


def subset(sequences: Sequences, rows: Sequence[int]) -> Sequences:
    """Some rows of the sequences, in that order."""
    return Sequences([sequences.prompt_ids[row] for row in rows], [sequences.response_ids[row] for row in rows])


def evaluate(trainer: Trainer, rollouts: Rollouts, beta: float, loss: str) -> dict[str, float]:
    """How well the PRM, as it stands, orders and predicts the outcomes of the whole batch.

    loss: of all responses. pair_accuracy: share of the pairs of a better and a worse response of one group that it
    orders rightly, a tie half; pair_accuracy_by_group: the mean of the groups' own, 0.5 for a group without a pair.
    sign_accuracy: share of responses whose score is above 0 where the outcome is above 0.5.
    calibration_error: of sigmoid(score). reward_right, reward_wrong: mean score of the responses on either side of 0.5.
    """
    logprobs = scoring.score(
        trainer.model, trainer.placement, rollouts.sequences(), micro_batch_tokens=trainer.options.micro_batch_tokens
    )
    return quality(
        response_scores(rollouts, logprobs, beta),
        rollouts.values[schema.OUTCOME_REWARD],
        rollouts.group_index,
        loss,
    )


def quality(scores: np.ndarray, outcomes: np.ndarray, group_index: np.ndarray, loss: str) -> dict[str, float]:
    """The metrics of `evaluate` from scores, outcome rewards and groups, (B,) each."""
    import torch

    from primecli.core.metrics import calibration_error, weighted_pair_accuracy
    from primecli.core.pairs import count_pairs

    given, labels = torch.from_numpy(scores).double(), torch.from_numpy(outcomes).double()
    groups = torch.from_numpy(group_index)
    accuracy = count_pairs(scores, outcomes, group_index).accuracy()
    right, wrong = given[labels > 0.5], given[labels <= 0.5]
    return {
        "loss": float(prm_loss(given, labels, groups, loss)),
        **({} if accuracy is None else {"pair_accuracy": accuracy}),
        "pair_accuracy_by_group": weighted_pair_accuracy(given, labels, groups),
        "sign_accuracy": float(((given > 0) == (labels > 0.5)).double().mean()),
        "calibration_error": calibration_error(given, labels),
        **({"reward_right": float(right.mean())} if len(right) else {}),
        **({"reward_wrong": float(wrong.mean())} if len(wrong) else {}),
    }


def prm_loss(scores: Tensor, outcomes: Tensor, groups: Tensor, loss: str) -> Tensor:
    """The loss of whole groups, its mean over responses."""
    from primecli.core.losses import opponent_scores, prm_cross_entropy, prm_dpo

    if loss == "dpo":
        return prm_dpo(scores, opponent_scores(scores, outcomes, groups), outcomes, denominator=len(scores))
    return prm_cross_entropy(scores, outcomes, denominator=len(scores))


def mini_batches(trainer: Trainer, rollouts: Rollouts, loss: str) -> Iterator[list[int]]:
    """Row numbers of each mini-batch; for `dpo` it is of whole groups."""
    if loss == "dpo":
        return trainer.group_mini_batches(rollouts.group_index)
    return trainer.mini_batches(len(rollouts))


def preflight(trainer: Trainer, rollouts: Rollouts, loss: str) -> None:
    """Tries the largest micro-batch, see `Trainer.preflight`."""
    sequences = rollouts.sequences()

    def forward(batch: scoring.Batch) -> Tensor:
        return scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs.sum()

    trainer.preflight(sequences, mini_batches(trainer, rollouts, loss), forward)


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float, loss: str) -> None:
    """One optimizer step of the PRM over a mini-batch; for `dpo` it is of whole groups."""
    import torch

    from primecli.core.losses import opponent_scores, prm_cross_entropy, prm_dpo
    from primecli.core.pairs import count_pairs
    from primecli.core.rewards import implicit_process_rewards

    sequences = rollouts.sequences()
    outcomes = rollouts.values[schema.OUTCOME_REWARD]
    groups = torch.from_numpy(rollouts.group_index[rows])
    scores = np.zeros(len(rollouts), dtype=np.float64)
    opponents = np.zeros(len(rollouts), dtype=np.float64)
    if loss == "dpo":
        before = torch.from_numpy(_current_scores(trainer, rollouts, rows, beta))
        opponents[rows] = opponent_scores(before, torch.from_numpy(outcomes[rows]).double(), groups).numpy()

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        logprobs = scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs  # (N,)
        ref_logprobs = device_tensor(rollouts.token_rows(batch.rows, schema.REF_LOGPROBS), trainer.placement)
        rewards = implicit_process_rewards(logprobs, ref_logprobs, beta)
        tokens = rollouts.response_lengths[batch.rows]
        # (B,): a response's score is the sum of its tokens' rewards
        summed = torch.stack([piece.sum() for piece in torch.split(rewards, tokens.tolist())])
        outcome = device_tensor(outcomes[batch.rows], trainer.placement)
        scores[batch.rows] = summed.detach().double().cpu().numpy()
        if loss == "dpo":
            value = prm_dpo(
                summed, device_tensor(opponents[batch.rows], trainer.placement), outcome, denominator=len(rows)
            )
        else:
            value = prm_cross_entropy(summed, outcome, denominator=len(rows))
        sums = {
            "sign_accuracy": float(((summed > 0) == (outcome > 0.5)).sum()),
            "mean_score": float(summed.detach().sum()),
            "mean_outcome": float(outcome.sum()),
        }
        return MicroBatch(value, sums)

    def finish(sums: dict[str, float]) -> dict[str, float]:
        pairs = count_pairs(scores[rows], outcomes[rows], rollouts.group_index[rows]).accuracy()
        found = {name: value if name == "loss" else value / len(rows) for name, value in sums.items()}
        return {**found, **({} if pairs is None else {"pair_accuracy": pairs})}

    trainer.take_step(sequences, rows, micro_batch, finish)


def _current_scores(trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float) -> np.ndarray:
    """(len(rows),) scores of some responses under the weights before the step."""
    logprobs = scoring.score(
        trainer.model,
        trainer.placement,
        subset(rollouts.sequences(), rows),
        micro_batch_tokens=trainer.options.micro_batch_tokens,
    )
    rewards = beta * (logprobs.astype(np.float64) - rollouts.token_rows(rows, schema.REF_LOGPROBS))
    starts = np.concatenate([[0], np.cumsum(rollouts.response_lengths[rows])[:-1]])
    return np.add.reduceat(rewards, starts)
