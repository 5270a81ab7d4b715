"""score-values: computes the critic's value of every response token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from primecli.models.options import ComputeOptions, Critic
from primecli.options import Out, Shards
from primecli.pipeline.options import StageOptions

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ScoreValuesOptions(ComputeOptions, StageOptions):
    """The options of `primecli score-values`."""

    critic: Critic
    shards: Shards = ()
    out: Out = None


def score_values(options: ScoreValuesOptions) -> None:
    """Adds to shards the value of every response token: the return that a critic predicts from there on."""
    import numpy as np

    from primecli.models.loading import load_critic
    from primecli.models.scoring import sequence_values
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards import schema
    from primecli.shards.columns import flat_column, list_column, with_columns
    from primecli.stages.scorer import Scorer

    with StageRun("score-values", options, finish=metrics) as run:
        scorer = Scorer(run, options, {"critic": options.critic}, load_critic, sequence_values)

        def score(table: pa.Table, path: Path) -> tuple[pa.Table, dict[str, float]]:
            values = scorer.scores(table, path)["critic"]  # (N,)
            _, lengths = flat_column(table, schema.RESPONSE_IDS)
            counts = {"tokens": len(values), "value_sum": float(values.sum(dtype=np.float64))}
            return with_columns(table, {schema.VALUES: list_column(values, lengths, schema.VALUES)}), counts

        scorer.each_shard([], score)


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    return {"value_mean": counts["value_sum"] / counts["tokens"]} if counts.get("tokens") else {}
