"""`primecli update-policy`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from primecli.rollouts import Rollouts
    from primecli.training import MicroBatch, Trainer, TrainingOptions, UpdateRun


class OldLogprobs(StrEnum):
    """What the probability ratio is taken to."""

    recompute = "recompute"
    rollout = "rollout"


def update_policy(
    policy: Annotated[str, typer.Option("--policy", metavar="DIR|HUB_ID", help="The policy to train.")],
    checkpoint: options.Checkpoint,
    shards: options.Shards = None,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Learning rate of AdamW.", callback=options.finite)] = 5e-7,
    mini_batch: options.MiniBatch = 256,
    epochs: options.Epochs = 1,
    clip_low: Annotated[
        float, typer.Option("--clip-low", min=0.0, max=1.0, help="PPO clip below 1.", callback=options.finite)
    ] = 0.2,
    clip_high: Annotated[
        float, typer.Option("--clip-high", min=0.0, help="PPO clip above 1.", callback=options.finite)
    ] = 0.2,
    dual_clip: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--dual-clip",
            min=1.0,
            help="Bound the loss of negative advantages by this multiple.",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    old_logprobs: Annotated[
        OldLogprobs,
        typer.Option(
            "--old-logprobs",
            help="recompute: by the trainer before its first step; rollout: the sampler's, which saves a pass.",
        ),
    ] = OldLogprobs.recompute,
    max_staleness: Annotated[
        int, typer.Option("--max-staleness", min=0, help="Updates since the weights that sampled the rollouts.")
    ] = 0,
    grad_clip: options.GradClip = 1.0,
    weight_decay: options.WeightDecay = 0.01,
    warmup_steps: options.WarmupSteps = 0,
    shuffle: options.Shuffle = True,
    seed: options.Seed = 0,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    micro_batch_tokens: options.MicroBatchTokens = 16384,
    force: options.Force = False,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the policy on the advantages.

    The loss is PPO's clipped surrogate, its mean over all response tokens of a mini-batch.

    Rollouts of another policy than --policy are refused, unless --max-staleness allows them. Log-probabilities
    are taken at the temperature that the rollouts were sampled with. Passes its input paths on once the
    checkpoint is complete.

    Example:

      \b
      primecli update-policy --policy ckpt/policy/0 \\
        --checkpoint ckpt/policy/1 runs/1/compute-advantages
    """
    from primecli import models, schema
    from primecli.training import TrainingOptions, UpdateOptions, UpdateRun, options_json

    training = TrainingOptions(
        lr, mini_batch, epochs, grad_clip, weight_decay, warmup_steps, shuffle, seed, micro_batch_tokens
    )
    run = UpdateRun(
        "update-policy",
        UpdateOptions(shards or (), checkpoint, force, partial, quiet),
        config={
            **options_json(training),
            "clip_low": clip_low,
            "clip_high": clip_high,
            "dual_clip": dual_clip,
            "old_logprobs": old_logprobs.value,
            "dtype": models.resolve_dtype(device.value, dtype.value),
        },
        execution={
            "policy": policy,
            "max_staleness": max_staleness,
            "device": device.value,
            "threads": threads,
            "micro_batch_tokens": micro_batch_tokens,
        },
        seed=seed,
    )
    with run:
        source = models.resolve_model(policy)
        run.use_model("policy", source)
        run.models["trainer"] = models.trainer_fingerprint(source)
        run.read([schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, *_columns()])
        if not run.skip():
            _train(run, source, training, max_staleness)


def _columns() -> list[str]:
    from primecli import schema

    return [
        schema.RESPONSE_IDS,
        schema.ROLLOUT_LOGPROBS,
        schema.ADVANTAGES,
        *schema.SAMPLED_WITH,
        schema.POLICY_FINGERPRINT,
    ]


def _train(run: UpdateRun, source: Path, training: TrainingOptions, max_staleness: int) -> None:
    import numpy as np

    from primecli import models, schema
    from primecli.errors import InputError
    from primecli.rollouts import check_untouched_distribution, load_rollouts
    from primecli.training import Trainer

    rollouts = load_rollouts(run.shards, [name for name in _columns() if name != schema.RESPONSE_IDS], token_ids=True)
    if (rollouts.values[schema.TEMPERATURE] <= 0).any():
        raise InputError("some rollouts were sampled greedily (temperature 0)", "train on samples")
    if run.config["old_logprobs"] == OldLogprobs.rollout.value:
        check_untouched_distribution(rollouts.values, "--old-logprobs rollout", temperature=False)
    models.set_threads(run.execution["threads"])
    place = models.placement(str(run.execution["device"]), str(run.config["dtype"]))
    trainer = Trainer(source, place, training, run.stage)
    staleness = check_staleness(rollouts, trainer.state.lineage, max_staleness)
    steps = trainer.steps_for(len(rollouts))
    recompute = run.config["old_logprobs"] == OldLogprobs.recompute.value
    old = _OldLogprobs(rollouts.values[schema.ROLLOUT_LOGPROBS].copy(), from_first_forward=recompute and steps == 1)
    with run.progress:
        ahead = recompute and steps > 1
        run.progress.advance(0, total=len(rollouts) * (training.epochs + ahead))
        if ahead:
            old.values = models.score(
                trainer.model,
                place,
                rollouts.sequences(temperature=True),
                token_budget=training.token_budget,
                done=run.progress.advance,
            )
        for rows in trainer.mini_batches(len(rollouts)):
            _step(trainer, rollouts, rows, old, run.config)
            run.progress.advance(len(rows))
    gap = np.abs(rollouts.values[schema.ROLLOUT_LOGPROBS] - old.values) if recompute else np.zeros(1)
    metrics = {"staleness": staleness, "response_tokens": float(rollouts.response_lengths.mean())}
    if recompute:
        metrics |= {
            "logprob_gap_mean": float(gap.mean()),
            "logprob_gap_p95": float(np.quantile(gap, 0.95)),
            "logprob_gap_max": float(gap.max()),
        }
    run.commit(trainer, len(rollouts), int(rollouts.group_index.max()) + 1, metrics)


def check_staleness(rollouts: Rollouts, lineage: tuple[str, ...], allowed: int) -> int:
    """How many updates the oldest rollouts are behind. Raises InputError when that is more than allowed."""
    from primecli import schema
    from primecli.errors import InputError

    newest_first = list(reversed(lineage))
    worst = 0
    for found in sorted(set(rollouts.strings[schema.POLICY_FINGERPRINT])):
        if found not in newest_first:
            raise InputError(
                f"rollouts were sampled by the weights {found}, which are neither those of --policy "
                f"({newest_first[0]}) nor an ancestor's",
                "generate with the policy that is to be updated",
            )
        worst = max(worst, newest_first.index(found))
    if worst > allowed:
        raise InputError(
            f"rollouts are {worst} update{'s' if worst > 1 else ''} behind --policy, and {allowed} are allowed",
            f"generate with the current policy, or pass --max-staleness {worst}",
        )
    return worst


class _OldLogprobs:
    """(N,) log-probabilities that the ratio is taken to.

    With a single step the trainer's own log-probabilities before it are those of the step's forward pass:
    they are kept from there, which saves the extra pass and makes the ratio exactly 1.
    """

    def __init__(self, values: np.ndarray, *, from_first_forward: bool) -> None:
        self.values = values
        self.from_first_forward = from_first_forward


def _step(trainer: Trainer, rollouts: Rollouts, rows: list[int], old: _OldLogprobs, config: dict[str, Any]) -> None:
    import numpy as np
    import torch

    from primecli import schema
    from primecli.core.losses import ppo_clip
    from primecli.models import sequence_logprobs
    from primecli.training import MicroBatch, tensor

    sequences = rollouts.sequences(temperature=True)
    lengths = sequences.lengths()
    starts = rollouts.starts()
    tokens = int(rollouts.response_lengths[rows].sum())

    def micro_batch(chosen: list[int]) -> MicroBatch:
        logprobs, entropy = sequence_logprobs(trainer.model, trainer.place, sequences, chosen)  # (N,)
        places = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in chosen])
        if old.from_first_forward:
            old.values[places] = logprobs.detach().float().cpu().numpy()
        result = ppo_clip(
            logprobs,
            tensor(old.values[places], trainer.place),
            tensor(rollouts.values[schema.ADVANTAGES][places], trainer.place),
            torch.ones_like(logprobs, dtype=torch.bool),
            denominator=tokens,
            clip_low=config["clip_low"],
            clip_high=config["clip_high"],
            dual_clip=config["dual_clip"],
        )
        sums = {
            "clipped": float(result.clipped),
            "dual_clipped": float(result.dual_clipped),
            "kl": float(result.kl),
            "entropy": float(entropy.detach().sum()),
        }
        return MicroBatch(result.loss, sums)

    def finish(sums: dict[str, float]) -> dict[str, float]:
        return {
            "loss": sums["loss"],
            "clip_fraction": sums["clipped"] / tokens,
            **({"dual_clip_fraction": sums["dual_clipped"] / tokens} if config["dual_clip"] else {}),
            "kl": sums["kl"] / tokens,
            "entropy": sums["entropy"] / tokens,
        }

    trainer.take_step(rows, [lengths[row] for row in rows], micro_batch, finish)
