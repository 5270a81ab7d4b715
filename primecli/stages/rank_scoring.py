"""Scoring on ranks, for models that do not fit on one device: each rank has some rows of every matrix.

Rank 0 runs the stage: it reads the pipe and writes the shards. The others compute their share of each shard that it
calls for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from primecli.errors import UsageError
from primecli.models.options import ComputeOptions, RankOptions
from primecli.stages.spread import SpreadOptions, is_spread

if TYPE_CHECKING:
    from primecli.parallel.ranks import Ranks
    from primecli.stages.scorer import ShardScorer


@dataclass(frozen=True, kw_only=True)
class RankScoringOptions(ComputeOptions, SpreadOptions, RankOptions):
    """The options of a stage that scores shards: by workers, each with whole models, or by ranks that share them."""

    def check(self) -> None:
        """Raises UsageError for workers and ranks at once."""
        super().check()
        if self.nproc is not None and is_spread(self):
            other = "--ray" if self.ray is not None else "--workers"
            raise UsageError(
                f"--nproc and {other} do not go together",
                f"{other} where the models fit on one device, --nproc where they do not",
            )


S = TypeVar("S", bound=RankScoringOptions)


def on_ranks(options: S, stage: Callable[[S], None], open_scorer: Callable[[S], ShardScorer]) -> None:
    """Runs a stage in this process, or on the ranks that --nproc, torchrun or srun ask for.

    stage: runs it where it reads and writes. open_scorer: opens what scores its shards.
    """
    from primecli.parallel.launch import started_ranks
    from primecli.parallel.ranks import join

    if started_ranks(options.nproc):
        return
    ranks = join()
    if ranks is None:
        stage(options)
        return
    options = replace(options, device=ranks.device(options.device))
    with ranks.working():
        if ranks.first:
            with ranks.calling():
                stage(options)
        else:
            _follow(ranks, open_scorer(options))


def _follow(ranks: Ranks, scorer: ShardScorer) -> None:
    from primecli.shards import parquet, schema
    from primecli.shards.rollouts import Sequences, split_rows
    from primecli.stages.scorer import Models

    scorer.prepare(alone=False)
    models: Models | None = None
    for work in ranks.calls():
        path = Path(work["shard"])
        columns = [schema.PROMPT_IDS, schema.RESPONSE_IDS]
        table = parquet.read_table(path, columns, expected=parquet.read_footer(path))
        sequences = Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS))
        models = models or Models.resolve(work["models"])
        scorer.models.scores(sequences, path, models, _no_progress)
    scorer.close()


def _no_progress(rows: Any) -> None:
    """Rank 0 shows the progress."""
