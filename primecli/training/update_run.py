"""One run of an update: reads the whole batch, writes one checkpoint, passes the paths on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from primecli.errors import PrimecliError, ReaderClosed, UsageError
from primecli.files import directory_atomically, lock, make_directory, remove_leftovers
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
from primecli.pipeline import loggers, pipe
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.progress import duration
from primecli.pipeline.run import Run
from primecli.pipeline.summary import Summary
from primecli.shards import schema
from primecli.shards.parquet import Shard, require_columns
from primecli.shards.rollouts import Rollouts
from primecli.training.options import UpdateOptions
from primecli.training.trainer import Trainer

TOKENS = (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT_IDS, schema.RESPONSE_IDS)
"""The columns that every update needs."""


class UpdateRun(Run):
    """One run of an update: reads the whole batch, writes one checkpoint, then passes the paths on.

    shards: all of the input, once `read` has returned.
    """

    def __init__(self, stage: str, options: UpdateOptions) -> None:
        super().__init__(stage, options)
        self.options = options
        self.shards: list[Shard] = []
        self._signatures: dict[Path, tuple[tuple[str, int, int], ...]] = {}
        self._log = loggers.step_log(
            stage,
            options.log,
            options.log_dir or loggers.default_directory(options.checkpoint),
            self.summary("complete").config,
            warn=self.warn,
            note=self.note,
        )
        self._waited = 0.0

    def __enter__(self) -> Self:
        target = self.options.checkpoint
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
        """Gives an optimizer step's metrics to the loggers that the user named."""
        self._log.write(int(step["step"]), loggers.with_prefix(self.stage, step))

    def use_model(self, role: str, name: str) -> Path:
        """The directory of a model, its identity taken into the recipe; `read` checks that it has not changed since."""
        directory = resolve_model(name)
        self.models[role] = model_fingerprint(directory)
        self._signatures[directory] = signature(directory)
        return directory

    def use_trained_model(self, role: str, name: str) -> Path:
        """As `use_model`, for the model that is trained. Raises UsageError where it was trained with other adapters."""
        directory = self.use_model(role, name)
        self.models["trainer"] = trainer_fingerprint(directory)
        check_adapters(directory, self.stage, self.options.lora())
        return directory

    def read(self, needs: Sequence[str], *, while_idle: Callable[[], None]) -> list[Shard]:
        """All input shards, to the end of the input, each checked for its columns.

        while_idle: done while waiting for them, unless the checkpoint is there and no model will be needed.
        """
        options = self.options
        inputs = Inputs(options.shards, partial=options.partial, together=True, warn=self.warn)
        if options.force or not options.checkpoint.exists():
            inputs.while_idle = while_idle
        for shard in inputs:
            require_columns(shard.path, shard.footer.columns, needs)
            self.shards.append(shard)
        self._waited = inputs.waited
        for directory, before in self._signatures.items():
            if signature(directory) != before:
                raise PrimecliError(f"{directory} has changed while this stage waited for its input")
        return self.shards

    def skip(self) -> bool:
        """Whether the checkpoint is there already; then the input paths have been passed on."""
        target = self.options.checkpoint
        if not target.exists():
            return False
        if not (target / TRAINER_DIRECTORY / TRAINER_FILE).exists():
            raise UsageError(f"{target} exists and is not a checkpoint of primecli", "choose another --checkpoint")
        if self.options.force:
            return False
        record = read_trainer_record(target)
        fingerprint, recipe = record.get("fingerprint"), self.recipe(self.shards)
        self.refuse_other(target, fingerprint, record.get("recipe"), recipe, "--checkpoint")
        self.note(f"{target} is there already, from the same input")
        pipe.emit_all([shard.path for shard in self.shards])
        return True

    def trainer(self, source: Path, load: Callable[..., Any]) -> Trainer:
        """The model to train, loaded, with its optimizer. load: as in `Trainer`."""
        options = self.options
        return Trainer(source, options.placement(), options, self.stage, load=load, on_step=self.log_step)

    def commit(self, trainer: Trainer, rollouts: Rollouts, metrics: Mapping[str, float]) -> None:
        """Writes the checkpoint whole, reports, gives the trainer's memory back, and passes the input paths on."""
        recipe = self.recipe(self.shards)
        target = self.options.checkpoint
        provenance = self.provenance(recipe, self.shards)
        summary = self.summary("complete")
        summary.shards = [shard.name for shard in self.shards]
        summary.rows = len(rollouts)
        summary.groups = int(rollouts.group_index.max()) + 1
        summary.seconds = self.seconds(self._waited)
        summary.metrics = {**trainer.metrics(), **metrics, "peak_memory_gib": peak_memory_gib(trainer.placement)}
        with directory_atomically(target, replace=self.options.force) as directory:
            trainer.save(directory, recipe, provenance)
            summary.write(directory)
        history, saved_nothing = trainer.history, trainer.optimizer.offload and trainer.placement.device.type == "cpu"
        trainer.release()  # the next stage wants the GPU as soon as it sees the paths
        self._log.close(ok=True)  # before the next stage starts, which may go on with the same run of wandb
        if not self.options.quiet:
            show_metrics(summary, history)
        if saved_nothing:
            self.note("--offload-optimizer saved nothing: on the CPU the moments are in its memory anyway")
        self.note(f"{summary.rows} rollouts in {summary.groups} groups, {duration(summary.seconds)} -> {target}")
        pipe.emit_all([shard.path for shard in self.shards])


class Train(Protocol):
    """What an update does between its input and its checkpoint."""

    def __call__(self, run: UpdateRun, source: Path, reference: Path | None, load: Callable[..., Any]) -> None:
        """Trains the model in `source` on `run.shards`, and commits. reference: the reference model, if one is used."""


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
    """Runs an update: takes its input to the end, and trains unless its checkpoint is there already.

    role, model: of the model that is trained, such as "prm". needs: the columns that it reads besides `TOKENS`.
    reference: the reference model, None where none is loaded. load: loads the model that is trained.
    """
    with UpdateRun(stage, options) as run:
        source = run.use_trained_model(role, model)
        directory = None if reference is None else run.use_model("ref", reference)
        early = Preloader(options.threads, load)
        wanted = [(source, "float32"), *([] if directory is None else [(directory, options.resolved_dtype())])]
        run.read([*TOKENS, *needs], while_idle=lambda: early.begin(wanted))
        if not run.skip():
            train(run, source, directory, early.load)


def show_metrics(summary: Summary, history: Sequence[Mapping[str, float]]) -> None:
    """The metrics as a table on stderr: of the first step, the last, and over all."""
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
