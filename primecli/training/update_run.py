"""Runs an update: reads the whole batch, trains, writes one checkpoint, and passes the input paths on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from primecli.errors import PrimecliError, ReaderClosed, UsageError
from primecli.files import directory_atomically, lock, make_directory, remove_leftovers
from primecli.models import loading
from primecli.models.checkpoints import check_adapters
from primecli.models.device import peak_memory_gib
from primecli.models.identity import (
    TRAINER_DIRECTORY,
    TRAINER_FILE,
    model_fingerprint,
    read_trainer_record,
    resolve_model,
    signature,
    trainer_fingerprint,
)
from primecli.models.loading import load_model
from primecli.models.preload import Preloader
from primecli.models.same_tokens import TokenCheck
from primecli.parallel.launch import started_ranks
from primecli.parallel.ranks import Ranks, join, joined
from primecli.pipeline import loggers, pipe
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.progress import duration
from primecli.pipeline.run import Run
from primecli.pipeline.summary import Summary
from primecli.shards import schema
from primecli.shards.parquet import Shard, read_footer, require_columns
from primecli.shards.rollouts import Rollouts
from primecli.training.options import UpdateOptions
from primecli.training.trainer import Trainer

TOKENS = (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS)
"""The columns that every update needs."""


class UpdateRun(Run):
    """One run of an update, with one checkpoint: its lock, input, loggers and metrics.

    options: the options of the update.
    target: the checkpoint's directory; where --checkpoint is a symbolic link, what it points to.
    shards: the whole input; empty until `read` has returned.
    """

    def __init__(self, stage: str, options: UpdateOptions) -> None:
        super().__init__(stage, options)
        self.options = options
        self.ranks = joined()
        if self.ranks is not None:
            self.facts["ranks"] = self.ranks.world
        self.target = _behind_links(options.checkpoint)
        self.shards: list[Shard] = []
        self._signatures: dict[Path, tuple[tuple[str, int, int], ...]] = {}  # of the models' directories, at the start
        self._log = loggers.step_log(
            stage,
            options.log,
            options.log_dir or loggers.default_directory(options.checkpoint),
            self.summary("complete").config,
            warn=self.warn,
            note=self.note,
        )
        self._waited = 0.0  # seconds spent waiting for the stage before
        self._schedule_ended = False  # whether the user has been told

    def __enter__(self) -> Self:
        target = self.target
        if target.name in ("", ".."):  # the lock would be beside something else
            raise UsageError(f"--checkpoint {target}: has no name of its own", "name a directory to make")
        if os.path.ismount(target):
            raise UsageError(f"--checkpoint {target}: is a mount point, which cannot be replaced", "name one below it")
        make_directory(target.parent)
        self._stack.enter_context(lock(target.parent / f".{target.name}.lock", str(target)))
        remove_leftovers(target.parent, of=target.name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._log.close(ok=kind is None)
        self._stack.close()
        if isinstance(error, ReaderClosed):
            self.note("the reader has closed the pipe")
        return isinstance(error, ReaderClosed)

    def log_step(self, step: Mapping[str, float]) -> None:
        """Hands the metrics of an optimizer step to the loggers that the user named."""
        number, options = int(step["step"]), self.options
        self._log.write(number, loggers.with_prefix(self.stage, step))
        if options.total_steps is not None and number > options.total_steps and not self._schedule_ended:
            self._schedule_ended = True
            self.warn(
                f"step {number} is beyond --total-steps {options.total_steps}: the learning rate stays at --min-lr "
                f"{options.min_lr:g}"
            )

    def use_model(self, role: str, name: str) -> Path:
        """The directory of a model, whose fingerprint goes into the recipe. `read` checks that it has not changed.

        role: such as "ref". name: a directory or hub id, as the user typed it.
        """
        directory = resolve_model(name)
        self.models[role] = model_fingerprint(directory)
        self._signatures[directory] = signature(directory)
        return directory

    def use_trained_model(self, role: str, name: str) -> Path:
        """As `use_model`, for the model to be trained. Raises UsageError if it was trained with other adapters."""
        directory = self.use_model(role, name)
        self.models["trainer"] = trainer_fingerprint(directory)
        check_adapters(directory, self.stage, self.options.lora())
        return directory

    def read(self, needs: Sequence[str], *, while_idle: Callable[[], None]) -> list[Shard]:
        """All input shards, read to the end of the input, each checked for the columns that the update needs.

        while_idle: called if the stage before sends nothing for a second, unless the checkpoint exists already and no
            model will be needed.

        Raises PrimecliError if a model has changed meanwhile.
        """
        options = self.options
        inputs = Inputs(options.shards, partial=options.partial, together=True, warn=self.warn)
        if options.force or not self.target.exists():
            inputs.while_idle = while_idle
        for shard in inputs:
            require_columns(shard.path, shard.footer.columns, needs)
            self.shards.append(shard)
        self._waited = inputs.waited
        for directory, original in self._signatures.items():
            if signature(directory) != original:
                raise PrimecliError(f"{directory} has changed while this stage waited for its input")
        return self.shards

    def skip(self) -> bool:
        """Whether the checkpoint exists already; if so, passes the input paths on.

        Raises UsageError if something else is in its place, and PrimecliError if another run made the checkpoint.
        """
        target = self.target
        if not target.exists():
            return False
        if not (target / TRAINER_DIRECTORY / TRAINER_FILE).exists():
            raise UsageError(f"{target} exists and is not a primecli checkpoint", "choose another --checkpoint")
        if self.options.force:
            return False
        record = read_trainer_record(target)
        fingerprint, recipe = record.get("fingerprint"), self.recipe(self.shards)
        self.refuse_other(target, fingerprint, record.get("recipe"), recipe, "--checkpoint")
        self.note(f"{target} exists already, made from the same input")
        pipe.emit_all([shard.path for shard in self.shards])
        return True

    def trainer(self, source: Path, load: Callable[..., Any]) -> Trainer:
        """Loads the model to train, with its optimizer. source: its directory. load: as in `Trainer`."""
        options = self.options
        return Trainer(source, options.placement(), options, self.stage, load=load, on_step=self.log_step)

    def commit(self, trainer: Trainer, rollouts: Rollouts, metrics: Mapping[str, float]) -> None:
        """Writes the checkpoint, whole or not at all, shows the metrics, and passes the input paths on.

        The trainer's memory is released before the paths are out, since the next stage may want the GPU then.
        metrics: those of the stage, besides those of the optimizer steps.
        """
        recipe = self.recipe(self.shards)
        provenance = self.provenance(recipe, self.shards)
        summary = self.summary("complete")
        summary.shards = [shard.name for shard in self.shards]
        summary.rows = len(rollouts)
        summary.groups = int(rollouts.group_index.max()) + 1
        summary.seconds = self.seconds(self._waited)
        summary.metrics = {**trainer.metrics(), **metrics, "peak_memory_gib": _peak_memory_gib(trainer)}
        with directory_atomically(self.target, replace=self.options.force) as directory:
            if self.ranks is not None:
                self.ranks.share(str(directory))
            trainer.save(directory, trainer.record(recipe, provenance))
            summary.metrics |= trainer.seconds
            summary.write(directory)
        history, saved_nothing = trainer.history, trainer.optimizer.offload and trainer.placement.device.type == "cpu"
        trainer.release()
        self._log.close(ok=True)  # before the next stage starts, which may continue the same wandb run
        if not self.options.quiet:
            show_metrics(summary, history)
        if summary.rows < self.options.mini_batch:
            size = self.options.mini_batch
            self.note(f"the {summary.rows} rollouts are fewer than --mini-batch {size}: each epoch was a single step")
        if saved_nothing:
            self.note("--offload-optimizer saved nothing: on a CPU the moments are in its memory anyway")
        self.note(f"{summary.rows} rollouts in {summary.groups} groups, {duration(summary.seconds)} -> {self.target}")
        pipe.emit_all([shard.path for shard in self.shards])


class Follower(UpdateRun):
    """The run of an update on a rank other than 0: it trains, and leaves files, messages and the pipe to rank 0.

    shards: the whole input, as rank 0 has found it. models: fingerprints by role, likewise.
    """

    def __init__(
        self, stage: str, options: UpdateOptions, shards: Sequence[Shard], models: Mapping[str, str | None]
    ) -> None:
        super().__init__(stage, replace(options, log=(), quiet=True))
        self.shards = list(shards)
        self.models = dict(models)

    def warn(self, text: str) -> None:
        """Says nothing: rank 0 says the same."""

    def log_step(self, step: Mapping[str, float]) -> None:
        """Logs nothing: rank 0 does."""

    def commit(self, trainer: Trainer, rollouts: Rollouts, metrics: Mapping[str, float]) -> None:
        """Writes this rank's rows into the checkpoint that rank 0 makes."""
        assert self.ranks is not None, "a follower is a rank"
        _peak_memory_gib(trainer)
        trainer.save(Path(self.ranks.share(None)), {})
        trainer.release()


def _peak_memory_gib(trainer: Trainer) -> float:
    """The most memory that this process has held so far, GiB; of many ranks, the most of any."""
    own = peak_memory_gib(trainer.placement)
    return own if trainer.ranks is None else max(trainer.ranks.gather(own))


def _behind_links(checkpoint: Path) -> Path:
    """What a symbolic link points to, also where that does not exist yet, or the path itself if it is no link.

    A directory cannot be renamed onto a link, and that would show only after the last step. Raises UsageError for links
    that lead in a circle.
    """
    if not checkpoint.is_symlink():
        return checkpoint
    real = Path(os.path.realpath(checkpoint))
    if real.is_symlink():
        raise UsageError(f"--checkpoint {checkpoint}: its symbolic link leads in a circle", "remove it")
    return real


class Train(Protocol):
    """The part of an update that differs from stage to stage: everything between its input and its checkpoint."""

    def __call__(self, run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]) -> None:
        """Trains the model in `source` on `run.shards`, and commits it.

        reference: the directory of the reference model; None if there is none. load: loads the model of a directory.
        """


def run_update(
    stage: str,
    options: UpdateOptions,
    train: Train,
    *,
    role: str,
    model: str,
    needs: Sequence[str],
    reference: str | None = None,
    load: Callable[..., Any] = load_model,
) -> None:
    """Runs an update: reads its input to the end, and trains unless the checkpoint exists already.

    train: what the stage does between its input and its checkpoint.
    role: of the model to train, such as "prm".
    model: the model to train, as the user named it.
    needs: the columns that the stage reads besides `TOKENS`.
    reference: the reference model, as the user named it; None if none is loaded.
    load: loads the model to train.
    """
    if started_ranks(options.nproc):
        return
    ranks = join()
    if ranks is None:
        with UpdateRun(stage, options) as run:
            found = _prepare(run, role, model, needs, reference, load)
            if found is not None:
                train(run, found.source, found.reference, found.load)
        return
    options = replace(options, device=ranks.device(options.device))
    with ranks.working():
        if ranks.first:
            _lead(
                ranks, UpdateRun(stage, options), train, lambda run: _prepare(run, role, model, needs, reference, load)
            )
        else:
            loading.warm_imports()  # while rank 0 waits for its input
            _follow(ranks, stage, options, train, load)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What an update starts from, once its input is complete.

    source: directory of the model to train. reference: of the reference model; None without one. load: as in `Train`.
    """

    source: Path
    reference: Path | None
    load: Callable[..., Any]


def _prepare(
    run: UpdateRun, role: str, model: str, needs: Sequence[str], reference: str | None, load: Callable[..., Any]
) -> _Prepared | None:
    """Reads the input and checks it and the models; None where the checkpoint exists already.

    The arguments are those of `run_update`.
    """
    source = run.use_trained_model(role, model)
    reference_directory = None if reference is None else run.use_model("ref", reference)
    preloader = Preloader(run.options.threads, load)
    references = [] if reference_directory is None else [(reference_directory, run.options.resolved_dtype())]
    # ranks read their rows of the weights when the model is spread over them
    run.read(
        [*TOKENS, *needs],
        while_idle=loading.warm_imports if run.ranks else lambda: preloader.begin(references, to_train=source),
    )
    if run.skip():
        return None
    directories = {role: source, **({"ref": reference_directory} if reference_directory else {})}
    tokens_check = TokenCheck(directories)
    for shard in run.shards:
        tokens_check.check(shard)
    return _Prepared(source, reference_directory, load if run.ranks else preloader.load)


def _lead(ranks: Ranks, run: UpdateRun, train: Train, prepare: Callable[[UpdateRun], _Prepared | None]) -> None:
    """Runs an update as rank 0."""
    with ranks.calling(), run:
        found = prepare(run)
        if found is not None:
            paths = [str(shard.path) for shard in run.shards]
            reference = None if found.reference is None else str(found.reference)
            source = str(found.source)
            ranks.call({"shards": paths, "source": source, "reference": reference, "models": dict(run.models)})
            train(run, found.source, found.reference, found.load)


def _follow(ranks: Ranks, stage: str, options: UpdateOptions, train: Train, load: Callable[..., Any]) -> None:
    """Takes part in an update as a rank other than 0."""
    for work in ranks.calls():
        shards = [Shard(Path(path), read_footer(Path(path))) for path in work["shards"]]
        run = Follower(stage, options, shards, work["models"])
        reference = work["reference"]
        train(run, Path(work["source"]), None if reference is None else Path(reference), load)


def show_metrics(summary: Summary, history: Sequence[Mapping[str, float]]) -> None:
    """Shows the metrics as a table on stderr: of the first optimizer step, of the last, and over all."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"primecli {summary.stage}", title_justify="left")
    table.add_column("metric")
    for heading in ("first step", "last step", "all steps"):
        table.add_column(heading, justify="right")
    for name, value in summary.metrics.items():
        steps = [f"{step[name]:.5g}" if name in step else "" for step in (history[0], history[-1])]
        table.add_row(name, *steps, f"{value:.5g}")
    Console(file=sys.stderr).print(table)
