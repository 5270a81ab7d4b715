"""What score-prm and score-values share: models that stay loaded from shard to shard, and the loop over shards."""

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
    """Scores shards with one model per role. The models are loaded when the first shard has to be scored.

    run: the run of the stage.
    options: how to compute.
    names: the models by role, as the user named them, such as {"prm": "ckpt/prm/1"}.
    load: loads the model of a directory.
    per_token: computes a model's number for every response token; None for its log-probability.
    directories: the directories of the models, by role; empty before the first shard.
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
        self._preloader = Preloader(options.threads, load)
        self._models: dict[str, Any] | None = None  # by role; None before the first shard that has to be scored

    def preload(self) -> None:
        """Starts to load the models that exist already, while the stage waits for its input."""
        self._preloader.begin([(name, self.options.resolved_dtype()) for name in self.names.values()])

    def each_shard(
        self,
        needs: list[str],
        score: Callable[[pa.Table, Path], tuple[pa.Table, dict[str, float]]],
        first: Callable[[], None] = lambda: None,
    ) -> None:
        """Adds the columns of the stage to each input shard, unless the output exists.

        needs: the columns that the stage reads besides the token ids.
        score: the table with the new columns, and its counts, from the table and the path of a shard.
        first: called when the first shard has arrived and the models' directories are known.
        """
        from primecli.models.device import free_device_memory
        from primecli.models.identity import model_fingerprint, resolve_model
        from primecli.models.same_tokens import TokenCheck
        from primecli.shards import schema

        tokens_check = TokenCheck({})
        tokens = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
        for shard in self.run.shards([*tokens, *needs], while_idle=self.preload):
            if not self.directories:
                # not earlier: an update before this stage may have to write the model first, and then passes shards on
                self.directories = {role: resolve_model(name) for role, name in self.names.items()}
                self.run.models.update({role: model_fingerprint(path) for role, path in self.directories.items()})
                tokens_check = TokenCheck(self.directories)
                first()
            self.run.expect(shard)
            if self.run.skip(shard):
                self.run.progress.advance(shard.footer.rows)
                continue
            tokens_check.check(shard)
            self.run.commit(*score(self.run.read(shard), shard.path))
        self._models = None
        free_device_memory()  # before stdout closes and the next stage starts

    def scores(self, table: pa.Table, path: Path) -> dict[str, np.ndarray]:
        """(N,) float32 by role: the number of every response token of a shard. path: of the shard, for messages."""
        from primecli.models.device import peak_memory_gib
        from primecli.models.scoring import score
        from primecli.pipeline import pipe
        from primecli.shards import schema
        from primecli.shards.rollouts import Sequences, check_lists, split_rows

        check_lists(table, path)
        sequences = Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS))
        if self._models is None:
            self.placement = self.options.placement()
            self._models = {role: self._preloader.load(path, self.placement) for role, path in self.directories.items()}
        last_role = list(self._models)[-1]  # the only one that advances the progress display
        scores = {}
        for role, model in self._models.items():

            def done(rows: int, role: str = role) -> None:
                pipe.check_reader()
                self.run.progress.advance(rows if role == last_role else 0)

            scores[role] = score(
                model,
                self.placement,
                sequences,
                micro_batch_tokens=self.options.micro_batch_tokens,
                done=done,
                per_token=self.per_token,
                name_row=lambda row: f"{path}: row {row}",
            )
        self.run.gauges["peak_memory_gib"] = peak_memory_gib(self.placement)
        return scores
