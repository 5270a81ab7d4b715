"""The training of the process reward model in update-prm: its loss, its steps, and its quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.rollouts import Rollouts
from primecli.training.prm_objective import Graded, PrmObjective
from primecli.training.trainer import MicroBatch, Trainer, select_rows

if TYPE_CHECKING:
    from torch import Tensor

MEASURED_AT_ONCE = 256
"""Responses that are padded to one length at a time: of 3,000 tokens, 6 MB for each array of float64."""


def check_graded(rollouts: Rollouts) -> None:
    """Raises InputError if an outcome reward is null."""
    ungraded = int(np.isnan(rollouts.values[schema.OUTCOME_REWARD]).sum())
    if ungraded:
        raise InputError(
            f"outcome_reward is null in {ungraded} rows",
            "the verifier could not grade them; `primecli filter` drops their groups",
        )


def groups_with_pairs(rollouts: Rollouts) -> np.ndarray:
    """The numbers of the groups whose responses have different outcome rewards, in order.

    Raises InputError if there are none: nothing can be compared.
    """
    outcomes, groups = rollouts.values[schema.OUTCOME_REWARD], rollouts.group_index  # (B,) each
    low, high = np.full(int(groups.max()) + 1, np.inf), np.full(int(groups.max()) + 1, -np.inf)
    np.minimum.at(low, groups, outcomes)
    np.maximum.at(high, groups, outcomes)
    found = np.flatnonzero(low < high)
    if not len(found):
        raise InputError(
            "no group has responses with different outcome rewards, so --loss dpo has nothing to compare",
            "sample several responses to a prompt, or train with --loss ce",
        )
    return found


def current_rewards(
    trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float, done: Callable[[int], None] = lambda rows: None
) -> Tensor:
    """(n,) float64, nats: the implicit reward of each token of these rows under the current weights, row after row.

    It is beta * (log p_prm - log p_ref). done: as in `scoring.score`.
    """
    import torch

    logprobs = trainer.score(select_rows(rollouts.sequences(), rows), done=done)  # (n,)
    return torch.from_numpy(beta * (logprobs.astype(np.float64) - rollouts.token_rows(rows, schema.REF_LOGPROBS)))


def evaluate(
    trainer: Trainer, rollouts: Rollouts, beta: float, objective: PrmObjective, *, done: Callable[[int], None]
) -> dict[str, float]:
    """How well the PRM, with its current weights, ranks and predicts the outcomes of the whole batch; see `quality`.

    done: as in `scoring.score`.
    """
    import torch

    rewards = current_rewards(trainer, rollouts, list(range(len(rollouts))), beta, done)
    lengths = torch.from_numpy(rollouts.response_lengths)
    return quality(rewards, lengths, rollouts.values[schema.OUTCOME_REWARD], rollouts.group_index, objective)


def quality(
    rewards: Tensor, lengths: Tensor, outcomes: np.ndarray, group_index: np.ndarray, objective: PrmObjective
) -> dict[str, float]:
    """The metrics of the PRM's quality, by name.

    loss: the training loss, averaged over all responses.
    pair_accuracy: of the pairs of a better and a worse response in one group, the share that the scores rank correctly;
        ties count half. Left out if there are no pairs.
    pair_accuracy_by_group: the same for each group, its pairs weighted by the difference of their outcomes, averaged
        over the groups; a group without pairs counts 0.5.
    sign_accuracy: the share of responses whose score is above 0 if and only if their outcome is above 0.5.
    prefix_accuracy: the share of all tokens at which the rewards up to there sum to more than 0 if and only if the
        outcome is above 0.5; so it says how early the PRM knows.
    separation: how far the mean scores of right and wrong responses are apart, in standard deviations of the scores of
        one kind. Left out where there is only one kind, or where the scores do not vary.
    calibration_error: that of sigmoid(score) as the probability of a right outcome.
    reward_right, reward_wrong: the mean score of the responses with an outcome above 0.5, and of the others.

    The accuracies and the separation have no unit, so they can be compared between values of beta and objectives.

    The arguments: rewards, (N,) nats, row after row; lengths, (B,) tokens; outcomes, (B,) in [0, 1]; group_index, (B,),
    the number of each response's group.
    """
    import torch

    from primecli.core.metrics import calibration_error, separation, weighted_pair_accuracy
    from primecli.core.pairs import count_pairs

    labels, groups = torch.from_numpy(outcomes).double(), torch.from_numpy(group_index)
    scores, graded = objective.scores(rewards, lengths), Graded.of(lengths, labels, groups)
    if objective.compares:
        graded.compare(torch.arange(len(scores)), scores, groups)
    accuracy = count_pairs(scores.numpy(), outcomes, group_index).accuracy()
    apart = separation(scores, labels)
    right, wrong = scores[labels > 0.5], scores[labels <= 0.5]
    return {
        **_over_batch(rewards, scores, graded, objective),
        **({} if accuracy is None else {"pair_accuracy": accuracy}),
        "pair_accuracy_by_group": weighted_pair_accuracy(scores, labels, groups),
        "sign_accuracy": float(((scores > 0) == (labels > 0.5)).double().mean()),
        **({} if apart is None else {"separation": apart}),
        "calibration_error": calibration_error(scores, labels),
        **({"reward_right": float(right.mean())} if len(right) else {}),
        **({"reward_wrong": float(wrong.mean())} if len(wrong) else {}),
    }


def _over_batch(rewards: Tensor, scores: Tensor, graded: Graded, objective: PrmObjective) -> dict[str, float]:
    """The loss and the prefix accuracy of the whole batch, some rows at a time, so that padding takes little memory."""
    import torch

    from primecli.core.prm_objectives import prefix_hits
    from primecli.core.ragged import pad, response_mask

    loss, hits, first = 0.0, 0, 0
    for rows in torch.split(torch.arange(len(scores)), MEASURED_AT_ONCE):
        part = graded.rows(rows)
        tokens = rewards[first : first + int(part.lengths.sum())]
        first += len(tokens)
        loss += float(objective.loss(tokens, scores[rows], part, len(scores)))
        hits += int(prefix_hits(pad(tokens, part.lengths), response_mask(part.lengths), part.outcomes).sum())
    return {"loss": loss, "prefix_accuracy": hits / first}


def mini_batches(trainer: Trainer, rollouts: Rollouts, objective: PrmObjective) -> Iterator[list[int]]:
    """The row numbers of each mini-batch; of whole groups if the objective compares their responses.

    Then groups without responses that differ are left out.
    """
    if objective.compares:
        return trainer.group_mini_batches(rollouts.group_index, groups_with_pairs(rollouts))
    return trainer.mini_batches(len(rollouts))


def preflight(trainer: Trainer, rollouts: Rollouts, objective: PrmObjective) -> None:
    """Tries the largest micro-batch; see `Trainer.preflight`."""
    sequences = rollouts.sequences()

    def forward(batch: scoring.Batch) -> Tensor:
        return scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs.sum()

    trainer.preflight(sequences, mini_batches(trainer, rollouts, objective), forward)


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float, objective: PrmObjective) -> None:
    """Takes one optimizer step of the PRM over the mini-batch `rows`: one of those that `mini_batches` yields."""
    import torch

    from primecli.core.pairs import count_pairs
    from primecli.core.rewards import implicit_process_rewards

    sequences = rollouts.sequences()
    outcomes = rollouts.values[schema.OUTCOME_REWARD]  # (B,)
    all_scores = np.zeros(len(rollouts), dtype=np.float64)  # (B,), filled micro-batch by micro-batch
    graded = _graded_before(trainer, rollouts, rows, beta, objective)

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        logprobs = scoring.sequence_logprobs(trainer.model, trainer.placement, sequences, batch).logprobs  # (n,)
        ref_logprobs = trainer.device_tensor(rollouts.token_rows(batch.rows, schema.REF_LOGPROBS))  # (n,)
        rewards = implicit_process_rewards(logprobs, ref_logprobs, beta)  # (n,)
        part = graded.rows(torch.tensor(batch.rows)).to(trainer.placement.device)
        scores = objective.scores(rewards, part.lengths)  # (b,)
        all_scores[batch.rows] = scores.detach().double().cpu().numpy()
        value = objective.loss(rewards, scores, part, len(rows))
        sums = {
            "sign_accuracy": float(((scores > 0) == (part.outcomes > 0.5)).sum()),
            "mean_score": float(scores.detach().sum()),
            "mean_outcome": float(part.outcomes.sum()),
        }
        return MicroBatch(value, sums)

    def pair_accuracy() -> dict[str, float]:
        scores = trainer.over_ranks(all_scores)
        accuracy = count_pairs(scores[rows], outcomes[rows], rollouts.group_index[rows]).accuracy()
        return {} if accuracy is None else {"pair_accuracy": accuracy}

    trainer.take_step(sequences, rows, micro_batch, len(rows), pair_accuracy)


def _graded_before(
    trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float, objective: PrmObjective
) -> Graded:
    """The whole batch, in which the responses of the mini-batch are compared, if the objective does.

    Those of a group may be in several micro-batches, so all of their scores are computed first.
    """
    import torch

    outcomes = torch.from_numpy(rollouts.values[schema.OUTCOME_REWARD]).double()  # (B,)
    groups = torch.from_numpy(rollouts.group_index)  # (B,)
    graded = Graded.of(torch.from_numpy(rollouts.response_lengths), outcomes, groups)
    if objective.compares:
        scores = objective.scores(current_rewards(trainer, rollouts, rows, beta), graded.lengths[rows])
        graded.compare(torch.tensor(rows), scores, groups[rows])
    return graded
