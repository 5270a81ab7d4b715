"""Files of labelled responses, in the layouts that people have: which column holds what, and responses out of rows.

- `conversation` or `messages`, which end with the answer, and a `label`;
- `prompt`, `response` and `score`, under these names or others; a list of responses with a list of scores;
- `chosen` and `rejected`, with a `prompt` or with the whole conversation in each;
- `problem`, `steps` and `label`, the first wrong step or -1, as in ProcessBench; a list of labels, one a step, as in
  TRL's files for stepwise supervision; and PRM800K's own files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from primecli.errors import InputError
from primecli.generation.label_values import as_score
from primecli.generation.prompt_files import Row, read_rows
from primecli.generation.prompts import BESIDE_PROMPT, Prompt, PromptColumns, check_unicode, parts_of, prompt_of
from primecli.generation.values import Missing, find, from_json, is_null
from primecli.shards import schema

CONVERSATIONS = ("conversation", "conversations", "messages")
PROMPTS = (schema.PROMPT, "question", "problem", "instruction", "query", "input")
RESPONSES = (schema.RESPONSE, "completion", "output", "generation", "responses", "completions", "outputs")
STEPS = ("steps", "completions")  # the second is TRL's, beside `labels`
CHOSEN, REJECTED = "chosen", "rejected"
OUTCOMES = (schema.OUTCOME_REWARD, "score", "reward", "correct", "is_correct", "correctness", "scores", "rewards")
OUTCOMES_OF_STEPS = ("final_answer_correct", *OUTCOMES)
LABELS = ("label", "labels")  # of a response; where there are steps, of these
STEP_LABELS = ("step_labels", *LABELS, "ratings")
STEP_TEXTS = ("text", "content", "step", "value")  # of a step that is an object
LABELS_OF_STEP = ("label", "rating", "correct", "is_correct", "score")
LAYOUTS = (
    "it takes messages and a label; a prompt, a response and a score; chosen and rejected; or a problem, steps and "
    "their labels: see docs/offline.md, or name the columns with --prompt-column, --response-column and --label-column"
)
ROLES = {"human": "user", "gpt": "assistant"}  # of {"from": …, "value": …}, as ShareGPT has messages
ANSWERING = ("assistant", "model")


@dataclass(frozen=True, slots=True)
class ResponseColumns:
    """Which columns hold what, where the names that people use do not say it.

    prompt, response, label: names of columns; a.b is the field b inside the column a. None for the known names. For
        steps, `response` names the list of steps and `label` their labels.
    answer, answer_regex, suffix: as in `PromptColumns`.
    data_source: the data source of every row; None for the column of that name, else for the name of the file.
    """

    prompt: str | None = None
    response: str | None = None
    label: str | None = None
    answer: str | None = None
    answer_regex: str | None = None
    suffix: str = ""
    data_source: str | None = None

    def needed(self) -> list[str]:
        """The columns that are read from a Parquet file."""
        known = (*CONVERSATIONS, *PROMPTS, *RESPONSES, *STEPS, CHOSEN, REJECTED)
        labels = (*OUTCOMES_OF_STEPS, *LABELS, *STEP_LABELS)
        named = (
            part for name in (self.prompt, self.response, self.label, self.answer) for part in parts_of(name or "")
        )
        return [*BESIDE_PROMPT, *known, *labels, *named]


@dataclass(frozen=True, slots=True)
class LabelledResponse:
    """A response as the file has it.

    prompt: what it answers.
    text: the response; empty where it has steps.
    outcome: the label of the whole response, on the scale of the file; None where there is none.
    steps: its steps; None where none are given.
    step_labels: a label for each step, on the scale of the file; fewer where the rest have none. None where the file
        gives the first wrong step instead, or says nothing.
    first_wrong: the index of the first wrong step, or -1; None where the file does not give it so.
    """

    prompt: Prompt
    text: str
    outcome: float | None
    steps: tuple[str, ...] | None = None
    step_labels: tuple[float | None, ...] | None = None
    first_wrong: int | None = None


def read_labelled(files: Sequence[Path], columns: ResponseColumns) -> list[LabelledResponse]:
    """All responses of the files, in order. Raises InputError, naming file and row, where one cannot be read."""
    prompt_columns = PromptColumns(schema.PROMPT, columns.answer, columns.answer_regex, columns.suffix)
    pattern = prompt_columns.pattern()
    found: list[LabelledResponse] = []
    for file in files:
        source = columns.data_source or file.name.partition(".")[0]
        for row in map(_without_prm800k, read_rows(file, columns.needed())):
            for asked, fields in _responses(row, columns):
                values = {**row.values, schema.PROMPT: asked}
                if columns.response is not None:
                    values.pop(columns.response, None)  # it may be called `answer`
                prompt = prompt_of(replace(row, values=values), prompt_columns, pattern)
                prompt = replace(prompt, data_source=columns.data_source or prompt.data_source or source)
                check_unicode(row.where, "the response", [fields["text"], *(fields.get("steps") or ())])
                found.append(LabelledResponse(prompt, **fields))
    if not found:
        raise InputError(f"{', '.join(map(str, files))}: no responses found")
    return found


Fields = dict[str, Any]
"""What a `LabelledResponse` has besides its prompt."""


def _responses(row: Row, columns: ResponseColumns) -> Iterator[tuple[Any, Fields]]:
    """The responses in a row, each with its prompt as the file has it: a text or messages."""
    has = {name for name, value in row.values.items() if not is_null(value)}
    if columns.response is None and {CHOSEN, REJECTED} <= has:
        for name, outcome in ((CHOSEN, 1.0), (REJECTED, 0.0)):
            prompt, text = _conversation(row, name, _prompt(row, columns, required=False))
            yield prompt, {"text": text, "outcome": outcome}
        return
    steps = _steps(row, columns, has)
    if steps is not None:
        yield _prompt(row, columns), {"text": "", **_step_fields(row, columns, steps)}
        return
    response = columns.response or _first(RESPONSES, has)
    conversation = _first(CONVERSATIONS, has)
    value = None if response is None else _value(row, response, "--response-column")
    if response is not None and isinstance(value, list) and all(isinstance(text, str) for text in value):
        yield from _several(row, columns, response, value)
        return
    if response is not None:
        prompt, text = _conversation(row, response, _prompt(row, columns))
    elif conversation is not None:
        prompt, text = _conversation(row, conversation, None)
    elif set(RESPONSES) & set(row.values):  # it is null in this row
        prompt, text = _prompt(row, columns), ""
    else:
        raise InputError(f"{row.where}: no response in its columns {', '.join(sorted(row.values))}", LAYOUTS)
    yield prompt, {"text": text, "outcome": _outcome(row, columns, (*LABELS, *OUTCOMES_OF_STEPS))}


def _first(names: Sequence[str], has: set[str]) -> str | None:
    return next((name for name in names if name in has), None)


def _value(row: Row, name: str, option: str) -> Any:
    try:
        value = find(row.values, name)
    except Missing:
        raise InputError(
            f"{row.where}: no column {name!r}; its columns are {', '.join(sorted(row.values))}",
            f"name it with {option}",
        ) from None
    return None if is_null(value) else value


def _prompt(row: Row, columns: ResponseColumns, *, required: bool = True) -> Any:
    """The prompt, a text or messages; None where the row has none and it is not required."""
    name = columns.prompt or _first((*PROMPTS, *CONVERSATIONS), {n for n, v in row.values.items() if not is_null(v)})
    if name is None:
        if required:
            raise InputError(f"{row.where}: no prompt in its columns {', '.join(sorted(row.values))}", LAYOUTS)
        return None
    return _as_messages(_value(row, name, "--prompt-column"))


def _conversation(row: Row, name: str, prompt: Any) -> tuple[Any, str]:
    """The prompt and the response that a column holds: a text, the answer's message, or a whole conversation.

    prompt: the prompt where another column has it; None where this one must.
    """
    value = _as_messages(_value(row, name, "--response-column"))
    if value is None:
        return prompt, ""
    if isinstance(value, str):
        if prompt is None:
            raise InputError(f"{row.where}: {name} is a text, and there is no prompt beside it", LAYOUTS)
        return prompt, value
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise InputError(f"{row.where}: {name} is neither a text nor a list of messages", LAYOUTS)
    *before, last = value
    if last.get("role") not in ANSWERING:
        raise InputError(
            f"{row.where}: {name} ends with a message of the role {last.get('role')}", "it must end with the answer"
        )
    if before:  # a whole conversation, which begins with the prompt
        prompt = before
    if prompt is None:
        raise InputError(f"{row.where}: {name} has the answer alone, and there is no prompt beside it", LAYOUTS)
    return prompt, _text(row, name, last.get("content"))


def _text(row: Row, name: str, content: Any) -> str:
    """The content of the answer's message, whose parts are put together."""
    if isinstance(content, list):
        content = "".join(_text(row, name, part.get("text") if isinstance(part, dict) else part) for part in content)
    if content is None or isinstance(content, str):
        return content or ""
    raise InputError(f"{row.where}: {name} has an answer that is {type(content).__name__}", "only text is used")


def _as_messages(value: Any) -> Any:
    """A value of messages with `role` and `content`, from JSON text or from ShareGPT's `from` and `value`, too."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        decoded = from_json(value)
        value = decoded if isinstance(decoded, list) and decoded and isinstance(decoded[0], dict) else value
    if not isinstance(value, list):
        return value
    return [
        {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
        if isinstance(message, dict) and {"from", "value"} <= set(message) and isinstance(message["from"], str)
        else message
        for message in value
    ]


def _several(row: Row, columns: ResponseColumns, name: str, texts: Sequence[str]) -> Iterator[tuple[Any, Fields]]:
    """Several responses to one prompt, with a list of as many labels."""
    has = {name for name, value in row.values.items() if not is_null(value)}
    label = columns.label or _first((*LABELS, *OUTCOMES_OF_STEPS), has)
    labels = [None] * len(texts) if label is None else _value(row, label, "--label-column")
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise InputError(
            f"{row.where}: {name} is a list of {len(texts)} responses, and {label} is no list of as many labels",
            LAYOUTS,
        )
    prompt = _prompt(row, columns)
    for text, value in zip(texts, labels, strict=True):
        yield prompt, {"text": text, "outcome": _score(row, label or "", value)}


def _score(row: Row, name: str, value: Any) -> float | None:
    try:
        return as_score(value)
    except ValueError as error:
        raise InputError(
            f"{row.where}: {name} is {error}", "a label is a number, a truth value or a word for one"
        ) from None


def _outcome(row: Row, columns: ResponseColumns, names: Sequence[str]) -> float | None:
    """The label of the response, on the file's scale; None where there is none."""
    has = {name for name, value in row.values.items() if not is_null(value)}
    name = columns.label or _first(names, has)
    return None if name is None else _score(row, name, _value(row, name, "--label-column"))


def _steps(row: Row, columns: ResponseColumns, has: set[str]) -> list[Any] | None:
    """The steps of the row, as they stand in the file; None where it is of another layout."""
    if columns.response is not None:
        value = _value(row, columns.response, "--response-column")
        labelled = isinstance(value, list) and bool({"steps", *STEP_LABELS} & has)
        return value if labelled and not has & set(OUTCOMES) else None
    name = _first(STEPS, has)
    value = None if name is None else row.values[name]
    if isinstance(value, str):
        value = from_json(value)
    if not isinstance(value, list) or (name == "completions" and not set(STEP_LABELS) & has):
        return None
    return None if name == "completions" and any(not isinstance(item, str) for item in value) else value


def _step_fields(row: Row, columns: ResponseColumns, steps: Sequence[Any]) -> Fields:
    """The fields of a response that is given in steps."""
    has = {name for name, value in row.values.items() if not is_null(value)}
    texts, inner = [], []
    for number, step in enumerate(steps):
        text, label = step, None
        if isinstance(step, dict):
            named = {key for key, value in step.items() if not is_null(value)}
            text = step.get(_first(STEP_TEXTS, named) or "")
            key = _first(LABELS_OF_STEP, named)
            label = None if key is None else _score(row, f"steps[{number}].{key}", step[key])
        if not isinstance(text, str):
            raise InputError(f"{row.where}: steps[{number}] has no text", LAYOUTS)
        texts.append(text)
        inner.append(label)
    outcome_name = _first(OUTCOMES_OF_STEPS, has)
    outcome = None if outcome_name is None else _score(row, outcome_name, row.values[outcome_name])
    fields: Fields = {"steps": tuple(texts), "outcome": outcome}
    name = columns.label or _first(STEP_LABELS, has)
    value = None if name is None else _value(row, name, "--label-column")
    if isinstance(value, list):
        return {**fields, "step_labels": tuple(_score(row, f"{name}[{i}]", item) for i, item in enumerate(value))}
    if value is not None:
        return {**fields, "first_wrong": _index(row, str(name), value)}
    return fields if all(label is None for label in inner) else {**fields, "step_labels": tuple(inner)}


def _index(row: Row, name: str, value: Any) -> int:
    """The index of the first wrong step, or -1."""
    score = None if isinstance(value, bool) else _score(row, name, value)
    if score is None or not score.is_integer() or score < -1:
        raise InputError(
            f"{row.where}: {name} is {value!r}, and with steps it is the index of the first wrong one, from 0, or -1",
            "give a list for a label of each step, or name another column with --label-column",
        )
    return int(score)


def _without_prm800k(row: Row) -> Row:
    """A row of PRM800K's own files as a problem, steps with their ratings, and an answer; any other row as it is.

    Of a step's completions, the one that was chosen counts, else the one that a person wrote, else the first.
    """
    label, question = row.values.get("label"), row.values.get("question")
    if not (isinstance(label, Mapping) and isinstance(question, Mapping) and isinstance(label.get("steps"), list)):
        return row
    steps = []
    for step in label["steps"]:
        completions, chosen = step.get("completions") or [], step.get("chosen_completion")
        if chosen is None and step.get("human_completion") is not None:
            steps.append(step["human_completion"])
        elif completions:
            steps.append(completions[chosen or 0])
    others = {name: value for name, value in row.values.items() if name not in ("label", "question")}
    return replace(
        row,
        values={
            **others,
            "problem": question.get("problem"),
            "answer": question.get("ground_truth_answer"),
            "steps": [{"text": step.get("text"), "rating": step.get("rating")} for step in steps],
        },
    )
