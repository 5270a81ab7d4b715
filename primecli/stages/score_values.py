"""score-values: computes the critic's value of every response token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from primecli.models.options import Critic
from primecli.options import Out, Shards
from primecli.pipeline.options import StageOptions
from primecli.stages.rank_scoring import RankScoringOptions, on_ranks

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from primecli.stages.scorer import ShardScorer


@dataclass(frozen=True, kw_only=True)
class ScoreValuesOptions(RankScoringOptions, StageOptions):
    """The options of `primecli score-values`."""

    critic: Critic
    shards: Shards = ()
    out: Out = None


def score_values(options: ScoreValuesOptions) -> None:
    """Adds to shards the value of every response token: the return that a critic predicts from there on."""
    on_ranks(options, _score, open_scorer)


def _score(options: ScoreValuesOptions) -> None:
    from primecli.pipeline.stage_run import StageRun
    from primecli.stages.scorer import score_shards

    with StageRun("score-values", options, finish=metrics) as run:
        score_shards(run, options, {"critic": options.critic}, open_scorer, [])


def open_scorer(options: ScoreValuesOptions) -> ShardScorer:
    """What computes the column of score-values, in this process or in a worker."""
    from primecli.models.loading import load_critic
    from primecli.models.scoring import sequence_values
    from primecli.stages.scorer import LoadedModels, ShardScorer

    return ShardScorer(LoadedModels(options, {"critic": options.critic}, load_critic, sequence_values), _with_values)


def _with_values(table: pa.Table, scores: dict[str, np.ndarray]) -> tuple[pa.Table, dict[str, float]]:
    """The table with the column of score-values, and its counts. scores: (N,) by role: critic."""
    import numpy as np

    from primecli.shards import schema
    from primecli.shards.columns import flat_column, list_column, with_columns

    values = scores["critic"]
    _, lengths = flat_column(table, schema.RESPONSE_IDS)
    counts = {"tokens": len(values), "value_sum": float(values.sum(dtype=np.float64))}
    return with_columns(table, {schema.VALUES: list_column(values, lengths, schema.VALUES)}), counts


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    return {"value_mean": counts["value_sum"] / counts["tokens"]} if counts.get("tokens") else {}
