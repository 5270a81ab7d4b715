"""The training of the critic in update-critic: which values it may learn from, its steps, and its quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.parquet import Shard
from primecli.shards.rollouts import Rollouts
from primecli.training.trainer import MicroBatch, Trainer

if TYPE_CHECKING:
    from torch import Tensor


def check_origin(shards: Sequence[Shard], fingerprint: str | None) -> None:
    """Raises InputError if a shard's values were computed by another critic than the one to be updated.

    The value loss is clipped around the values that this very critic computed. Shards of other tools, whose provenance
    does not say, pass.

    fingerprint: that of the critic to be updated.
    """
    for shard in shards:
        records = [record for record in shard.footer.provenance if record.get("stage") == "score-values"]
        origin = (records[-1].get("models") or {}).get("critic") if records else None
        if origin is not None and origin != fingerprint:
            raise InputError(
                f"{shard.path}: its values were computed by the critic {origin}, but --critic is {fingerprint}",
                "score the values with the critic that you want to update",
            )


def evaluate(trainer: Trainer, rollouts: Rollouts, *, done: Callable[[int], None]) -> dict[str, float]:
    """The share of the returns' variance that the values explain, by name. done: as in `scoring.score`.

    explained_variance_before: by the values in the shards. explained_variance_after: by those of the updated critic.
    Either is left out where it is not defined, because all returns are equal.
    """
    import torch

    from primecli.core.metrics import explained_variance

    returns = torch.from_numpy(rollouts.values[schema.RETURNS])  # (N,)
    values_by_time = {
        "before": rollouts.values[schema.VALUES],
        "after": trainer.score(rollouts.sequences(), per_token=scoring.sequence_values, done=done),
    }
    shares = {
        f"explained_variance_{time}": explained_variance(torch.from_numpy(values), returns)
        for time, values in values_by_time.items()
    }
    return {name: share for name, share in shares.items() if np.isfinite(share)}


def preflight(trainer: Trainer, rollouts: Rollouts) -> None:
    """Tries the largest micro-batch; see `Trainer.preflight`."""
    sequences = rollouts.sequences()

    def forward(batch: scoring.Batch) -> Tensor:
        return scoring.sequence_values(trainer.model, trainer.placement, sequences, batch).sum()

    trainer.preflight(sequences, trainer.mini_batches(len(rollouts)), forward)


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], clip: float | None, aggregation: str) -> None:
    """Takes one optimizer step of the critic over the mini-batch `rows`.

    clip: how far a value may move from the stored one before its error stops counting; None for no limit.
    aggregation: how the losses of tokens become one, such as token-mean.
    """
    from primecli.core.losses import value_loss

    sequences = rollouts.sequences()

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        values = scoring.sequence_values(trainer.model, trainer.placement, sequences, batch)  # (n,)
        old_values, returns = (
            trainer.device_tensor(rollouts.token_rows(batch.rows, name)) for name in (schema.VALUES, schema.RETURNS)
        )  # (n,) each
        weights = trainer.token_weights(rollouts, rows, batch, aggregation)  # (n,)
        result = value_loss(values, old_values, returns, weights, clip=clip)
        sums = {
            "clip_fraction": float(result.clipped.sum()),
            "value_mean": float(values.detach().sum()),
            "return_mean": float(returns.sum()),
        }
        return MicroBatch(result.loss, sums)

    trainer.take_step(sequences, rows, micro_batch, denominator=int(rollouts.response_lengths[rows].sum()))
