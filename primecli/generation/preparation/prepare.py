"""prepare: reads prompt files, marks or drops rows, and writes one prompt file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.errors import InputError, PrimecliError, UsageError
from primecli.files import Json, file_hash, lock, make_directory, remove_leftovers
from primecli.generation.preparation import report
from primecli.generation.prompts import PromptColumns
from primecli.options import Option, Partial
from primecli.pipeline import pipe
from primecli.pipeline.options import RunOptions
from primecli.pipeline.run import Run

if TYPE_CHECKING:
    from primecli.pipeline.recipe import Recipe
    from primecli.shards.parquet import Shard

RULES = 1
"""Part of the fingerprint. Raise it when a change can give a row another mark."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(RunOptions):
    """The options of `primecli prepare`."""

    files: Annotated[
        tuple[Path, ...],
        Option("Prompt files, Parquet or JSON, as for generate.", "execution", metavar="FILE...", argument=True),
    ] = ()
    out: Annotated[Path, Option("The prompt file to write, Parquet.", "call", metavar="FILE")]
    drop: Annotated[bool, Option("Leave out the rows that get a mark.  [default: they stay, with the mark]")] = False
    near: Annotated[
        float,
        Option(
            "Prompts are duplicates if this share of their words is the same; 1 for exact ones only.", min=0.8, max=1.0
        ),
    ] = 0.9
    contamination: Annotated[
        tuple[Path, ...],
        Option("Prompt file of a benchmark, to look for in the prompts; may be repeated.", "execution", metavar="FILE"),
    ] = ()
    contamination_share: Annotated[
        float,
        Option("Mark a prompt that holds this share of a benchmark's prompt, word for word.", min=0.01, max=1.0),
    ] = 0.5
    ngram: Annotated[
        int, Option("Words in a row that count as word for word; 8 for short prompts of a benchmark.", min=5)
    ] = 13
    pass_rate: Annotated[
        tuple[str, ...],
        Option(
            "Graded shards of samples of these prompts, for their pass rates; may be repeated.",
            "call",
            metavar="SHARDS",
        ),
    ] = ()
    keep: Annotated[
        tuple[float, float] | None,
        Option("Mark prompts whose pass rate is not within these bounds.", metavar="LOW HIGH"),
    ] = None
    max_words: Annotated[int, Option("Mark prompts of more words.", min=1)] = 1000
    prompt_column: Annotated[
        str | None,
        Option("Column with the prompt; a.b is the field b in the column a.  [default: prompt, problem, question, …]"),
    ] = None
    answer_column: Annotated[
        str | None, Option("Column with the answer.  [default: reward_model.ground_truth, ground_truth or answer]")
    ] = None
    answer_regex: Annotated[
        str | None,
        Option("Take the first group of this regular expression as the answer, such as '#### (.*)' for GSM8K."),
    ] = None
    text: Annotated[bool, Option("Write prompts as plain text, for a model without a chat template.")] = False
    workers: Annotated[
        int | None, Option("Number of processes that read answers.  [default: one per core]", "execution", min=1)
    ] = None
    as_json: Annotated[bool, Option("Print the summary as JSON on stdout.", "call", flags="--json")] = False
    partial: Partial = False

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        if not self.files:
            raise UsageError(
                "no prompt files given", "name one or more: primecli prepare train.jsonl --out train.parquet"
            )
        if self.keep is not None and not self.keep[0] <= self.keep[1]:
            raise UsageError(f"--keep {self.keep[0]:g} {self.keep[1]:g}: the lower bound comes first")
        if self.contamination and self.ngram < 8:
            raise UsageError(f"--ngram {self.ngram}: must be at least 8, as for short prompts")
        self.columns().pattern()

    def columns(self) -> PromptColumns:
        """Where the prompts and answers are."""
        return PromptColumns(self.prompt_column or "prompt", self.answer_column, self.answer_regex)


class PrepareRun(Run):
    """One run of `prepare`: its lock, and the recipe and the summary of the file that it writes.

    says_steps: whether each step is announced.
    """

    def __init__(self, options: PrepareOptions) -> None:
        super().__init__("prepare", options, "prompts")
        self.options = options
        self.says_steps = False

    def __enter__(self) -> PrepareRun:
        out = self.options.out
        if out.is_dir():
            raise UsageError(f"--out {out}: is a directory", "name the file to write, such as train.parquet")
        for file in (*self.options.files, *self.options.contamination):
            if out.exists() and file.exists() and out.samefile(file):
                raise UsageError(f"--out {out}: is one of the files to read", "write another one")
        make_directory(out.parent)
        self._stack.enter_context(lock(out.parent / f".{out.name}.lock", str(out)))
        remove_leftovers(out.parent, of=out.name)
        self._stack.enter_context(self.progress)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, text: str) -> None:
        """Says what is done now, if it may take long."""
        if self.says_steps:
            self.note(text)

    def recipe_of(self, shards: Sequence[Shard]) -> Recipe:
        """What the file depends on: contents and names of what is read. shards: those with pass rates."""
        from primecli.verifiers import VERSIONS

        options = self.options
        benchmarks = [[file.name, file_hash(file)] for file in options.contamination]
        extra: dict[str, Json] = {
            "rules": RULES,
            "names": [file.name for file in options.files],
            "benchmarks": benchmarks,
            "pass_rates": [shard.footer.content for shard in shards],
            "verifiers": dict(VERSIONS),
        }
        return replace(self.recipe((), extra), inputs=[file_hash(file) for file in options.files])

    def existing(self, recipe: Recipe) -> Mapping[str, Any] | None:
        """The summary of the file if it exists and is of this recipe; None if it has to be made.

        Raises PrimecliError if it is of another recipe.
        """
        from primecli.shards.parquet import read_footer

        out = self.options.out
        if self.options.force or not out.exists():
            return None
        try:
            footer = read_footer(out)
        except InputError as error:
            raise PrimecliError(
                f"{out} exists and is no prompt file that prepare wrote: {error.message}",
                "choose another --out, or overwrite it with --force",
            ) from error
        self.refuse_other(out, footer.fingerprint, footer.recipe, recipe, "--out")
        found = footer.provenance[-1].get("summary") if footer.provenance else None
        return found if isinstance(found, dict) else None

    def write(self, recipe: Recipe, table: Any, summary: Mapping[str, Json]) -> None:
        """Writes the file, whole or not at all."""
        from primecli.shards.parquet import Footer, Shard, write_shard

        inputs = [
            Shard(file, Footer(0, (), content=content))
            for file, content in zip(self.options.files, recipe.inputs, strict=True)
        ]
        record = {**self.provenance(recipe, inputs), "summary": summary}
        write_shard(
            self.options.out,
            table,
            fingerprint=recipe.fingerprint(),
            recipe=recipe.as_json(),
            counts={"rows": table.num_rows},
            provenance=[record],
        )


def prepare(options: PrepareOptions) -> None:
    """Writes the prompts of the files as one prompt file, and says what is in it."""
    with PrepareRun(options) as run:
        from primecli.generation.preparation.pass_rates import graded_shards

        shards = graded_shards(options.pass_rate, partial=options.partial, warn=run.warn)
        recipe = run.recipe_of(shards)
        summary = run.existing(recipe)
        if summary is not None:
            run.note(f"{options.out} exists already, made from the same input")
        else:
            from primecli.generation.preparation.marking import marked_table

            table, summary = marked_table(run, shards)
            run.write(recipe, table, summary)
    report.show(summary, options.out, as_json=options.as_json, quiet=options.quiet)
    if not options.as_json:
        pipe.emit(options.out)
