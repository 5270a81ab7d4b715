"""The base of every run of a stage, whether it writes shards or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from primecli import __version__
from primecli.errors import PrimecliError
from primecli.files import Json
from primecli.pipeline.options import RunOptions
from primecli.pipeline.progress import Progress, say
from primecli.pipeline.recipe import BatchRecipe, Moment, Recipe, differences, provenance_record
from primecli.pipeline.summary import Status, Summary
from primecli.shards.parquet import Shard


class Run:
    """One run of one stage: what its result depends on, and the messages to the user.

    stage: its name, such as "verify".
    models: fingerprints of the models that it uses, by role; the stage fills it in before it asks for a recipe.
    facts: what else the provenance records, though the result does not depend on it.
    progress: the progress display, which counts `unit`.
    """

    def __init__(self, stage: str, options: RunOptions, unit: str = "rollouts") -> None:
        self.stage = stage
        self.models: dict[str, str | None] = {}
        self.facts: dict[str, Json] = {}
        self.progress = Progress(stage, unit, quiet=options.quiet)
        self._options = options
        self._recipe = options.recipe()  # kept: resolving `auto` may have to import torch
        self._execution = options.execution()
        self._stack = ExitStack()  # what is released at the end of the run, such as the lock
        self._started = Moment.now()

    def warn(self, text: str) -> None:
        """Writes a line to stderr, even with --quiet: it is about the input, not about progress."""
        say(self.stage, text)

    def note(self, text: str) -> None:
        """Writes a line to stderr, unless --quiet was given."""
        if not self._options.quiet:
            say(self.stage, text)

    def recipe(self, inputs: Sequence[Shard], extra: Mapping[str, Json] | None = None) -> Recipe:
        """The recipe of a result made from these inputs. extra: what it depends on besides the options of the run."""
        return Recipe(
            self.stage,
            {**self._recipe, **(extra or {})},
            self.models,
            [shard.footer.content for shard in inputs],
            self._options.recorded_seed(),
        )

    def batch_recipe(self, inputs: Sequence[Shard], extra: Mapping[str, Json] | None = None) -> BatchRecipe:
        """As `recipe`, for all outputs of a stage that each depend on all inputs."""
        one = self.recipe(inputs, extra)
        return BatchRecipe(one.stage, one.config, dict(one.models), one.inputs, one.seed, tuple(inputs))

    def refuse_other(
        self, target: Path, fingerprint: str | None, stored: Mapping[str, Any] | None, recipe: Recipe, option: str
    ) -> None:
        """Raises PrimecliError if an existing result was not made by this recipe.

        fingerprint, stored: the fingerprint and the recipe recorded in the result.
        option: the option that says where the result goes, such as --out.
        """
        if fingerprint != recipe.fingerprint():
            raise PrimecliError(
                f"{target} exists and comes from a different run: {differences(stored, recipe.as_json())}",
                f"choose another {option}, or overwrite it with --force",
            )

    def provenance(self, recipe: Recipe, inputs: Sequence[Shard], started: Moment | None = None) -> dict[str, Json]:
        """The record of how a result was made. started: when work on it began; by default, when the run started."""
        record = provenance_record(recipe, self._execution, self._started if started is None else started, inputs)
        return {**record, **self.facts}

    def summary(self, status: Status) -> Summary:
        """A summary of this run without any shards or metrics yet."""
        seed = self._options.recorded_seed()
        return Summary(
            self.stage,
            status,
            config={**self._recipe, **self._execution, **({} if seed is None else {"seed": seed})},
            version=__version__,
            started=self._started.isoformat(),
        )

    def seconds(self, waited: float) -> float:
        """Seconds at work so far: wall time minus `waited`, the seconds spent waiting for the stage before."""
        return round(max(self._started.seconds() - waited, 0.0), 3)
