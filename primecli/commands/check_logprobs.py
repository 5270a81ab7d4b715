"""`primecli check-logprobs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from primecli.models.device import Placement
    from primecli.shards.parquet import Shard
    from primecli.shards.rollouts import Rollouts

COLUMNS = ("engine", "rollouts", "tokens", "gap mean", "gap p95", "gap max", "ess tokens", "ess responses")


def check_logprobs(
    model: Annotated[
        str, typer.Option("--model", metavar="DIR|HUB_ID", help="The policy that sampled, as it is to be trained.")
    ],
    shards: options.Shards = None,
    max_gap: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--max-gap",
            min=0.0,
            help="Exit with code 5 where an engine's mean gap, in nats, is larger.",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    micro_batch_tokens: options.MicroBatchTokens = 16384,
    packing: options.PackingOption = options.Packing.auto,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """The rollouts' tokens are scored by the code that trains, at the temperature of each row. The table on stdout
    has, for each engine that sampled: the gap |trainer - sampler| of a token's log-probability, in nats (mean,
    95th percentile, maximum), and the effective sample size of the importance weights exp(trainer - sampler) as
    a share of their number, of tokens and of whole responses: 1 where both agree.

    Example:

      primecli check-logprobs runs/1/generate --model ckpt/policy/0 --max-gap 0.02
    """
    import contextlib

    from primecli.errors import GateError, ReaderClosed
    from primecli.models.device import placement, resolve_dtype, set_threads
    from primecli.models.identity import model_fingerprint, resolve_model
    from primecli.models.loading import load_model
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import Progress, say

    by_engine: dict[str, list[Shard]] = {}
    inputs = Inputs(shards or (), partial=partial, together=True, warn=lambda text: say("check-logprobs", text))
    for shard in inputs:
        by_engine.setdefault(_engine(shard), []).append(shard)
    batches = {engine: _load(parts) for engine, parts in sorted(by_engine.items())}
    directory = resolve_model(model)
    _compare_weights(batches, model_fingerprint(directory), model)
    set_threads(threads)
    place = placement(device.value, resolve_dtype(device.value, dtype.value), packing.value)
    loaded = load_model(directory, place)
    rows: list[list[str]] = []
    gaps: dict[str, float] = {}
    with Progress("check-logprobs", "rollouts", total=sum(map(len, batches.values())), quiet=quiet) as progress:
        for engine, rollouts in batches.items():
            values = _compare(loaded, place, rollouts, micro_batch_tokens, progress)
            gaps[engine] = values[0]
            counts = [str(len(rollouts)), str(int(rollouts.response_lengths.sum()))]
            rows.append([engine, *counts, *(f"{value:.3g}" for value in values[:3]), *(f"{v:.4f}" for v in values[3:])])
    with contextlib.suppress(ReaderClosed):  # who reads no further asks for --max-gap all the same
        _print([list(COLUMNS), *rows])
    worst = max(gaps, key=lambda engine: gaps[engine])
    if max_gap is not None and not gaps[worst] <= max_gap:
        raise GateError(
            f"log-probabilities of {worst} are off by {gaps[worst]:.3g} nats in the mean, and --max-gap is {max_gap:g}",
            "other weights, another precision, or log-probabilities from before the temperature",
        )


def _engine(shard: Shard) -> str:
    """What sampled a shard, as its provenance has it."""
    for record in shard.footer.provenance:
        if record.get("stage") == "generate":
            return str(record["config"].get("engine", "unknown"))
    return "unknown"


def _load(parts: Sequence[Shard]) -> Rollouts:
    from primecli.errors import InputError
    from primecli.shards import schema
    from primecli.shards.rollouts import check_untouched_distribution, load_rollouts

    columns = [schema.ROLLOUT_LOGPROBS, *schema.SAMPLED_WITH, schema.POLICY_FINGERPRINT]
    rollouts = load_rollouts(parts, columns, token_ids=True)
    check_untouched_distribution(rollouts.values, "check-logprobs", temperature=False)
    if (rollouts.values[schema.TEMPERATURE] <= 0).any():
        raise InputError("some rollouts were sampled greedily (temperature 0)", "they have no log-probabilities")
    return rollouts


def _compare_weights(batches: dict[str, Rollouts], fingerprint: str, model: str) -> None:
    from primecli.pipeline.progress import say
    from primecli.shards import schema

    sampled = [found for rollouts in batches.values() for found in rollouts.strings[schema.POLICY_FINGERPRINT]]
    others = sum(found != fingerprint for found in sampled)
    if others:
        say("check-logprobs", f"{others} of {len(sampled)} rollouts were sampled by other weights than {model}")


def _compare(model: Any, place: Placement, rollouts: Rollouts, micro_batch_tokens: int, progress: Any) -> list[float]:
    """Mean, 95th percentile and maximum of the gap; effective sample sizes of tokens and of responses."""
    import numpy as np
    import torch

    from primecli.core.metrics import effective_sample_size
    from primecli.models.scoring import score
    from primecli.shards import schema

    sequences = rollouts.sequences(temperature=True)
    trainer = score(model, place, sequences, micro_batch_tokens=micro_batch_tokens, done=progress.advance)
    log_ratio = trainer.astype(np.float64) - rollouts.values[schema.ROLLOUT_LOGPROBS]
    gap = np.abs(log_ratio)
    of_responses = np.add.reduceat(log_ratio, rollouts.starts()[:-1])
    return [
        float(gap.mean()),
        float(np.quantile(gap, 0.95)),
        float(gap.max()),
        effective_sample_size(torch.from_numpy(log_ratio)),
        effective_sample_size(torch.from_numpy(of_responses)),
    ]


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *rest = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
