"""What score-prm and score-values share: models that stay loaded from shard to shard, and the loop over the shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from primecli.models.options import ComputeOptions
    from primecli.pipeline.stage_run import StageRun


class Scorer:
    """Scores shards with a model of each role, loaded when the first shard is to be scored.

    names: the models by role, as the user named them.
    load: loads the model of a directory.
    per_token: what a model gives for every response token; its log-probability when None.
    """

    def __init__(
        self,
        run: StageRun,
        options: ComputeOptions,
        names: Mapping[str, str],
        load: Callable[..., Any],
        per_token: Callable[..., Any] | None = None,
    ) -> None:
        from primecli.models.preload import Preloader

        self.run = run
        self.options = options
        self.names = names
        self.per_token = per_token
        self.directories: dict[str, Path] = {}
        self._early = Preloader(options.threads, load)
        self._models: dict[str, Any] | None = None

    def preload(self) -> None:
        """Loads the models that are there, while the stage waits for its input."""
        self._early.begin([(name, self.options.resolved_dtype()) for name in self.names.values()])

    def each_shard(
        self,
        needs: list[str],
        score: Callable[[pa.Table, Path], tuple[pa.Table, dict[str, float]]],
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Adds the columns of a stage to each input shard. needs: columns. first: called once a shard has come."""
        from primecli.models.device import free_device_memory
        from primecli.models.identity import model_fingerprint, resolve_model
        from primecli.shards import schema

        tokens = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
        for shard in self.run.shards([*tokens, *needs], while_idle=self.preload):
            if not self.directories:
                # only now: a model that an update before this stage is to write is there from the first shard on
                self.directories = {role: resolve_model(name) for role, name in self.names.items()}
                self.run.models.update({role: model_fingerprint(path) for role, path in self.directories.items()})
                first()
            self.run.expect(shard)
            if self.run.skip(shard):
                self.run.progress.advance(shard.footer.rows)
                continue
            self.run.commit(*score(self.run.read(shard), shard.path))
        self._models = None
        free_device_memory()  # before our stdout closes, which is when the next stage begins

    def scores(self, table: pa.Table, path: Path) -> dict[str, np.ndarray]:
        """(N,) float32 by role: the numbers of all response tokens of a shard."""
        from primecli.models.device import peak_memory_gib
        from primecli.models.scoring import score
        from primecli.pipeline import pipe
        from primecli.shards import schema
        from primecli.shards.rollouts import Sequences, check_lists, split_rows

        check_lists(table, path)
        sequences = Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS))
        if self._models is None:
            self.placement = self.options.placement()
            self._models = {role: self._early.load(path, self.placement) for role, path in self.directories.items()}
        last = list(self._models)[-1]
        scores = {}
        for role, model in self._models.items():

            def done(rows: int, role: str = role) -> None:
                pipe.check_reader()
                self.run.progress.advance(rows if role == last else 0)

            scores[role] = score(
                model,
                self.placement,
                sequences,
                micro_batch_tokens=self.options.micro_batch_tokens,
                done=done,
                per_token=self.per_token,
            )
        self.run.gauges["peak_memory_gib"] = peak_memory_gib(self.placement)
        return scores
