"""What update-critic does between its input and its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.models import scoring
from primecli.shards import schema
from primecli.shards.parquet import Shard
from primecli.shards.rollouts import Rollouts
from primecli.training.trainer import MicroBatch, Trainer, device_tensor, token_positions

if TYPE_CHECKING:
    from torch import Tensor


def check_origin(parts: Sequence[Shard], fingerprint: str | None) -> None:
    """Raises InputError where the shards say that their values are of another critic than the one to be updated.

    The clip of the value loss is around the values that this critic gave. Shards of other tools say nothing.
    """
    for part in parts:
        records = [record for record in part.footer.provenance if record.get("stage") == "score-values"]
        found = records[-1]["models"].get("critic") if records else None
        if found is not None and found != fingerprint:
            raise InputError(
                f"{part.path}: its values are of the critic {found}, and --critic is {fingerprint}",
                "score the values with the critic that is to be updated",
            )


def evaluate(trainer: Trainer, rollouts: Rollouts) -> dict[str, float]:
    """How much of the returns' variance the values explain: those in the shards, and those of the critic as it is."""
    import torch

    from primecli.core.metrics import explained_variance

    after = scoring.score(
        trainer.model,
        trainer.placement,
        rollouts.sequences(),
        micro_batch_tokens=trainer.options.micro_batch_tokens,
        per_token=scoring.sequence_values,
    )
    returns = torch.from_numpy(rollouts.values[schema.RETURNS])
    found = {"before": rollouts.values[schema.VALUES], "after": after}
    shares = {
        f"explained_variance_{when}": explained_variance(torch.from_numpy(values), returns)
        for when, values in found.items()
    }
    return {name: share for name, share in shares.items() if np.isfinite(share)}


def preflight(trainer: Trainer, rollouts: Rollouts) -> None:
    """Tries the largest micro-batch, see `Trainer.preflight`."""
    sequences = rollouts.sequences()

    def forward(batch: scoring.Batch) -> Tensor:
        return scoring.sequence_values(trainer.model, trainer.placement, sequences, batch).sum()

    trainer.preflight(sequences, trainer.mini_batches(len(rollouts)), forward)


def take_step(trainer: Trainer, rollouts: Rollouts, rows: list[int], clip: float | None, aggregation: str) -> None:
    """One optimizer step of the critic over a mini-batch."""
    import torch

    from primecli.core.losses import token_weights, value_loss

    sequences = rollouts.sequences()
    tokens = int(rollouts.response_lengths[rows].sum())

    def micro_batch(batch: scoring.Batch) -> MicroBatch:
        values = scoring.sequence_values(trainer.model, trainer.placement, sequences, batch)  # (N,)
        places = token_positions(rollouts, batch.rows)
        weights = token_weights(
            torch.from_numpy(rollouts.response_lengths[batch.rows]), aggregation, tokens=tokens, responses=len(rows)
        ).to(trainer.placement.device)
        old_values, returns = (
            device_tensor(rollouts.values[name][places], trainer.placement) for name in (schema.VALUES, schema.RETURNS)
        )
        result = value_loss(values, old_values, returns, weights, clip=clip)
        sums = {
            "clip_fraction": float(result.clipped.sum()),
            "value_mean": float(values.detach().sum()),
            "return_mean": float(returns.sum()),
        }
        return MicroBatch(result.loss, sums)

    def finish(sums: dict[str, float]) -> dict[str, float]:
        return {name: value if name == "loss" else value / tokens for name, value in sums.items()}

    trainer.take_step(sequences, rows, micro_batch, finish)
