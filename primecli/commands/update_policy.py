"""`primecli update-policy`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    from primecli.models.preload import EarlyModels
    from primecli.training.policy import PolicyOptions
    from primecli.training.trainer import TrainingOptions
    from primecli.training.update_run import UpdateRun


class OldLogprobs(StrEnum):
    """What the probability ratio is taken to."""

    recompute = "recompute"
    rollout = "rollout"


class Kl(StrEnum):
    """How the KL to the reference is estimated."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


def update_policy(
    policy: Annotated[str, typer.Option("--policy", metavar="DIR|HUB_ID", help="The policy to train.")],
    checkpoint: options.Checkpoint,
    shards: options.Shards = None,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Learning rate of AdamW.", callback=options.finite)] = 5e-7,
    mini_batch: options.MiniBatch = 256,
    epochs: options.Epochs = 1,
    loss_aggregation: options.Aggregation = options.LossAggregation.token_mean,
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="PPO's clip, or the plain surrogate.")] = True,
    clip_low: Annotated[
        float, typer.Option("--clip-low", min=0.0, max=1.0, help="PPO clip below 1.", callback=options.finite)
    ] = 0.2,
    clip_high: Annotated[
        float,
        typer.Option(
            "--clip-high",
            min=0.0,
            help="PPO clip above 1; more than --clip-low is clip-higher.",
            callback=options.finite,
        ),
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
    ref: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--ref",
            metavar="DIR|HUB_ID|shards",
            help="Reference of the KL; shards takes the ref_logprobs that score-prm stored.  [default: none]",
            show_default=False,
        ),
    ] = None,
    kl_coef: Annotated[
        float,
        typer.Option("--kl-coef", min=0.0, help="Weight of the KL to --ref in the loss.", callback=options.finite),
    ] = 0.0,
    kl: Annotated[
        Kl, typer.Option("--kl", help="Estimate of that KL; as a loss, k1 has no effect on average.")
    ] = Kl.k3,
    entropy_coef: Annotated[
        float, typer.Option("--entropy-coef", help="Weight of the entropy bonus in the loss.", callback=options.finite)
    ] = 0.0,
    old_logprobs: Annotated[
        OldLogprobs,
        typer.Option(
            "--old-logprobs",
            help="recompute: by the trainer before its first step; rollout: the sampler's, which saves a pass.",
        ),
    ] = OldLogprobs.recompute,
    tis_cap: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--tis-cap",
            min=1.0,
            help="Weigh tokens by trainer's over sampler's probability, cut at this.  [default: off]",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    max_logprob_gap: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--max-logprob-gap",
            min=0.0,
            help="Stop with exit code 5, without a checkpoint, when the mean gap between the sampler's and the "
            "trainer's log-probabilities is larger; nats.  [default: no gate]",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse rollouts sampled with top-p or top-k, rather than warn.")
    ] = False,
    max_staleness: Annotated[
        int, typer.Option("--max-staleness", min=0, help="Updates since the weights that sampled the rollouts.")
    ] = 0,
    measure: Annotated[
        int,
        typer.Option("--measure", min=0, help="Responses on which the finished update is measured; 0 is none."),
    ] = 64,
    grad_clip: options.GradClip = 1.0,
    weight_decay: options.WeightDecay = 0.01,
    warmup_steps: options.WarmupSteps = 0,
    shuffle: options.Shuffle = True,
    seed: options.Seed = 0,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    micro_batch_tokens: options.MicroBatchTokens = 16384,
    packing: options.PackingOption = options.Packing.auto,
    gradient_checkpointing: options.GradientCheckpointing = False,
    offload_optimizer: options.OffloadOptimizer = False,
    preflight: options.Preflight = None,
    lora_rank: options.LoraRank = None,
    lora_alpha: options.LoraAlpha = None,
    lora_targets: options.LoraTargets = None,
    log: options.Log = None,
    log_dir: options.LogDir = None,
    force: options.Force = False,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """The loss is PPO's clipped surrogate, with a KL to a reference and an entropy bonus where asked for.

    Rollouts of another policy than --policy are refused, unless --max-staleness allows them. Log-probabilities
    are taken at the temperature that the rollouts were sampled with. Passes its input paths on once the
    checkpoint is complete. Prints what tells whether training is healthy, and stores it in _summary.json.

    Example:

      \b
      primecli update-policy --policy ckpt/policy/0 \\
        --checkpoint ckpt/policy/1 runs/1/compute-advantages
    """
    from primecli.models.checkpoints import check_adapters
    from primecli.models.device import resolve_dtype
    from primecli.models.identity import resolve_model, trainer_fingerprint
    from primecli.models.lora import lora_options
    from primecli.models.preload import EarlyModels
    from primecli.shards import schema
    from primecli.training.memory import MemoryOptions
    from primecli.training.policy import FROM_SHARDS, PolicyOptions
    from primecli.training.trainer import TrainingOptions, options_json
    from primecli.training.update_run import UpdateOptions, UpdateRun

    memory = MemoryOptions(gradient_checkpointing, offload_optimizer, preflight)
    lora = lora_options(lora_rank, lora_alpha, lora_targets)
    training = TrainingOptions(
        lr, mini_batch, epochs, grad_clip, weight_decay, warmup_steps, shuffle, seed, micro_batch_tokens, memory, lora
    )
    loss = PolicyOptions(
        old_logprobs.value,
        loss_aggregation.value,
        clip,
        clip_low,
        clip_high,
        dual_clip,
        kl.value,
        kl_coef,
        entropy_coef,
        tis_cap,
        ref,
        max_logprob_gap,
        strict,
    )
    loss.check()
    run = UpdateRun(
        "update-policy",
        UpdateOptions(shards or (), checkpoint, force, partial, quiet, log or (), log_dir),
        config={
            **options_json(training),
            **loss.as_json(),
            "dtype": resolve_dtype(device.value, dtype.value),
        },
        execution={
            "policy": policy,
            "ref_model": ref,
            "max_staleness": max_staleness,
            "max_logprob_gap": max_logprob_gap,
            "measure": measure,
            "device": device.value,
            "threads": threads,
            "micro_batch_tokens": micro_batch_tokens,
            "packing": packing.value,
            **memory.as_json(),
        },
        seed=seed,
    )
    with run:
        source = resolve_model(policy)
        run.use_model("policy", source)
        run.models["trainer"] = trainer_fingerprint(source)
        check_adapters(source, run.stage, lora)
        reference = None if ref in (None, FROM_SHARDS) else resolve_model(str(ref))
        if reference is not None:
            run.use_model("ref", reference)
        early = EarlyModels(threads)
        wanted = [(source, "float32"), *([] if reference is None else [(reference, str(run.config["dtype"]))])]
        ids = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
        run.read([*ids, *loss.columns()], while_idle=lambda: early.begin(wanted))
        if not run.skip():
            _train(run, source, reference, training, loss, early)


def _train(
    run: UpdateRun,
    source: Path,
    reference: Path | None,
    training: TrainingOptions,
    loss: PolicyOptions,
    early: EarlyModels,
) -> None:
    import numpy as np

    from primecli.models import scoring
    from primecli.models.device import placement, set_threads
    from primecli.pipeline.progress import say
    from primecli.shards import schema
    from primecli.shards.rollouts import load_rollouts
    from primecli.training import policy
    from primecli.training.trainer import Trainer

    there = set.intersection(*(set(shard.footer.columns) for shard in run.shards))
    parts = [name for name in (schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES) if name in there]
    rollouts = load_rollouts(run.shards, [*loss.columns(), *parts], token_ids=True)
    biased = policy.check_sampling(rollouts, loss)
    if biased is not None:
        say(run.stage, biased)
    set_threads(run.execution["threads"])
    place = placement(str(run.execution["device"]), str(run.config["dtype"]), str(run.execution["packing"]))
    budget = training.micro_batch_tokens
    trainer = Trainer(source, place, training, run.stage, load=early.load, on_step=run.log_step)
    staleness = policy.check_staleness(rollouts, trainer.state.lineage, run.execution["max_staleness"])
    policy.preflight(trainer, rollouts, loss)
    if reference is not None:
        rollouts.values[schema.REF_LOGPROBS] = policy.score_reference(rollouts, reference, place, budget, early.load)
    recompute = loss.old_logprobs == OldLogprobs.recompute
    ahead = recompute and trainer.steps_for(len(rollouts)) > 1
    old = policy.OldLogprobs(
        rollouts.values[schema.ROLLOUT_LOGPROBS].copy(), from_first_forward=recompute and not ahead
    )
    health: dict[str, float] = {}
    with run.progress:
        run.progress.advance(0, total=len(rollouts) * (training.epochs + ahead))
        if ahead:
            sequences = rollouts.sequences(temperature=True)
            old.values = scoring.score(
                trainer.model, place, sequences, micro_batch_tokens=budget, done=run.progress.advance
            )
            health = policy.logprob_gap(rollouts, old, loss.max_logprob_gap)
        for rows in trainer.mini_batches(len(rollouts)):
            policy.take_step(trainer, rollouts, rows, old, loss)
            run.progress.advance(len(rows))
        if recompute and not ahead:
            health = policy.logprob_gap(rollouts, old, loss.max_logprob_gap)
        if run.execution["measure"]:
            number = min(int(run.execution["measure"]), len(rollouts))
            rows = np.linspace(0, len(rollouts) - 1, number).astype(int).tolist()
            health |= policy.measure_update(trainer, rollouts, old, rows, budget)
    health |= policy.batch_health(rollouts, {name: rollouts.values[name] for name in parts})
    run.commit(trainer, len(rollouts), int(rollouts.group_index.max()) + 1, {"staleness": staleness, **health})
