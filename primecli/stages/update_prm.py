"""update-prm: trains the process reward model on graded rollouts, and writes its next checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.models.options import Beta, Prm, PrmOptions, Ref
from primecli.options import Option, Shards
from primecli.training.options import Checkpoint, Epochs, GradClip, LearningRate, MiniBatch, UpdateOptions, WeightDecay

if TYPE_CHECKING:
    from primecli.training.update_run import UpdateRun


class PrmLoss(StrEnum):
    """The loss that the PRM is trained with."""

    ce = "ce"
    dpo = "dpo"


@dataclass(frozen=True, kw_only=True)
class UpdatePrmOptions(PrmOptions, UpdateOptions):
    """The options of `primecli update-prm`."""

    prm: Prm
    ref: Ref
    checkpoint: Checkpoint
    shards: Shards = ()
    beta: Beta = 0.05
    lr: LearningRate = 1e-6
    mini_batch: MiniBatch = 256
    epochs: Epochs = 1
    loss: Annotated[
        PrmLoss,
        Option(
            "ce: cross-entropy of each response's outcome; dpo: right against wrong responses of a group, with one "
            "more forward pass per step."
        ),
    ] = PrmLoss.ce
    evaluate: Annotated[
        bool,
        Option(
            "Measure the PRM on the batch before and after the update, with a forward pass each.",
            "execution",
            flags="--evaluate/--no-evaluate",
        ),
    ] = True
    grad_clip: GradClip = 10.0
    weight_decay: WeightDecay = 0.0


def update_prm(options: UpdatePrmOptions) -> None:
    """Trains the PRM on the outcomes of rollouts; writes one checkpoint."""
    from primecli.shards import schema
    from primecli.shards.rollouts import STORED_REFERENCES, reference_columns
    from primecli.training.update_run import run_update

    def train(run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]) -> None:
        _train(options, run, source, reference, load)

    run_update(
        "update-prm",
        options,
        train,
        role="prm",
        model=options.prm,
        needs=[schema.OUTCOME_REWARD, *reference_columns(options.ref)],
        reference=None if options.ref in STORED_REFERENCES else options.ref,
    )


def _train(
    options: UpdatePrmOptions, run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]
) -> None:
    from primecli.shards import schema
    from primecli.shards.provenance import PRM_PAIR_ACCURACY
    from primecli.shards.rollouts import (
        STORED_REFERENCES,
        check_untouched_distribution,
        load_rollouts,
        reference_columns,
    )
    from primecli.training import prm

    rollouts = load_rollouts(run.shards, [schema.OUTCOME_REWARD, *reference_columns(options.ref)], token_ids=True)
    if options.ref == "rollout":
        check_untouched_distribution(rollouts.values, "--ref rollout")
    prm.check_graded(rollouts)
    beta, loss = options.beta, options.loss
    with run.progress:
        run.progress.advance(0, total=len(rollouts) * options.epochs)
        trainer = run.trainer(source, load)
        prm.preflight(trainer, rollouts, loss)
        rollouts.values[schema.REF_LOGPROBS] = (
            rollouts.values[STORED_REFERENCES[options.ref]]
            if reference is None
            else trainer.score_reference(reference, rollouts.sequences(), load)
        )
        before = prm.evaluate(trainer, rollouts, beta, loss) if options.evaluate else {}
        for rows in prm.mini_batches(trainer, rollouts, loss):
            prm.take_step(trainer, rollouts, rows, beta, loss)
            run.progress.advance(len(rows))
        after = prm.evaluate(trainer, rollouts, beta, loss) if options.evaluate else {}
    quality = {
        f"{name}_{time}": metrics[name] for name in before for time, metrics in (("before", before), ("after", after))
    }
    if options.evaluate:
        run.facts[PRM_PAIR_ACCURACY] = before.get("pair_accuracy")  # for `compute-advantages --process-trust`
    run.commit(trainer, rollouts, quality)
