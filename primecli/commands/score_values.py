"""`primecli score-values`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from primecli.models.preload import EarlyModels
    from primecli.pipeline.stage_run import StageRun


def score_values(
    critic: options.Critic,
    shards: options.Shards = None,
    out: options.Out = None,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    micro_batch_tokens: options.MicroBatchTokens = 16384,
    packing: options.PackingOption = options.Packing.auto,
    force: options.Force = False,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """For PPO: compute-advantages --estimator gae takes the values as baseline, and update-critic trains on what
    came instead. The critic is a causal LM with a value head; any model or checkpoint can start one, and then
    expects 0 everywhere.

    Example:

      primecli score-values --critic ckpt/critic/1 runs/1/score-prm
    """
    from primecli.models.device import resolve_dtype
    from primecli.models.identity import model_fingerprint, resolve_model
    from primecli.models.loading import load_critic
    from primecli.models.preload import EarlyModels
    from primecli.pipeline.stage_run import StageOptions, StageRun
    from primecli.shards import schema

    run = StageRun(
        "score-values",
        StageOptions(shards or (), out, force, partial, quiet),
        config={"dtype": resolve_dtype(device.value, dtype.value)},
        execution={
            "critic": critic,
            "device": device.value,
            "threads": threads,
            "micro_batch_tokens": micro_batch_tokens,
            "packing": packing.value,
        },
        finish=_metrics,
    )
    needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
    with run:
        early = EarlyModels(threads, load_critic)
        scorer: _Scorer | None = None
        for shard in run.shards(needs, while_idle=lambda: early.begin([(critic, str(run.config["dtype"]))])):
            if scorer is None:
                directory = resolve_model(critic)
                run.models = {"critic": model_fingerprint(directory)}
                scorer = _Scorer(run, directory, early)
            run.expect(shard)
            if run.skip(shard):
                run.progress.advance(shard.footer.rows)
                continue
            table, counts = scorer.score(run.read(shard), shard.path)
            run.commit(table, counts)


class _Scorer:
    """The critic, loaded when the first shard is to be scored."""

    def __init__(self, run: StageRun, directory: Path, early: EarlyModels) -> None:
        self.run = run
        self.early = early
        self.directory = directory
        self._model: Any = None

    def score(self, table: pa.Table, path: Any) -> tuple[pa.Table, dict[str, float]]:
        """The table with the column of this stage, and its counts."""
        import numpy as np

        from primecli.models import scoring
        from primecli.models.device import peak_memory_gib, placement, set_threads
        from primecli.pipeline import pipe
        from primecli.shards import schema
        from primecli.shards.parquet import flat_column, list_column, with_columns
        from primecli.shards.rollouts import Sequences, check_lists, split_rows

        check_lists(table, path)
        if self._model is None:
            set_threads(self.run.execution["threads"])
            self.place = placement(
                self.run.execution["device"], self.run.config["dtype"], self.run.execution["packing"]
            )
            self._model = self.early.load(self.directory, self.place)

        def done(rows: int) -> None:
            pipe.check_reader()
            self.run.progress.advance(rows)

        values = scoring.score(
            self._model,
            self.place,
            Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS)),
            micro_batch_tokens=self.run.execution["micro_batch_tokens"],
            done=done,
            per_token=scoring.sequence_values,
        )
        self.run.gauges["peak_memory_gib"] = peak_memory_gib(self.place)
        _, lengths = flat_column(table, schema.RESPONSE_IDS)
        counts = {"tokens": len(values), "value_sum": float(values.sum(dtype=np.float64))}
        return with_columns(table, {schema.VALUES: list_column(values, lengths, schema.VALUES)}), counts


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    return {"value_mean": counts["value_sum"] / counts["tokens"]} if counts.get("tokens") else {}
