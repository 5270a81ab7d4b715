"""`primecli update-prm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    from pathlib import Path

    from primecli.rollouts import Rollouts
    from primecli.training import Trainer, TrainingOptions, UpdateRun


def update_prm(
    prm: options.Prm,
    ref: options.Ref,
    checkpoint: options.Checkpoint,
    shards: options.Shards = None,
    beta: options.Beta = 0.05,
    lr: Annotated[float, typer.Option("--lr", min=0.0, help="Learning rate of AdamW.", callback=options.finite)] = 1e-6,
    mini_batch: options.MiniBatch = 256,
    epochs: options.Epochs = 1,
    grad_clip: options.GradClip = 10.0,
    weight_decay: options.WeightDecay = 0.0,
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
    """Train the process reward model on outcomes.

    The score of a response is the sum of its tokens' implicit rewards, beta * (log p_prm - log p_ref); the
    loss is its binary cross-entropy against the outcome reward. Reads the whole batch; once the checkpoint is
    complete, passes its input paths on, so that a score-prm behind it uses the new PRM.

    Example:

      \b
      primecli update-prm --prm ckpt/prm/0 --ref ckpt/sft \\
        --checkpoint ckpt/prm/1 runs/1/filter
    """
    from primecli import models
    from primecli.training import TrainingOptions, UpdateOptions, UpdateRun, options_json

    training = TrainingOptions(
        lr, mini_batch, epochs, grad_clip, weight_decay, warmup_steps, shuffle, seed, micro_batch_tokens
    )
    run = UpdateRun(
        "update-prm",
        UpdateOptions(shards or (), checkpoint, force, partial, quiet),
        config={
            **options_json(training),
            "beta": beta,
            "ref": "rollout" if ref == "rollout" else "model",
            "dtype": models.resolve_dtype(device.value, dtype.value),
        },
        execution={
            "prm": prm,
            "ref_model": ref,
            "device": device.value,
            "threads": threads,
            "micro_batch_tokens": micro_batch_tokens,
        },
        seed=seed,
    )
    with run:
        source = models.resolve_model(prm)
        run.use_model("prm", source)
        run.models["trainer"] = models.trainer_fingerprint(source)
        if ref != "rollout":
            run.use_model("ref", models.resolve_model(ref))
        run.read(_needs(ref))
        if not run.skip():
            _train(run, source, None if ref == "rollout" else models.resolve_model(ref), training, beta)


def _needs(ref: str) -> list[str]:
    from primecli import schema

    needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS, schema.OUTCOME_REWARD]
    return [*needs, *schema.SAMPLED_WITH, schema.ROLLOUT_LOGPROBS] if ref == "rollout" else needs


def _train(run: UpdateRun, source: Path, ref: Path | None, training: TrainingOptions, beta: float) -> None:
    import numpy as np

    from primecli import models, schema
    from primecli.errors import InputError
    from primecli.rollouts import check_untouched_distribution, load_rollouts
    from primecli.training import Trainer

    rollouts = load_rollouts(
        run.shards,
        [schema.OUTCOME_REWARD, *([*schema.SAMPLED_WITH, schema.ROLLOUT_LOGPROBS] if ref is None else [])],
        token_ids=True,
    )
    if ref is None:
        check_untouched_distribution(rollouts.values, "--ref rollout")
    ungraded = int(np.isnan(rollouts.values[schema.OUTCOME_REWARD]).sum())
    if ungraded:
        raise InputError(
            f"outcome_reward is null in {ungraded} rows",
            "the verifier could not grade them; `primecli filter` drops their groups",
        )
    models.set_threads(run.execution["threads"])
    place = models.placement(str(run.execution["device"]), str(run.config["dtype"]))
    trainer = Trainer(source, place, training, run.stage)
    steps = trainer.steps_for(len(rollouts))
    with run.progress:
        run.progress.advance(0, total=len(rollouts) * (training.epochs + (ref is not None)))
        if ref is None:
            ref_logprobs = rollouts.values[schema.ROLLOUT_LOGPROBS]
        else:
            ref_logprobs = models.score(
                models.load_model(ref, place),
                place,
                rollouts.sequences(),
                token_budget=training.token_budget,
                done=run.progress.advance,
            )
        rollouts.values[schema.REF_LOGPROBS] = ref_logprobs
        for rows in trainer.mini_batches(len(rollouts)):
            _step(trainer, rollouts, rows, beta)
            run.progress.advance(len(rows))
    assert len(trainer.history) == steps
    run.commit(trainer, len(rollouts), int(rollouts.group_index.max()) + 1, {})


def _step(trainer: Trainer, rollouts: Rollouts, rows: list[int], beta: float) -> None:
    import numpy as np
    import torch

    from primecli import schema
    from primecli.core.losses import pair_accuracy, prm_cross_entropy
    from primecli.core.rewards import implicit_process_rewards
    from primecli.models import sequence_logprobs
    from primecli.training import MicroBatch, tensor

    sequences = rollouts.sequences()
    lengths = sequences.lengths()
    outcomes = rollouts.values[schema.OUTCOME_REWARD]
    scores = np.zeros(len(rollouts), dtype=np.float64)

    def micro_batch(chosen: list[int]) -> MicroBatch:
        logprobs, _ = sequence_logprobs(trainer.model, trainer.place, sequences, chosen)  # (N,)
        ref_logprobs = tensor(rollouts.token_rows(chosen, schema.REF_LOGPROBS), trainer.place)
        rewards = implicit_process_rewards(logprobs, ref_logprobs, beta)
        tokens = rollouts.response_lengths[chosen]
        # (B,): a response's score is the sum of its tokens' rewards
        summed = torch.stack([piece.sum() for piece in torch.split(rewards, tokens.tolist())])
        outcome = tensor(outcomes[chosen], trainer.place)
        scores[chosen] = summed.detach().double().cpu().numpy()
        sums = {
            "accuracy": float(((summed > 0) == (outcome > 0.5)).sum()),
            "reward": float(summed.detach().sum()),
            "outcome": float(outcome.sum()),
        }
        return MicroBatch(prm_cross_entropy(summed, outcome, denominator=len(rows)), sums)

    def finish(sums: dict[str, float]) -> dict[str, float]:
        right, pairs = pair_accuracy(
            torch.from_numpy(scores[rows]),
            torch.from_numpy(outcomes[rows].astype(np.float64)),
            torch.from_numpy(rollouts.group_index[rows]),
        )
        return {
            "loss": sums["loss"],
            "sign_accuracy": sums["accuracy"] / len(rows),
            **({"pair_accuracy": right / pairs} if pairs else {}),
            "mean_score": sums["reward"] / len(rows),
            "mean_outcome": sums["outcome"] / len(rows),
        }

    trainer.take_step(rows, [lengths[row] for row in rows], micro_batch, finish)
