"""`primecli update-prm`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    from primecli.models.preload import EarlyModels
    from primecli.training.trainer import TrainingOptions
    from primecli.training.update_run import UpdateRun


class PrmLoss(StrEnum):
    """What the PRM is trained with."""

    ce = "ce"
    dpo = "dpo"


def update_prm(
    prm: options.Prm,
    ref: options.Ref,
    checkpoint: options.Checkpoint,
    shards: options.Shards = None,
    beta: options.Beta = 0.05,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Learning rate of AdamW.", callback=options.finite)] = 1e-6,
    mini_batch: options.MiniBatch = 256,
    epochs: options.Epochs = 1,
    loss: Annotated[
        PrmLoss,
        typer.Option(
            "--loss",
            help="ce: each response's outcome; dpo: right against wrong within a group, one more forward pass a step.",
        ),
    ] = PrmLoss.ce,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate", help="Measure the PRM on the batch before and after, a forward pass each."
        ),
    ] = True,
    grad_clip: options.GradClip = 10.0,
    weight_decay: options.WeightDecay = 0.0,
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
    """The score of a response is the sum of its tokens' implicit rewards, beta * (log p_prm - log p_ref); the
    loss is its binary cross-entropy against the outcome reward, or that of the pairs of a group. Reads the
    whole batch; once the checkpoint is complete, passes its input paths on, so that a score-prm behind it uses
    the new PRM.

    What is measured before the update is on responses that the PRM has not seen: whether it can still be
    believed. What is measured after it is on those it was just trained on.

    Example:

      \b
      primecli update-prm --prm ckpt/prm/0 --ref ckpt/sft \\
        --checkpoint ckpt/prm/1 runs/1/filter
    """
    from primecli.models.checkpoints import check_adapters
    from primecli.models.device import resolve_dtype
    from primecli.models.identity import resolve_model, trainer_fingerprint
    from primecli.models.lora import lora_options
    from primecli.models.preload import EarlyModels
    from primecli.shards import schema
    from primecli.shards.rollouts import STORED_REFERENCES, reference_columns
    from primecli.training.memory import MemoryOptions
    from primecli.training.trainer import TrainingOptions, options_json
    from primecli.training.update_run import UpdateOptions, UpdateRun

    memory = MemoryOptions(gradient_checkpointing, offload_optimizer, preflight)
    lora = lora_options(lora_rank, lora_alpha, lora_targets)
    training = TrainingOptions(
        lr, mini_batch, epochs, grad_clip, weight_decay, warmup_steps, shuffle, seed, micro_batch_tokens, memory, lora
    )
    run = UpdateRun(
        "update-prm",
        UpdateOptions(shards or (), checkpoint, force, partial, quiet, log or (), log_dir),
        config={
            **options_json(training),
            "beta": beta,
            "loss": loss.value,
            "ref": ref if ref in STORED_REFERENCES else "model",
            "dtype": resolve_dtype(device.value, dtype.value),
        },
        execution={
            "prm": prm,
            "ref_model": ref,
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
        source = resolve_model(prm)
        run.use_model("prm", source)
        run.models["trainer"] = trainer_fingerprint(source)
        check_adapters(source, run.stage, lora)
        reference = None if ref in STORED_REFERENCES else resolve_model(ref)
        if reference is not None:
            run.use_model("ref", reference)
        needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS, schema.OUTCOME_REWARD]
        early = EarlyModels(threads)
        wanted = [*([] if reference is None else [(reference, str(run.config["dtype"]))]), (source, "float32")]
        run.read([*needs, *reference_columns(ref)], while_idle=lambda: early.begin(wanted))
        if not run.skip():
            _train(run, source, reference or ref, training, early)


def _train(run: UpdateRun, source: Path, ref: Path | str, training: TrainingOptions, early: EarlyModels) -> None:
    from primecli.models.device import placement, set_threads
    from primecli.shards import schema
    from primecli.shards.rollouts import check_untouched_distribution, load_rollouts, reference_columns
    from primecli.training import prm
    from primecli.training.trainer import Trainer

    rollouts = load_rollouts(run.shards, [schema.OUTCOME_REWARD, *reference_columns(str(ref))], token_ids=True)
    if ref == "rollout":
        check_untouched_distribution(rollouts.values, "--ref rollout")
    prm.check_graded(rollouts)
    set_threads(run.execution["threads"])
    place = placement(str(run.execution["device"]), str(run.config["dtype"]), str(run.execution["packing"]))
    beta, loss, evaluate = float(run.config["beta"]), str(run.config["loss"]), bool(run.execution["evaluate"])
    with run.progress:
        run.progress.advance(0, total=len(rollouts) * training.epochs)
        budget = training.micro_batch_tokens
        trainer = Trainer(source, place, training, run.stage, load=early.load, on_step=run.log_step)
        prm.preflight(trainer, rollouts, loss)
        rollouts.values[schema.REF_LOGPROBS] = prm.reference_logprobs(rollouts, ref, place, budget, early.load)
        before = prm.evaluate(trainer, rollouts, beta, loss) if evaluate else {}
        for rows in prm.mini_batches(trainer, rollouts, loss):
            prm.take_step(trainer, rollouts, rows, beta, loss)
            run.progress.advance(len(rows))
        after = prm.evaluate(trainer, rollouts, beta, loss) if evaluate else {}
    quality = {
        f"{name}_{when}": found[name] for name in before for when, found in (("before", before), ("after", after))
    }
    run.commit(trainer, len(rollouts), int(rollouts.group_index.max()) + 1, quality)
