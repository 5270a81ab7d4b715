"""update-policy: trains the policy on rollouts with advantages, and writes its next checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.options import Option, Shards
from primecli.training.options import FROM_SHARDS, Checkpoint, Epochs, LearningRate, MiniBatch, UpdateOptions
from primecli.training.policy_options import OldLogprobsSource, PolicyOptions

if TYPE_CHECKING:
    from primecli.shards.rollouts import Rollouts
    from primecli.training.policy import OldLogprobs
    from primecli.training.trainer import Trainer
    from primecli.training.update_run import UpdateRun


@dataclass(frozen=True, kw_only=True)
class UpdatePolicyOptions(PolicyOptions, UpdateOptions):
    """The options of `primecli update-policy`."""

    policy: Annotated[str, Option("The policy to train.", "execution", metavar="DIR|HUB_ID")]
    # inherited, but declared here for their defaults and their place in the help page
    checkpoint: Checkpoint
    shards: Shards = ()
    lr: LearningRate = 5e-7
    mini_batch: MiniBatch = 256
    epochs: Epochs = 1


def update_policy(options: UpdatePolicyOptions) -> None:
    """Trains the policy on the advantages of its rollouts; writes one checkpoint."""
    from primecli.training.policy import needed_columns
    from primecli.training.update_run import run_update

    def train(run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]) -> None:
        _train(options, run, source, reference, load)

    run_update(
        "update-policy",
        options,
        train,
        role="policy",
        model=options.policy,
        needs=needed_columns(options),
        reference=None if options.ref == FROM_SHARDS else options.ref,
    )


def _train(
    options: UpdatePolicyOptions, run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]
) -> None:
    from primecli.shards import schema
    from primecli.shards.rollouts import load_rollouts
    from primecli.training import policy

    shared_columns = set.intersection(*(set(shard.footer.columns) for shard in run.shards))
    parts = [name for name in (schema.OUTCOME_ADVANTAGES, schema.PROCESS_ADVANTAGES) if name in shared_columns]
    rollouts = load_rollouts(run.shards, [*policy.needed_columns(options), *parts], token_ids=True)
    warning = policy.check_sampling(rollouts, options)
    if warning is not None:
        run.warn(warning)
    trainer = run.trainer(source, load)
    staleness = policy.check_staleness(rollouts, trainer.state.lineage, options.max_staleness)
    policy.preflight(trainer, rollouts, options)
    # with a single step in all, the step's own forward pass yields them, unless they are needed before it
    several = trainer.total_steps(len(rollouts)) > 1
    extra_pass = options.old_logprobs is OldLogprobsSource.recompute and (several or options.by_covariance())
    passes = options.epochs + extra_pass + (reference is not None)  # the epochs take most of the time
    with run.progress:
        done = run.progress.advance
        done(0, total=len(rollouts) * passes)
        if reference is not None:
            sequences = rollouts.sequences(temperature=True)
            rollouts.values[schema.REF_LOGPROBS] = trainer.score_reference(reference, sequences, load, done=done)
        old, health = _take_steps(options, run, trainer, rollouts, extra_pass=extra_pass)
        if options.measure:
            health |= policy.measure_update(trainer, rollouts, old, options.measure)
    health |= policy.batch_health(rollouts, {name: rollouts.values[name] for name in parts})
    run.commit(trainer, rollouts, {"staleness": staleness, **health})


def _take_steps(
    options: UpdatePolicyOptions, run: UpdateRun, trainer: Trainer, rollouts: Rollouts, *, extra_pass: bool
) -> tuple[OldLogprobs, dict[str, float]]:
    """Takes all optimizer steps. Returns the old log-probabilities, and metrics of their gap to the sampler's.

    extra_pass: whether the old log-probabilities are computed before the steps.
    """
    import numpy as np

    from primecli.shards import schema
    from primecli.training import policy

    from_first_forward = options.old_logprobs is OldLogprobsSource.recompute and not extra_pass
    sampled = rollouts.values[schema.ROLLOUT_LOGPROBS]
    old = policy.OldLogprobs(np.zeros_like(sampled) if from_first_forward else sampled.copy(), from_first_forward)
    gap: dict[str, float] = {}
    if extra_pass:
        old.values = trainer.score(rollouts.sequences(temperature=True), done=run.progress.advance)
        gap = policy.logprob_gap(rollouts, old, options.max_logprob_gap)
    for rows in trainer.mini_batches(len(rollouts)):
        policy.take_step(trainer, rollouts, rows, old, options)
        run.progress.advance(len(rows))
    if old.from_first_forward:
        old.values = trainer.over_ranks(old.values)
        gap = policy.logprob_gap(rollouts, old, options.max_logprob_gap)
    return old, gap
