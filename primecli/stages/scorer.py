"""What score-prm and score-values share: models that stay loaded from shard to shard, and the loop over shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from primecli.parallel.ranks import joined

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from primecli.models.options import ComputeOptions
    from primecli.pipeline.making import Product
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Sequences
    from primecli.stages.spread import SpreadOptions

PEAK_MEMORY = "peak_memory_gib"

Signature = tuple[tuple[str, int, int], ...]
"""What `identity.signature` says of the files of a model."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models that score a shard.

    directories: by role, such as {"prm": Path("ckpt/prm/1")}.
    signatures: of their files, by role, from before their fingerprints were taken.
    """

    directories: Mapping[str, Path]
    signatures: Mapping[str, Signature]

    @classmethod
    def resolve(cls, names: Mapping[str, str]) -> Self:
        """The models that the user named, by role. Raises InputError where one is not there."""
        from primecli.models.identity import resolve_model, signature

        directories = {role: resolve_model(name) for role, name in names.items()}
        return cls(directories, {role: signature(path) for role, path in directories.items()})

    def fingerprints(self) -> dict[str, str]:
        """The identities of their weights, by role."""
        from primecli.models.identity import model_fingerprint

        return {role: model_fingerprint(path) for role, path in self.directories.items()}


class LoadedModels:
    """One model per role, loaded when they are first needed, and then kept.

    options: how to compute.
    names: the models by role, as the user named them.
    load: loads the model of a directory.
    per_token: computes a model's number for every response token; None for its log-probability.
    """

    def __init__(
        self,
        options: ComputeOptions,
        names: Mapping[str, str],
        load: Callable[..., Any],
        per_token: Callable[..., Any] | None = None,
    ) -> None:
        from primecli.models.preload import Preloader

        self.options = options
        self.names = names
        self.load = load
        self.per_token = per_token
        self._preloader = Preloader(options.threads, load)
        self._models: dict[str, Any] | None = None  # by role

    def prepare(self, *, alone: bool) -> None:
        """Imports what models need; alone: starts to load those that exist already, too."""
        # how much memory is free, each process would see for itself; ranks load their own rows of the models
        names = self.names.values() if alone and joined() is None else ()
        self._preloader.begin([(name, self.options.resolved_dtype()) for name in names])

    def _loaded(self, models: Models) -> dict[str, Any]:
        """The models by role. Raises PrimecliError where one is not the one whose fingerprint was taken any more."""
        from primecli.errors import PrimecliError
        from primecli.models.identity import signature

        if self._models is None:
            self.placement = self.options.placement()
            loaded = {role: self._load(path) for role, path in models.directories.items()}
            for role, path in models.directories.items():
                if signature(path) != models.signatures[role]:
                    raise PrimecliError(
                        f"{path} has been replaced since this stage began", "run the same command again"
                    )
            self._models = loaded
        return self._models

    def _load(self, directory: Path) -> Any:
        """One model, or, of ranks, this one's rows of it."""
        from primecli.models import sharded
        from primecli.models.compiled import compile_layers

        ranks = joined()
        if ranks is None:
            model = self._preloader.load(directory, self.placement)
        else:
            model = sharded.load(directory, self.placement, of=self.load, ranks=ranks)
        compile_layers(model, self.placement)
        return model

    def scores(
        self, sequences: Sequences, path: Path, models: Models, advance: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """(N,) float32 by role: the number of every response token. path: of the shard, for messages.

        Of ranks, all have to call it, and each gets all of the numbers.
        """
        from primecli.models.scoring import score

        loaded = self._loaded(models)
        last_role = list(loaded)[-1]  # the only one that advances the progress display
        return {
            role: score(
                model,
                self.placement,
                sequences,
                micro_batch_tokens=self.options.micro_batch_tokens,
                done=advance if role == last_role else (lambda rows: advance(0)),
                per_token=self.per_token,
                name_row=lambda row: f"{path}: row {row}",
            )
            for role, model in loaded.items()
        }

    def close(self) -> None:
        """Releases the models, and their GPU memory."""
        from primecli.models.device import free_device_memory

        self._models = None
        free_device_memory()

    def peak_memory(self) -> float:
        """The most memory that this process has held so far, GiB; call it after `scores`."""
        from primecli.models.device import peak_memory_gib

        return peak_memory_gib(self.placement)


class ShardScorer:
    """Adds the columns of a stage to shards: a `making.Maker`, in the process of the stage or in a worker.

    models: what to score with.
    columns: the table with the columns of the stage, and its counts, from a table and the scores of its rows, by role.
    """

    def __init__(
        self,
        models: LoadedModels,
        columns: Callable[[pa.Table, dict[str, np.ndarray]], tuple[pa.Table, dict[str, float]]],
    ) -> None:
        self.models = models
        self.columns = columns

    def prepare(self, *, alone: bool) -> None:
        """As in `LoadedModels`."""
        self.models.prepare(alone=alone)

    def close(self) -> None:
        """Releases the models."""
        self.models.close()

    def make(self, item: tuple[Shard, Models], advance: Callable[[int], None]) -> Product:
        """The rows of a shard with the new columns."""
        from primecli.pipeline.making import Product
        from primecli.pipeline.orders import read_whole
        from primecli.shards import schema
        from primecli.shards.rollouts import Sequences, check_lists, split_rows

        shard, models = item
        table = read_whole(shard)
        check_lists(table, shard.path)
        sequences = Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS))
        ranks = joined()
        if ranks is None:
            scores = self.models.scores(sequences, shard.path, models, advance)
        else:
            ranks.call(
                {"shard": str(shard.path), "models": {role: str(path) for role, path in models.directories.items()}}
            )
            # a reader that has gone ends the stage between two shards: the other ranks must not be left in an exchange
            scores = self.models.scores(sequences, shard.path, models, lambda rows: None)
            advance(table.num_rows)
        return Product(*self.columns(table, scores), {PEAK_MEMORY: self.models.peak_memory()})


def score_shards(
    run: StageRun,
    options: SpreadOptions,
    names: Mapping[str, str],
    open_scorer: Callable[[Any], ShardScorer],
    needs: list[str],
    first: Callable[[Mapping[str, Path]], None] = lambda directories: None,
) -> None:
    """Adds the columns of a stage to each input shard, unless the output exists.

    names: the models by role, as the user named them, such as {"prm": "ckpt/prm/1"}.
    open_scorer: opens the scorer, here or in a worker, from the options.
    needs: the columns that the stage reads besides the token ids.
    first: called with the models' directories, by role, when the first shard has arrived.
    """
    from primecli.models.same_tokens import TokenCheck
    from primecli.shards import schema
    from primecli.stages.spread import open_making

    def keep_peak(facts: Mapping[str, Any]) -> None:
        run.gauges[PEAK_MEMORY] = max(run.gauges.get(PEAK_MEMORY, 0.0), facts[PEAK_MEMORY])

    models: Models | None = None
    tokens_check = TokenCheck({})
    tokens = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
    with open_making(run, options, open_scorer, keep_peak) as making:
        for shard in run.shards([*tokens, *needs], while_idle=making.prepare, watched=making.watched):
            if models is None:
                # not earlier: an update before this stage may have to write the model first, and then passes shards on
                models = Models.resolve(names)
                run.models.update(models.fingerprints())
                tokens_check = TokenCheck(models.directories)
                first(models.directories)
            run.expect(shard)
            output = run.output(shard)
            if not output.existing:
                tokens_check.check(shard)
            making.put(output, (shard, models), shard.footer.rows)
        making.finish()  # then the models are released, before stdout closes and the next stage starts
