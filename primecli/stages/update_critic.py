"""update-critic: trains PPO's critic on rollouts with returns, and writes its next checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.models.options import Critic
from primecli.options import Option, Shards
from primecli.training.options import (
    Aggregation,
    Checkpoint,
    Epochs,
    LearningRate,
    LossAggregation,
    MiniBatch,
    UpdateOptions,
)

if TYPE_CHECKING:
    from primecli.training.update_run import UpdateRun


@dataclass(frozen=True, kw_only=True)
class UpdateCriticOptions(UpdateOptions):
    """The options of `primecli update-critic`."""

    critic: Critic
    checkpoint: Checkpoint
    shards: Shards = ()
    lr: LearningRate = 1e-5
    mini_batch: MiniBatch = 256
    epochs: Epochs = 1
    value_clip: Annotated[
        float,
        Option(
            "How far a value may move from the stored one before its error stops counting; 0 for no limit.", min=0.0
        ),
    ] = 0.5
    loss_aggregation: Aggregation = LossAggregation.token_mean
    evaluate: Annotated[
        bool,
        Option(
            "Measure the updated critic on the batch, with a forward pass.",
            "execution",
            flags="--evaluate/--no-evaluate",
        ),
    ] = True


def update_critic(options: UpdateCriticOptions) -> None:
    """Trains the critic on the returns of rollouts; writes one checkpoint."""
    from primecli.models.loading import load_critic
    from primecli.shards import schema
    from primecli.training.update_run import run_update

    def train(run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]) -> None:
        _train(options, run, source, load)

    run_update(
        "update-critic",
        options,
        train,
        role="critic",
        model=options.critic,
        needs=[schema.VALUES, schema.RETURNS],
        load=load_critic,
    )


def _train(options: UpdateCriticOptions, run: UpdateRun, source: Path, load: Callable[..., Any]) -> None:
    from primecli.shards import schema
    from primecli.shards.rollouts import load_rollouts
    from primecli.training import critic

    critic.check_origin(run.shards, run.models["critic"])
    rollouts = load_rollouts(run.shards, [schema.VALUES, schema.RETURNS], token_ids=True)
    trainer = run.trainer(source, load)
    critic.preflight(trainer, rollouts)
    with run.progress:
        run.progress.advance(0, total=len(rollouts) * (options.epochs + options.evaluate))
        for rows in trainer.mini_batches(len(rollouts)):
            critic.take_step(trainer, rollouts, rows, options.value_clip or None, options.loss_aggregation)
            run.progress.advance(len(rows))
        quality = critic.evaluate(trainer, rollouts, done=run.progress.advance) if options.evaluate else {}
    run.commit(trainer, rollouts, quality)
