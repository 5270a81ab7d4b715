"""import: makes rollout shards from labelled responses, as if a policy had sampled and `verify` had graded them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.errors import InputError, QuarantineError, UsageError
from primecli.files import Json
from primecli.options import Option, key_values
from primecli.pipeline.options import RunOptions

if TYPE_CHECKING:
    from primecli.generation.encoder import Encoder
    from primecli.generation.importer import Importer, Labels
    from primecli.generation.labelled import LabelledResponse, ResponseColumns
    from primecli.pipeline.recipe import Recipe
    from primecli.pipeline.stage_run import StageRun


@dataclass(frozen=True, kw_only=True)
class ImportOptions(RunOptions):
    """The options of `primecli import`."""

    files: Annotated[
        tuple[Path, ...],
        Option("Files of labelled responses: Parquet or JSON.", "execution", metavar="FILE...", argument=True),
    ]
    model: Annotated[
        str,
        Option(
            "The model whose tokenizer and chat template are used; its weights are not read.",
            "execution",
            metavar="DIR|HUB_ID",
        ),
    ]
    out: Annotated[Path, Option("Output directory.", "call", metavar="DIR")]
    prompt_column: Annotated[
        str | None,
        Option("Column with the prompt; a.b is the field b in the column a.  [default: the names in docs/offline.md]"),
    ] = None
    response_column: Annotated[
        str | None, Option("Column with the response, or with the list of its steps.  [default: likewise]")
    ] = None
    label_column: Annotated[
        str | None, Option("Column with the label; with steps, with theirs.  [default: likewise]")
    ] = None
    label_range: Annotated[
        tuple[float, float] | None,
        Option(
            "The labels that stand for a wrong and a right response, such as 1 5.  [default: -1 1 if a label is "
            "negative, else 0 1]",
            metavar="LO HI",
        ),
    ] = None
    unlabelled: Annotated[bool, Option("Import responses that have no label, for `primecli verify` to grade.")] = False
    answer_column: Annotated[
        str | None, Option("Column with the answer.  [default: reward_model.ground_truth, ground_truth or answer]")
    ] = None
    answer_regex: Annotated[
        str | None,
        Option("Take the first group of this regular expression as the answer, such as '#### (.*)' for GSM8K."),
    ] = None
    data_source: Annotated[
        str | None,
        Option("The data source of all responses.  [default: the column data_source, else the name of the file]"),
    ] = None
    suffix: Annotated[str, Option("Text to append to each prompt (to its last message of the user).")] = ""
    system: Annotated[str, Option("System message to put before each prompt.", metavar="TEXT")] = ""
    no_chat_template: Annotated[
        bool,
        Option(
            "Take prompts that are text as they are.  [default: each becomes a message of the user, if the model has a "
            "chat template]",
        ),
    ] = False
    chat_template_arg: Annotated[
        tuple[str, ...],
        Option(
            "A variable of the chat template, such as enable_thinking=false; may be repeated.",
            "call",
            metavar="KEY=VALUE",
        ),
    ] = ()
    max_length: Annotated[
        int | None,
        Option(
            "Maximum length of prompt and response together, in tokens; longer ones are left out, and counted.  "
            "[default: no limit]",
            min=1,
        ),
    ] = None
    prompts_per_shard: Annotated[int, Option("Groups per shard.", min=1)] = 64
    max_errors: Annotated[
        int, Option("Exit with code 4 if more responses than this cannot be used.", "execution", min=0)
    ] = 0

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        for option in ("system", "chat_template_arg"):
            if self.no_chat_template and getattr(self, option):
                raise UsageError(
                    f"--{option.replace('_', '-')} needs the chat template", "leave out --no-chat-template"
                )
        if self.label_range is not None and not self.label_range[0] < self.label_range[1]:
            low, high = self.label_range
            raise UsageError(f"--label-range {low:g} {high:g}: give the label of a wrong response first, the lower one")
        self.chat_template_args()

    def chat_template_args(self) -> dict[str, Any]:
        """The pairs of --chat-template-arg. Raises UsageError for one without a key or without `=`."""
        return key_values("--chat-template-arg", self.chat_template_arg)

    def recipe(self) -> dict[str, Json]:
        """Adds the arguments of the chat template."""
        return {**super().recipe(), "chat_template_args": self.chat_template_args()}

    def columns(self) -> ResponseColumns:
        """Which columns of the files hold what."""
        from primecli.generation.labelled import ResponseColumns

        return ResponseColumns(
            self.prompt_column,
            self.response_column,
            self.label_column,
            self.answer_column,
            self.answer_regex,
            self.suffix,
            self.data_source,
        )


def import_(options: ImportOptions) -> None:
    """Makes shards of whole groups from files of labelled responses, skipping those that exist.

    Raises QuarantineError where more responses than --max-errors allows could not be used.
    """
    from primecli.files import file_hash, fingerprint
    from primecli.generation.encoder import Encoder
    from primecli.generation.importer import UNUSABLE, Importer, Labels, grouped
    from primecli.generation.labelled import read_labelled
    from primecli.generation.responses import ResponseEncoder
    from primecli.models.identity import resolve_tokenizer, tokenizer_fingerprint
    from primecli.models.same_tokens import TOKEN_IDENTITY, token_identity
    from primecli.pipeline.recipe import Recipe
    from primecli.pipeline.stage_run import StageRun

    with StageRun("import", options, finish=metrics) as run:
        directory = resolve_tokenizer(options.model)
        run.models["tokenizer"] = tokenizer_fingerprint(directory)
        run.facts[TOKEN_IDENTITY] = token_identity(directory)
        labelled = read_labelled(options.files, options.columns())
        labels = Labels(labelled, label_range=options.label_range, unlabelled=options.unlabelled)
        run.open(options.out)
        encoder = Encoder(
            directory,
            use_template=not options.no_chat_template,
            system=options.system,
            arguments=options.chat_template_args(),
        )
        importer = Importer(ResponseEncoder(encoder), labels, options.max_length)
        names = [] if options.data_source else [file.name.partition(".")[0] for file in options.files]
        content = fingerprint([*map(file_hash, options.files), *names])
        run.progress.advance(0, total=len(labelled))
        _write(run, grouped(labelled), importer, Recipe("import", options.recipe(), run.models, [content]), options)
        _report(run, labels, importer, encoder)
    left_out = {name: int(run.counts.get(name, 0)) for name in UNUSABLE}
    total = sum(left_out.values())
    if total > options.max_errors:
        kinds = ", ".join(f"{number} {UNUSABLE[name]}" for name, number in left_out.items() if number)
        first = f"; the first: {importer.first}" if importer.first else ""
        raise QuarantineError(
            f"{total} of {len(labelled)} responses could not be used ({kinds}), and --max-errors allows "
            f"{options.max_errors}",
            f"the shards in {run.directory} are complete without them{first}",
        )


def _write(
    run: StageRun,
    groups: Sequence[Sequence[LabelledResponse]],
    importer: Importer,
    recipe: Recipe,
    options: ImportOptions,
) -> None:
    """Writes the shards that do not exist yet. A shard of which no response can be used is not written."""
    from primecli.pipeline import pipe
    from primecli.shards.parquet import shard_name

    numbered = list(enumerate(groups))
    per_shard = options.prompts_per_shard
    parts = [numbered[start : start + per_shard] for start in range(0, len(numbered), per_shard)]
    for number, part in enumerate(parts):
        pipe.check_reader()
        if not run.skip_name(shard_name(number, len(parts)), recipe):
            table, counts = importer.table(part)
            if table.num_rows:
                run.commit(table, counts)
            else:
                run.count(counts)
        run.progress.advance(sum(len(group) for _, group in part))
    if not run.counts.get("rollouts"):
        first = f"the first: {importer.first}" if importer.first else "raise --max-length"
        raise InputError(f"none of the {sum(map(len, groups))} responses can be used", first)


def _report(run: StageRun, labels: Labels, importer: Importer, encoder: Encoder) -> None:
    """Says how labels and texts were read, as far as somebody might expect something else."""
    from primecli.generation.importer import TOO_LONG

    if labels.scale.low < 0 and not labels.unlabelled:
        run.note(f"labels from {labels.scale.low:g} to {labels.scale.high:g} become rewards from 0 to 1")
    if labels.given:
        rule = "below 0, and 0 is neutral" if labels.signed else "below 0.5"
        run.note(f"a step is wrong if its label is {rule}")
    if labels.has_steps:
        run.note("steps are joined by an empty line to make the response")
    if labels.derived and not labels.unlabelled:
        run.note(f"{labels.derived} responses have step labels alone: the outcome is 1 where no step is wrong, else 0")
    if importer.ends_written:
        run.note(f"{importer.ends_written} responses end with the text of the end token, which is taken as that token")
    if encoder.encoded:
        end = importer.responses.end
        run.note(f"every response ends with {end[0]}" if end else "the chat template ends no message with an end token")
    if run.counts.get(TOO_LONG):
        run.warn(f"{int(run.counts[TOO_LONG])} responses are longer than --max-length, and left out")
    if encoder.with_special:
        run.warn(
            f"{encoder.with_special} of {encoder.encoded} prompts hold the text of a special token of the tokenizer, "
            "and the model reads it as that token"
        )


def metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    from primecli.generation.importer import TOO_LONG, UNUSABLE

    rollouts = counts.get("rollouts", 0)
    values = {name: counts.get(name, 0) for name in (*UNUSABLE, TOO_LONG) if counts.get(name)}
    if rollouts:
        values["response_tokens"] = counts["tokens"] / rollouts
    if counts.get("rewarded"):
        values["accuracy"] = counts["reward"] / counts["rewarded"]
    return values
