"""`primecli score-prm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from primecli.models.preload import EarlyModels
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.rollouts import Sequences


def score_prm(
    prm: options.Prm,
    ref: options.Ref,
    shards: options.Shards = None,
    beta: options.Beta = 0.05,
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
    """The reward of a token is beta * (log-probability under the PRM - log-probability under the reference),
    in nats, at temperature 1. Behind update-prm in a pipe, this stage sees the updated PRM.

    Example:

      primecli score-prm --prm ckpt/prm/1 --ref ckpt/sft runs/1/filter
    """
    from primecli.models.device import resolve_dtype
    from primecli.models.identity import model_fingerprint, resolve_model
    from primecli.models.preload import EarlyModels
    from primecli.pipeline.stage_run import StageOptions, StageRun
    from primecli.shards import schema
    from primecli.shards.rollouts import STORED_REFERENCES, reference_columns

    run = StageRun(
        "score-prm",
        StageOptions(shards or (), out, force, partial, quiet),
        config={
            "beta": beta,
            "ref": ref if ref in STORED_REFERENCES else "model",
            "dtype": resolve_dtype(device.value, dtype.value),
        },
        execution={
            "prm": prm,
            "ref_model": ref,
            "device": device.value,
            "threads": threads,
            "micro_batch_tokens": micro_batch_tokens,
            "packing": packing.value,
        },
        finish=_metrics,
    )
    with run:
        needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
        needs += reference_columns(ref)
        scorer: _Scorer | None = None
        early = EarlyModels(threads)
        wanted = [(name, str(run.config["dtype"])) for name in (prm, ref) if name not in STORED_REFERENCES]
        for shard in run.shards(needs, while_idle=lambda: early.begin(wanted)):
            if scorer is None:
                # only now: a PRM that an update before this stage is to write is there from the first shard on
                directories = {"prm": resolve_model(prm)}
                if ref not in STORED_REFERENCES:
                    directories["ref"] = resolve_model(ref)
                run.models = {role: model_fingerprint(directory) for role, directory in directories.items()}
                scorer = _Scorer(run, directories, early)
                _compare_beta(run, directories["prm"], beta)
            run.expect(shard)
            if run.skip(shard):
                run.progress.advance(shard.footer.rows)
                continue
            table, counts = scorer.score(run.read(shard), shard.path)
            run.commit(table, counts)


def _compare_beta(run: StageRun, prm: Path, beta: float) -> None:
    from primecli.models.identity import trained_with

    trained = trained_with(prm).get("beta")
    if trained is not None and trained != beta:
        run.warn(f"{prm} was trained with --beta {trained:g}, and scores with --beta {beta:g}")


class _Scorer:
    """The two models, loaded when the first shard is to be scored."""

    def __init__(self, run: StageRun, directories: dict[str, Any], early: EarlyModels) -> None:
        self.run = run
        self.early = early
        self.directories = directories
        self._models: dict[str, Any] | None = None

    def models(self) -> dict[str, Any]:
        """The models by role, loaded once."""
        from primecli.models.device import placement, set_threads

        if self._models is None:
            set_threads(self.run.execution["threads"])
            self.place = placement(
                self.run.execution["device"], self.run.config["dtype"], self.run.execution["packing"]
            )
            self._models = {
                role: self.early.load(directory, self.place) for role, directory in self.directories.items()
            }
        return self._models

    def score(self, table: pa.Table, path: Any) -> tuple[pa.Table, dict[str, float]]:
        """The table with the three columns of this stage, and its counts."""
        import numpy as np
        import torch

        from primecli.core.rewards import implicit_process_rewards
        from primecli.shards import schema
        from primecli.shards.parquet import flat_column, list_column, with_columns
        from primecli.shards.rollouts import (
            STORED_REFERENCES,
            Sequences,
            check_lists,
            check_untouched_distribution,
            split_rows,
        )

        check_lists(table, path)
        _, lengths = flat_column(table, schema.RESPONSE_IDS)
        sequences = Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS))
        logprobs = self._logprobs(sequences)
        stored = str(self.run.config["ref"])
        if stored == "rollout":
            check_untouched_distribution(
                {name: table[name].to_numpy() for name in schema.SAMPLED_WITH}, "--ref rollout"
            )
        if stored in STORED_REFERENCES:
            logprobs["ref"], _ = flat_column(table, STORED_REFERENCES[stored])
        rewards = implicit_process_rewards(
            torch.from_numpy(logprobs["prm"]), torch.from_numpy(logprobs["ref"].copy()), self.run.config["beta"]
        ).numpy()
        columns = {
            schema.PRM_LOGPROBS: logprobs["prm"],
            schema.REF_LOGPROBS: logprobs["ref"],
            schema.PROCESS_REWARDS: rewards,
        }
        counts = {
            "rollouts": table.num_rows,
            "tokens": len(rewards),
            "reward_sum": float(rewards.sum(dtype=np.float64)),
        }
        lists = {name: list_column(values, lengths, name) for name, values in columns.items()}
        return with_columns(table, lists), counts

    def _logprobs(self, sequences: Sequences) -> dict[str, np.ndarray]:
        from primecli.models.device import peak_memory_gib
        from primecli.models.scoring import score
        from primecli.pipeline import pipe

        def done(rows: int) -> None:
            pipe.check_reader()
            self.run.progress.advance(rows if role == "prm" else 0)

        found = {}
        for role, model in self.models().items():
            budget = self.run.execution["micro_batch_tokens"]
            found[role] = score(model, self.place, sequences, micro_batch_tokens=budget, done=done)
        self.run.gauges["peak_memory_gib"] = peak_memory_gib(self.place)
        return found


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    if not counts.get("tokens"):
        return {}
    return {
        "process_reward_per_token": counts["reward_sum"] / counts["tokens"],
        "process_reward_per_response": counts["reward_sum"] / counts["rollouts"],
    }
