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
    import pyarrow as pa

    from primecli.generation.encoder import Encoder
    from primecli.generation.label_values import Scale
    from primecli.generation.labelled import LabelledResponse, ResponseColumns
    from primecli.generation.responses import ResponseEncoder
    from primecli.pipeline.recipe import Recipe
    from primecli.pipeline.stage_run import StageRun

UNUSABLE = {
    "unlabelled": "without a label",
    "outside_scale": "with a label outside the scale",
    "empty": "with an empty response or step",
    "inexact": "whose token ids do not decode to the text",
    "steps_unplaced": "whose steps are shorter than a token, or not found in the tokens",
    "step_labels_unclear": "whose step labels do not say which step is the first wrong one",
}
"""Why a response cannot be used, as the metrics name it and in words."""

TOO_LONG = "too_long"  # left out because an option says so, which is not an error


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
        labels = _Labels(labelled, options)
        run.open(options.out)
        encoder = Encoder(
            directory,
            use_template=not options.no_chat_template,
            system=options.system,
            arguments=options.chat_template_args(),
        )
        importer = _Importer(ResponseEncoder(encoder), labels, options.max_length)
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


def grouped(labelled: Sequence[LabelledResponse]) -> list[list[LabelledResponse]]:
    """The responses to each prompt of each data source together, in the order in which the prompts are first seen."""
    from primecli.files import fingerprint

    groups: dict[tuple[str | None, str], list[LabelledResponse]] = {}
    for one in labelled:
        content: Json = [one.prompt.content, one.prompt.tools]
        groups.setdefault((one.prompt.data_source, fingerprint(content)), []).append(one)
    return list(groups.values())


class _Labels:
    """What the labels of all responses mean.

    scale: of the labels of whole responses.
    has_steps: whether any response is given in steps.
    signed: whether a step is wrong below 0, rather than below 0.5.
    derived: responses whose outcome follows from their step labels.

    Raises InputError where no response has a label and none is asked for, and for labels on no known scale.
    """

    def __init__(self, labelled: Sequence[LabelledResponse], options: ImportOptions) -> None:
        from primecli.generation.label_values import Scale, scale_of

        outcomes = [one.outcome for one in labelled]
        self.unlabelled = options.unlabelled
        self.scale = Scale(*options.label_range) if options.label_range else scale_of(outcomes)
        self.has_steps = any(one.steps is not None for one in labelled)
        given = [label for one in labelled for label in one.step_labels or () if label is not None]
        self.signed = min(given, default=0) < 0
        self.given = len(given)
        self.derived = sum(one.outcome is None and one.steps is not None for one in labelled)
        if not options.unlabelled and not self.derived and all(outcome is None for outcome in outcomes):
            raise InputError(
                f"{', '.join(map(str, options.files))}: no response has a label",
                "name the column with --label-column, or pass --unlabelled and grade them with `primecli verify`",
            )
        outside = next((one for one in labelled if self._is_outside(one.outcome)), None)
        if outside is not None and options.label_range is None:
            raise InputError(
                f"{outside.prompt.where}: its label is {outside.outcome:g}; labels are from 0 to 1, or from -1 to 1",
                "--label-range LO HI says which labels stand for wrong and right",
            )

    def _is_outside(self, outcome: float | None) -> bool:
        return outcome is not None and self.scale.reward(outcome) is None

    def first_wrong(self, one: LabelledResponse) -> int | None:
        """The index of the first wrong step, -1 for none; None where nothing says it. Raises ValueError if unclear."""
        from primecli.generation.label_values import first_wrong_step

        steps = one.steps or ()
        if one.first_wrong is not None:
            if one.first_wrong >= len(steps):
                raise ValueError
            return one.first_wrong
        if one.step_labels is None:
            return None
        first = first_wrong_step(one.step_labels, len(steps), signed=self.signed)
        if first is None or len(one.step_labels) > len(steps):
            raise ValueError
        return first


class _Importer:
    """Makes the rows of shards.

    responses: encodes responses. labels: what the labels mean. max_length: of prompt and response; None for any.
    first: the first response that could not be used, such as "a.jsonl: row 3, without a label"; "" so far.
    ends_written: responses that had the text of the end token.
    """

    def __init__(self, responses: ResponseEncoder, labels: _Labels, max_length: int | None) -> None:
        self.responses = responses
        self.labels = labels
        self.max_length = max_length
        self.first = ""
        self.ends_written = 0

    def table(self, groups: Sequence[tuple[int, Sequence[LabelledResponse]]]) -> tuple[pa.Table, dict[str, float]]:
        """The rows of some groups, each with its position, and their counts; only counts where none can be used."""
        import pyarrow as pa

        from primecli.generation.responses import STEP_JOINT
        from primecli.shards import schema

        texts = [
            self._without_end(one.text) if one.steps is None else STEP_JOINT.join(one.steps)
            for _, group in groups
            for one in group
        ]
        encoded = iter(zip(texts, self.responses.encode(texts), strict=True))
        counts = dict.fromkeys((*UNUSABLE, TOO_LONG, "rollouts", "tokens", "reward", "rewarded"), 0.0)
        rows: list[dict[str, Any]] = []
        for position, group in groups:
            prompt = group[0].prompt
            text, prompt_ids = self.responses.encoder.encode(prompt)
            made = []
            for one in group:
                row, problem = self._row(one, *next(encoded), room=self._room(prompt_ids))
                if problem:
                    counts[problem] += 1
                    if problem != TOO_LONG:
                        self.first = self.first or f"{one.prompt.where}, {UNUSABLE[problem]}"
                else:
                    made.append(row)
            shared = {
                schema.PROMPT_ID: prompt.prompt_id,
                schema.GROUP_ID: f"{prompt.prompt_id}@{position}",
                schema.GROUP_SIZE: len(made),
                schema.PROMPT: text,
                schema.PROMPT_IDS: prompt_ids,
            }
            rows += [{**shared, schema.SAMPLE_INDEX: index, **row} for index, row in enumerate(made)]
        rewards = [row[schema.OUTCOME_REWARD] for row in rows if schema.OUTCOME_REWARD in row]
        counts["rollouts"], counts["tokens"] = len(rows), sum(len(row[schema.RESPONSE_IDS]) for row in rows)
        counts["reward"], counts["rewarded"] = sum(rewards), len(rewards)
        return pa.Table.from_pylist(rows, schema=schema.arrow_schema(self._names())), counts

    def _names(self) -> list[str]:
        from primecli.shards import schema

        graded = (schema.OUTCOME_REWARD, schema.VERDICT)
        names = [name for name in schema.IMPORTED if not self.labels.unlabelled or name not in graded]
        return [*names, *(schema.made_by("import") if self.labels.has_steps else ())]

    def _without_end(self, text: str) -> str:
        without = self.responses.without_end(text)
        self.ends_written += without != text
        return without

    def _room(self, prompt_ids: Sequence[int]) -> float:
        return float("inf") if self.max_length is None else self.max_length - len(prompt_ids)

    def _row(
        self, one: LabelledResponse, text: str, ids: list[int] | None, *, room: float
    ) -> tuple[dict[str, Any], str]:
        """The columns of a response that its group does not share, and "" or why it cannot be used. room: tokens."""
        from primecli.shards import schema

        if not text.strip() or not all(one.steps or ("some",)):
            return {}, "empty"
        if ids is None:
            return {}, "inexact"
        if len(ids) > room:
            return {}, TOO_LONG
        row: dict[str, Any] = {
            schema.DATA_SOURCE: one.prompt.data_source,
            schema.ABILITY: one.prompt.ability,
            schema.GROUND_TRUTH: one.prompt.ground_truth,
            schema.RESPONSE: text,
            schema.RESPONSE_IDS: ids,
            schema.FINISH_REASON: "stop",
        }
        first_wrong: int | None = None
        if one.steps is not None:
            ends = self.responses.step_ends(ids, one.steps)
            if ends is None:
                return {}, "steps_unplaced"
            try:
                first_wrong = self.labels.first_wrong(one)
            except ValueError:
                return {}, "step_labels_unclear"
            row |= {schema.STEP_ENDS: ends, schema.FIRST_WRONG_STEP: first_wrong}
        if self.labels.unlabelled:
            return row, ""
        reward = _reward(one, first_wrong, self.labels.scale)
        if reward is None:
            return {}, "unlabelled" if one.outcome is None else "outside_scale"
        return {**row, schema.OUTCOME_REWARD: reward, schema.VERDICT: "correct" if reward >= 1 else "wrong"}, ""


def _reward(one: LabelledResponse, first_wrong: int | None, scale: Scale) -> float | None:
    """The outcome reward: by the label of the response, else right if no step is wrong; None without either."""
    if one.outcome is not None:
        return scale.reward(one.outcome)
    return None if first_wrong is None else float(first_wrong < 0)


def _write(
    run: StageRun,
    groups: Sequence[Sequence[LabelledResponse]],
    importer: _Importer,
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


def _report(run: StageRun, labels: _Labels, importer: _Importer, encoder: Encoder) -> None:
    """Says how labels and texts were read, as far as somebody might expect something else."""
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
    rollouts = counts.get("rollouts", 0)
    values = {name: counts.get(name, 0) for name in (*UNUSABLE, TOO_LONG) if counts.get(name)}
    if rollouts:
        values["response_tokens"] = counts["tokens"] / rollouts
    if counts.get("rewarded"):
        values["accuracy"] = counts["reward"] / counts["rewarded"]
    return values
