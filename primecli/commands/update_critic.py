"""`primecli update-critic`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    from primecli.models.preload import EarlyModels
    from primecli.training.trainer import TrainingOptions
    from primecli.training.update_run import UpdateRun


def update_critic(
    critic: options.Critic,
    checkpoint: options.Checkpoint,
    shards: options.Shards = None,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Learning rate of AdamW.", callback=options.finite)] = 1e-5,
    mini_batch: options.MiniBatch = 256,
    epochs: options.Epochs = 1,
    value_clip: Annotated[
        float,
        typer.Option(
            "--value-clip",
            min=0.0,
            help="How far a value may move from the stored one before its error stops counting; 0 is no limit.",
            callback=options.finite,
        ),
    ] = 0.5,
    loss_aggregation: options.Aggregation = options.LossAggregation.token_mean,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate", help="Measure the critic on the batch when it is done, a forward pass."
        ),
    ] = True,
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
    """The critic is a causal LM with a value head; any model or checkpoint can start one, and then expects 0
    everywhere. The loss is half the squared error to the returns that compute-advantages --estimator gae
    stored, clipped around the values that score-values stored. Passes its input paths on once the checkpoint
    is complete.

    Example:

      \b
      primecli score-values --critic ckpt/critic/0 runs/1/score-prm \\
        | primecli compute-advantages --estimator gae \\
        | primecli update-critic --critic ckpt/critic/0 --checkpoint ckpt/critic/1 \\
        | primecli update-policy --policy ckpt/policy/0 --checkpoint ckpt/policy/1
    """
    from primecli.models import loading
    from primecli.models.checkpoints import check_adapters
    from primecli.models.device import resolve_dtype
    from primecli.models.identity import resolve_model, trainer_fingerprint
    from primecli.models.lora import lora_options
    from primecli.models.preload import EarlyModels
    from primecli.shards import schema
    from primecli.training.critic import check_origin
    from primecli.training.memory import MemoryOptions
    from primecli.training.trainer import TrainingOptions, options_json
    from primecli.training.update_run import UpdateOptions, UpdateRun

    memory = MemoryOptions(gradient_checkpointing, offload_optimizer, preflight)
    lora = lora_options(lora_rank, lora_alpha, lora_targets)
    training = TrainingOptions(
        lr, mini_batch, epochs, grad_clip, weight_decay, warmup_steps, shuffle, seed, micro_batch_tokens, memory, lora
    )
    run = UpdateRun(
        "update-critic",
        UpdateOptions(shards or (), checkpoint, force, partial, quiet, log or (), log_dir),
        config={
            **options_json(training),
            "value_clip": value_clip,
            "loss_aggregation": loss_aggregation.value,
            "dtype": resolve_dtype(device.value, dtype.value),
        },
        execution={
            "critic": critic,
            "evaluate": evaluate,
            "device": device.value,
            "threads": threads,
            "micro_batch_tokens": micro_batch_tokens,
            "packing": packing.value,
            **memory.as_json(),
        },
        seed=seed,
    )
    with run:
        source = resolve_model(critic)
        run.use_model("critic", source)
        run.models["trainer"] = trainer_fingerprint(source)
        check_adapters(source, run.stage, lora)
        ids = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS]
        early = EarlyModels(threads, loading.load_critic)
        run.read([*ids, schema.VALUES, schema.RETURNS], while_idle=lambda: early.begin([(source, "float32")]))
        if not run.skip():
            check_origin(run.shards, run.models["critic"])
            _train(run, source, training, early)


def _train(run: UpdateRun, source: Path, training: TrainingOptions, early: EarlyModels) -> None:
    from primecli.models.device import placement, set_threads
    from primecli.shards import schema
    from primecli.shards.rollouts import load_rollouts
    from primecli.training import critic
    from primecli.training.trainer import Trainer

    rollouts = load_rollouts(run.shards, [schema.VALUES, schema.RETURNS], token_ids=True)
    set_threads(run.execution["threads"])
    place = placement(str(run.execution["device"]), str(run.config["dtype"]), str(run.execution["packing"]))
    trainer = Trainer(source, place, training, run.stage, load=early.load, on_step=run.log_step)
    critic.preflight(trainer, rollouts)
    clip = float(run.config["value_clip"]) or None
    with run.progress:
        run.progress.advance(0, total=len(rollouts) * training.epochs)
        for rows in trainer.mini_batches(len(rollouts)):
            critic.take_step(trainer, rollouts, rows, clip, str(run.config["loss_aggregation"]))
            run.progress.advance(len(rows))
        quality = critic.evaluate(trainer, rollouts) if run.execution["evaluate"] else {}
    run.commit(trainer, len(rollouts), int(rollouts.group_index.max()) + 1, quality)
