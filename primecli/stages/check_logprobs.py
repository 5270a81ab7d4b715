"""check-logprobs: compares the sampler's log-probabilities with the trainer's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from primecli.models.options import ComputeOptions
from primecli.options import Option, Shards
from primecli.pipeline.options import InputOptions
from primecli.printable import printable
from primecli.stages.spread import SpreadOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Rollouts
    from primecli.stages.scorer import LoadedModels, Models

ROLE = "model"

COLUMNS = ("engine", "rollouts", "tokens", "gap mean", "gap p95", "gap max", "ess tokens", "ess responses")


@dataclass(frozen=True, kw_only=True)
class CheckLogprobsOptions(ComputeOptions, SpreadOptions, InputOptions):
    """The options of `primecli check-logprobs`."""

    model: Annotated[
        str, Option("The policy that sampled the rollouts, to be trained next.", "execution", metavar="DIR|HUB_ID")
    ]
    shards: Shards = ()
    max_gap: Annotated[
        float | None,
        Option("Exit with code 5 if the mean gap of an engine is larger than this many nats.", "execution", min=0.0),
    ] = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rollouts of one directory, of one engine.

    rollouts: what was sampled, without token ids.
    paths: of the shards, in the order of the rollouts.
    """

    rollouts: Rollouts
    paths: Sequence[Path]


def check_logprobs(options: CheckLogprobsOptions) -> None:
    """Prints the gap for each engine. Raises GateError if the mean gap of one is larger than allowed."""
    from primecli.errors import GateError, ReaderClosed
    from primecli.models.same_tokens import TokenCheck
    from primecli.pipeline.inputs import Inputs
    from primecli.stages.scorer import Models

    by_engine: dict[str, dict[Path, list[Shard]]] = {}
    for shard in Inputs(options.shards, partial=options.partial, together=True, warn=_warn):
        by_engine.setdefault(_engine(shard), {}).setdefault(shard.path.parent, []).append(shard)
    # each directory by itself: two engines, or two runs of one, may have sampled the same groups
    batches = {
        engine: [Batch(_load(shards), [shard.path for shard in shards]) for shards in by_engine[engine].values()]
        for engine in sorted(by_engine)
    }
    shards = [shard for engine in sorted(by_engine) for parts in by_engine[engine].values() for shard in parts]
    models = Models.resolve({ROLE: options.model})
    tokens_check = TokenCheck(models.directories)
    for shard in shards:
        tokens_check.check(shard)
    _compare_weights(batches, models.fingerprints()[ROLE], options.model)
    trainer = _trainer_logprobs(options, shards, models)
    rows: list[list[str]] = []
    gaps: dict[str, float] = {}
    for engine, parts in batches.items():
        values = _compare(parts, trainer)
        gaps[engine] = values[0]
        tokens = sum(int(batch.rollouts.response_lengths.sum()) for batch in parts)
        counts = [str(sum(len(batch.rollouts) for batch in parts)), str(tokens)]
        rows.append([engine, *counts, *(f"{value:.3g}" for value in values[:3]), *(f"{v:.4f}" for v in values[3:])])
    with contextlib.suppress(ReaderClosed):  # --max-gap applies even if nobody reads the table
        _print([list(COLUMNS), *rows])
    worst = max(gaps, key=lambda engine: gaps[engine])
    if options.max_gap is not None and not gaps[worst] <= options.max_gap:  # a gap of nan fails too
        raise GateError(
            f"log-probabilities of {worst} are off by {gaps[worst]:.3g} nats on average, and --max-gap is "
            f"{options.max_gap:g}",
            "possible causes: other weights, another precision, or log-probabilities from before the temperature",
        )


class LogprobWorker:
    """Computes the model's log-probabilities of the rollouts of shards, in this process or in a worker."""

    def __init__(self, models: LoadedModels) -> None:
        self.models = models

    def prepare(self) -> None:
        """Imports what models need."""
        self.models.prepare(alone=False)

    def work(self, item: tuple[Shard, Models], advance: Callable[[int], None]) -> np.ndarray:
        """(N,) float32, nats: of every response token of a shard, at the temperature that it was sampled with."""
        from primecli.shards import schema
        from primecli.shards.rollouts import load_rollouts

        shard, models = item
        sequences = load_rollouts([shard], [schema.TEMPERATURE], token_ids=True).sequences(temperature=True)
        return self.models.scores(sequences, shard.path, models, advance)[ROLE]


def open_worker(options: CheckLogprobsOptions) -> LogprobWorker:
    """The worker, with the options that it has."""
    from primecli.models.loading import load_model
    from primecli.stages.scorer import LoadedModels

    return LogprobWorker(LoadedModels(options, {ROLE: options.model}, load_model))


def _trainer_logprobs(options: CheckLogprobsOptions, shards: Sequence[Shard], models: Models) -> dict[Path, np.ndarray]:
    """The model's log-probabilities by shard, as `LogprobWorker.work` computes them."""
    from functools import partial

    from primecli.pipeline.progress import Progress
    from primecli.stages.spread import for_workers, is_spread, open_workers

    found: dict[Path, np.ndarray] = {}
    total = sum(shard.footer.rows for shard in shards)
    with Progress("check-logprobs", "rollouts", total=total, quiet=options.quiet) as progress:
        if not is_spread(options):
            worker = open_worker(options)
            return {shard.path: worker.work((shard, models), progress.advance) for shard in shards}
        opener = partial(open_worker, for_workers(options))
        # whether anybody reads the table does not matter: --max-gap applies all the same
        with open_workers(options, opener, advance=progress.advance, warn=_warn, check=lambda: None) as workers:
            for shard in shards:
                workers.submit(str(shard.path), (shard, models), partial(found.__setitem__, shard.path))
            workers.finish()
    return found


def _warn(text: str) -> None:
    from primecli.pipeline.progress import say

    say("check-logprobs", text)


def _engine(shard: Shard) -> str:
    """The engine that sampled a shard, according to its provenance."""
    for record in shard.footer.provenance:
        if record.get("stage") == "generate":
            return str((record.get("config") or {}).get("engine", "unknown"))
    return "unknown"


def _load(shards: Sequence[Shard]) -> Rollouts:
    """The rollouts of the shards. Raises InputError if their log-probabilities cannot be compared with a model's."""
    from primecli.errors import InputError
    from primecli.shards import schema
    from primecli.shards.rollouts import check_untouched_distribution, load_rollouts

    columns = [schema.ROLLOUT_LOGPROBS, *schema.SAMPLED_WITH, schema.POLICY_FINGERPRINT]
    rollouts = load_rollouts(shards, columns, token_ids=False)
    check_untouched_distribution(rollouts.values, "check-logprobs", temperature=False)
    if (rollouts.values[schema.TEMPERATURE] <= 0).any():
        raise InputError("some rollouts were sampled greedily (temperature 0)", "they have no log-probabilities")
    return rollouts


def _compare_weights(batches: dict[str, list[Batch]], fingerprint: str, model: str) -> None:
    """Warns of rollouts that other weights sampled. fingerprint: the model's. model: as the user named it."""
    from primecli.shards import schema

    parts = [batch.rollouts for parts in batches.values() for batch in parts]
    sampled = [weights for rollouts in parts for weights in rollouts.strings[schema.POLICY_FINGERPRINT]]
    others = sum(weights != fingerprint for weights in sampled)
    if others:
        _warn(f"{others} of {len(sampled)} rollouts were sampled with other weights than {model}'s")


def _compare(parts: Sequence[Batch], trainer: Mapping[Path, np.ndarray]) -> list[float]:
    """Mean, 95th percentile and maximum of the gap, in nats; effective sample sizes of tokens and of responses.

    trainer: the model's log-probabilities, by shard.
    """
    import numpy as np
    import torch

    from primecli.core.metrics import effective_sample_size
    from primecli.shards import schema

    log_ratios, response_log_ratios = [], []
    for batch in parts:
        model = np.concatenate([trainer[path] for path in batch.paths]).astype(np.float64)  # (N,)
        log_ratios.append(model - batch.rollouts.values[schema.ROLLOUT_LOGPROBS])  # (N,)
        response_log_ratios.append(np.add.reduceat(log_ratios[-1], batch.rollouts.starts()[:-1]))  # (B,)
    log_ratio, response_log_ratio = np.concatenate(log_ratios), np.concatenate(response_log_ratios)
    gap = np.abs(log_ratio)
    return [
        float(gap.mean()),
        float(np.quantile(gap, 0.95)),
        float(gap.max()),
        effective_sample_size(torch.from_numpy(log_ratio)),
        effective_sample_size(torch.from_numpy(response_log_ratio)),
    ]


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *rest = [printable(cell).rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
