"""check-logprobs: compares the sampler's log-probabilities with the trainer's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from primecli.models.options import ComputeOptions
from primecli.options import Option, Shards
from primecli.pipeline.options import InputOptions
from primecli.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

    from primecli.models.device import Placement
    from primecli.pipeline.progress import Progress
    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Rollouts

COLUMNS = ("engine", "rollouts", "tokens", "gap mean", "gap p95", "gap max", "ess tokens", "ess responses")


@dataclass(frozen=True, kw_only=True)
class CheckLogprobsOptions(ComputeOptions, InputOptions):
    """The options of `primecli check-logprobs`."""

    model: Annotated[
        str, Option("The policy that sampled the rollouts, to be trained next.", "execution", metavar="DIR|HUB_ID")
    ]
    shards: Shards = ()
    max_gap: Annotated[
        float | None,
        Option("Exit with code 5 if the mean gap of an engine is larger than this many nats.", "execution", min=0.0),
    ] = None


def check_logprobs(options: CheckLogprobsOptions) -> None:
    """Prints the gap for each engine. Raises GateError if the mean gap of one is larger than allowed."""
    from primecli.errors import GateError, ReaderClosed
    from primecli.models.identity import model_fingerprint, resolve_model
    from primecli.models.loading import load_model
    from primecli.models.same_tokens import TokenCheck
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import Progress, say

    def warn(text: str) -> None:
        say("check-logprobs", text)

    by_engine: dict[str, dict[Path, list[Shard]]] = {}
    for shard in Inputs(options.shards, partial=options.partial, together=True, warn=warn):
        by_engine.setdefault(_engine(shard), {}).setdefault(shard.path.parent, []).append(shard)
    # each directory by itself: two engines, or two runs of one, may have sampled the same groups
    batches = {engine: list(map(_load, by_engine[engine].values())) for engine in sorted(by_engine)}
    directory = resolve_model(options.model)
    tokens_check = TokenCheck({"model": directory})
    for shard in (shard for by_directory in by_engine.values() for shards in by_directory.values() for shard in shards):
        tokens_check.check(shard)
    _compare_weights(batches, model_fingerprint(directory), options.model)
    placement = options.placement()
    model = load_model(directory, placement)
    rows: list[list[str]] = []
    gaps: dict[str, float] = {}
    total = sum(len(rollouts) for parts in batches.values() for rollouts in parts)
    with Progress("check-logprobs", "rollouts", total=total, quiet=options.quiet) as progress:
        for engine, parts in batches.items():
            values = _compare(model, placement, parts, options.micro_batch_tokens, progress)
            gaps[engine] = values[0]
            tokens = sum(int(rollouts.response_lengths.sum()) for rollouts in parts)
            counts = [str(sum(map(len, parts))), str(tokens)]
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
    rollouts = load_rollouts(shards, columns, token_ids=True)
    check_untouched_distribution(rollouts.values, "check-logprobs", temperature=False)
    if (rollouts.values[schema.TEMPERATURE] <= 0).any():
        raise InputError("some rollouts were sampled greedily (temperature 0)", "they have no log-probabilities")
    return rollouts


def _compare_weights(batches: dict[str, list[Rollouts]], fingerprint: str, model: str) -> None:
    """Warns of rollouts that other weights sampled. fingerprint: the model's. model: as the user named it."""
    from primecli.pipeline.progress import say
    from primecli.shards import schema

    parts = [rollouts for parts in batches.values() for rollouts in parts]
    sampled = [weights for rollouts in parts for weights in rollouts.strings[schema.POLICY_FINGERPRINT]]
    others = sum(weights != fingerprint for weights in sampled)
    if others:
        say("check-logprobs", f"{others} of {len(sampled)} rollouts were sampled with other weights than {model}'s")


def _compare(
    model: Any, placement: Placement, parts: Sequence[Rollouts], micro_batch_tokens: int, progress: Progress
) -> list[float]:
    """Mean, 95th percentile and maximum of the gap, in nats; effective sample sizes of tokens and of responses."""
    import numpy as np
    import torch

    from primecli.core.metrics import effective_sample_size
    from primecli.models.scoring import score
    from primecli.shards import schema

    log_ratios, response_log_ratios = [], []
    for rollouts in parts:
        sequences = rollouts.sequences(temperature=True)
        trainer = score(
            model, placement, sequences, micro_batch_tokens=micro_batch_tokens, done=progress.advance
        )  # (N,)
        log_ratios.append(trainer.astype(np.float64) - rollouts.values[schema.ROLLOUT_LOGPROBS])  # (N,)
        response_log_ratios.append(np.add.reduceat(log_ratios[-1], rollouts.starts()[:-1]))  # (B,)
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
