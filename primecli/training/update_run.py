"""One run of an update: reads the whole batch, writes one checkpoint, passes the paths on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from primecli import __version__
from primecli.errors import PrimecliError, ReaderClosed, UsageError
from primecli.files import Json, directory_atomically, lock, make_directory, remove_leftovers
from primecli.models.device import peak_memory_gib
from primecli.models.identity import TRAINER_DIRECTORY, TRAINER_FILE, model_fingerprint, read_trainer_record, signature
from primecli.pipeline import loggers, pipe
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.progress import Progress, duration, say
from primecli.pipeline.recipe import Recipe, differences, provenance_record
from primecli.pipeline.summary import Summary
from primecli.shards.parquet import Shard, require_columns
from primecli.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """What every update lets the user say about its input and output."""

    shards: Sequence[str]
    checkpoint: Path
    force: bool = False
    partial: bool = False
    quiet: bool = False
    log: Sequence[str] = ()
    log_dir: Path | None = None


class UpdateRun:
    """One run of an update stage: reads the whole batch, writes one checkpoint, then passes the paths on."""

    def __init__(
        self,
        stage: str,
        options: UpdateOptions,
        *,
        config: Mapping[str, Json],
        execution: Mapping[str, Json],
        seed: int,
    ) -> None:
        self.stage = stage
        self.options = options
        self.config: dict[str, Any] = dict(config)
        self.execution: dict[str, Any] = dict(execution)
        self.seed = seed
        self.models: dict[str, str | None] = {}
        self.shards: list[Shard] = []
        self._signatures: dict[Path, tuple[tuple[str, int, int], ...]] = {}
        self.progress = Progress(stage, "rollouts", quiet=options.quiet)
        self._log = loggers.step_log(
            stage,
            options.log,
            options.log_dir or loggers.default_directory(options.checkpoint),
            {**config, **execution, "seed": seed},
            warn=lambda text: say(stage, text),
            note=lambda text: None if options.quiet else say(stage, text),
        )
        self._stack = ExitStack()
        self._started = time.time()
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
        if isinstance(error, ReaderClosed) and not self.options.quiet:
            say(self.stage, "the reader has closed the pipe")
        return isinstance(error, ReaderClosed)

    def log_step(self, step: Mapping[str, float]) -> None:
        """Gives an optimizer step's metrics to the loggers that the user named."""
        self._log.write(int(step["step"]), loggers.named(self.stage, step))

    def use_model(self, role: str, directory: Path) -> None:
        """Takes a model's identity into the recipe; `read` checks that it is still the same after the wait."""
        self.models[role] = model_fingerprint(directory)
        self._signatures[directory] = signature(directory)

    def read(self, needs: Sequence[str], *, while_idle: Callable[[], None]) -> list[Shard]:
        """All input shards, to the end of the input, each checked for its columns.

        while_idle: done while waiting for them, unless the checkpoint is there and no model will be needed.
        """
        options = self.options
        inputs = Inputs(options.shards, partial=options.partial, together=True, warn=lambda text: say(self.stage, text))
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

    def recipe(self) -> Recipe:
        """What the checkpoint depends on."""
        contents = [shard.footer.content for shard in self.shards]
        return Recipe(self.stage, self.config, self.models, contents, self.seed)

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
        if record.get("fingerprint") != self.recipe().fingerprint():
            raise PrimecliError(
                f"{target} exists and is of another run: {differences(record.get('recipe'), self.recipe().as_json())}",
                "choose another --checkpoint, or overwrite it with --force",
            )
        if not self.options.quiet:
            say(self.stage, f"{target} is there already, from the same input")
        pipe.emit_all([shard.path for shard in self.shards])
        return True

    def commit(self, trainer: Trainer, rows: int, groups: int, metrics: Mapping[str, float]) -> None:
        """Writes the checkpoint whole, reports, and passes the input paths on."""
        recipe = self.recipe()
        target = self.options.checkpoint
        provenance = provenance_record(recipe, self.execution, self._started, self.shards)
        summary = Summary(
            self.stage,
            "complete",
            shards=[shard.name for shard in self.shards],
            rows=rows,
            groups=groups,
            seconds=round(time.time() - self._started - self._waited, 3),
            config={**self.config, **self.execution, "seed": self.seed},
            metrics={**trainer.metrics(), **metrics, "peak_memory_gib": peak_memory_gib(trainer.place)},
            version=__version__,
            started=datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
        )
        with directory_atomically(target, replace=self.options.force) as directory:
            trainer.save(directory, recipe, provenance)
            summary.write(directory)
        self._log.close(ok=True)  # before the next stage starts, which may go on with the same run of wandb
        if not self.options.quiet:
            show_metrics(summary, trainer.history)
            if trainer.optimizer.offload and trainer.place.device.type == "cpu":
                say(self.stage, "--offload-optimizer saved nothing: on the CPU the moments are in its memory anyway")
            say(self.stage, f"{rows} rollouts in {groups} groups, {duration(summary.seconds)} -> {target}")
        pipe.emit_all([shard.path for shard in self.shards])


def show_metrics(summary: Summary, history: Sequence[Mapping[str, float]]) -> None:
    """The metrics as a table on stderr: of the first step, the last, and over all."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"primecli {summary.stage}", title_justify="left")
    table.add_column("metric")
    for heading in ("first step", "last step", "all steps"):
        table.add_column(heading, justify="right")
    for name, value in summary.metrics.items():
        steps = [f"{history[place][name]:.5g}" if name in history[place] else "" for place in (0, -1)]
        table.add_row(name, *steps, f"{value:.5g}")
    Console(file=sys.stderr).print(table)
