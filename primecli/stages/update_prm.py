"""update-prm: trains the process reward model on graded rollouts, and writes its next checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli import plugins
from primecli.core.registry import BALANCES, PRM_OBJECTIVES, choices_help
from primecli.errors import UsageError
from primecli.files import Json
from primecli.models.options import Prm, PrmOptions, Ref
from primecli.options import Option, Shards
from primecli.training.options import Checkpoint, Epochs, GradClip, LearningRate, MiniBatch, UpdateOptions, WeightDecay
from primecli.training.prm_objective import PrmObjective

if TYPE_CHECKING:
    from primecli.training.update_run import UpdateRun


BETA = 0.05
PREFIX_BETA = 10.0
"""The scale for --loss prefix, whose values are means of log-ratios rather than sums; as its authors set it."""

PREFIX_MARGIN = 0.5
"""The margin of --loss prefix, in units of beta; as its authors set it."""

TAKE_MARGINS = ("ce", "prefix")
"""The objectives that have a margin and a balance."""


def balance_names(text: str | None) -> tuple[str, ...]:
    """The names in the value of --balance, each once, in the order of `BALANCES`.

    >>> balance_names("weight, boundary")
    ('boundary', 'weight')
    """
    given = [] if text is None else [name.strip() for name in text.split(",")]
    return tuple(sorted(set(given)))


def balance_problem(text: str) -> str | None:
    """What is wrong with the value of --balance; None if nothing is."""
    unknown = [name for name in balance_names(text) if name not in BALANCES]
    return f"{unknown[0]!r} is not one of {', '.join(BALANCES)}" if unknown else None


@dataclass(frozen=True, kw_only=True)
class UpdatePrmOptions(PrmOptions, UpdateOptions):
    """The options of `primecli update-prm`."""

    prm: Prm
    ref: Ref
    checkpoint: Checkpoint
    shards: Shards = ()
    beta: Annotated[
        float | None,
        Option(
            "Scale of the reward, which is beta times the log-ratio.  [default: 0.05; with --loss prefix 10]",
            "call",  # `recipe` adds the resolved one
            min=0.0,
        ),
    ] = None
    lr: LearningRate = 1e-6
    mini_batch: MiniBatch = 256
    epochs: Epochs = 1
    loss: Annotated[
        str,
        Option(
            f"{choices_help(PRM_OBJECTIVES)} {plugins.HELP}",
            "call",  # `recipe` adds its name, and the identity of a plug-in
            metavar=plugins.metavar(PRM_OBJECTIVES),
            choices=tuple(PRM_OBJECTIVES),
            check=partial(plugins.problem, group=plugins.PRM_OBJECTIVES, own=PRM_OBJECTIVES),
        ),
    ] = "ce"
    margin: Annotated[
        float | None,
        Option(
            "ce, prefix: by how much the prediction has to be on the side of the outcome, nats.  [default: 0; with "
            "--loss prefix half of --beta]",
            "call",  # `recipe` adds the resolved one, where it is one
            min=0.0,
        ),
    ] = None
    balance: Annotated[
        str | None,
        Option(
            "ce, prefix: make up for groups of which most responses are right, or wrong. boundary: the accuracy of the "
            "group moves the boundary between right and wrong; weight: the right and the wrong responses of a group "
            "weigh the same; or both.  [default: neither]",
            "call",  # likewise
            metavar="boundary,weight",
            check=balance_problem,
        ),
    ] = None
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

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        for option, value in (("--margin", self.margin), ("--balance", self.balance)):
            if value is not None and self.loss not in TAKE_MARGINS:
                raise UsageError(
                    f"{option} works with --loss {' and '.join(TAKE_MARGINS)}, not with {self.loss}",
                    f"leave out {option}",
                )
        plugin = self.plugin()
        if plugin is not None:
            plugin.load()

    def plugin(self) -> plugins.Plugin | None:
        """The plug-in that --loss names, if it names one."""
        return plugins.find(self.loss, plugins.PRM_OBJECTIVES, PRM_OBJECTIVES)

    def scale(self) -> float:
        """The resolved beta."""
        if self.beta is not None:
            return self.beta
        return PREFIX_BETA if self.loss == "prefix" else BETA

    def objective(self) -> PrmObjective:
        """What the PRM is trained for."""
        margin = self.margin
        if margin is None:
            margin = PREFIX_MARGIN * self.scale() if self.loss == "prefix" else 0.0
        plugin = self.plugin()
        name = self.loss if plugin is None else plugin.name
        return PrmObjective(name, margin, balance_names(self.balance), plugin)

    def recipe(self) -> dict[str, Json]:
        """Adds the resolved beta, and the margin and the balance where they say anything."""
        objective = self.objective()
        margin: dict[str, Json] = {"margin": objective.margin} if objective.margin or self.loss == "prefix" else {}
        balance: dict[str, Json] = {"balance": list(objective.balance)} if objective.balance else {}
        plugin = self.plugin()
        loss: dict[str, Json] = {"loss": self.loss} if plugin is None else plugin.recorded("loss")
        return {**super().recipe(), **loss, "beta": self.scale(), **margin, **balance}


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
    from primecli.models.identity import trained_otherwise
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
    beta, objective = options.scale(), options.objective()
    if objective.compares:
        prm.groups_with_pairs(rollouts)  # raises before a model is loaded
    trained = trained_otherwise(source, beta, objective.name)
    if trained is not None:
        run.warn(
            f"{source} was trained with {trained}, and goes on with --loss {objective.name} --beta {beta:g}: its "
            "rewards change their scale"
        )
    trainer = run.trainer(source, load)
    prm.preflight(trainer, rollouts, objective)
    passes = options.epochs + (reference is not None) + 2 * options.evaluate  # the epochs take most of the time
    with run.progress:
        done = run.progress.advance
        done(0, total=len(rollouts) * passes)
        rollouts.values[schema.REF_LOGPROBS] = (
            rollouts.values[STORED_REFERENCES[options.ref]]
            if reference is None
            else trainer.score_reference(reference, rollouts.sequences(), load, done=done)
        )
        before = prm.evaluate(trainer, rollouts, beta, objective, done=done) if options.evaluate else {}
        for rows in prm.mini_batches(trainer, rollouts, objective):
            prm.take_step(trainer, rollouts, rows, beta, objective)
            done(len(rows))
        after = prm.evaluate(trainer, rollouts, beta, objective, done=done) if options.evaluate else {}
    quality = {
        f"{name}_{time}": metrics[name]
        for name in {**before, **after}
        for time, metrics in (("before", before), ("after", after))
        if name in metrics  # a PRM that equals its reference separates nothing yet
    }
    if options.evaluate:
        run.facts[PRM_PAIR_ACCURACY] = before.get("pair_accuracy")  # for `compute-advantages --process-trust`
    run.commit(trainer, rollouts, quality)
