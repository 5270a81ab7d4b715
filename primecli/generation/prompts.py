"""Prompt files: in the layout of verl, TRL and Eurus-2-RL-Data, or as plain questions and answers.

The layout has the columns `prompt` (a list of {role, content}), `reward_model.ground_truth`, `data_source`, `ability`
and `extra_info`; plain files have a text column and an answer column of any name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primecli.errors import InputError, UsageError
from primecli.generation import programs
from primecli.generation.messages import Message, UnusableError, read_content, read_tools, with_suffix
from primecli.generation.prompt_files import Row, read_rows
from primecli.generation.values import Missing, as_object, as_text, find, from_json, stands_as, unwrapped
from primecli.shards import schema
from primecli.verifiers import DEFAULT_VERIFIER, choose_verifier

REWARD_MODEL = "reward_model"
TOOLS = "tools"
IDS = (schema.PROMPT_ID, "unique_id", "task_id")
ANSWERS = (schema.GROUND_TRUTH, "answer")
BESIDE_PROMPT = (REWARD_MODEL, TOOLS, schema.DATA_SOURCE, schema.ABILITY, *IDS, *ANSWERS, *programs.COLUMNS)
"""Columns that are read besides the prompt, where a file has them."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem.

    prompt_id: its id in the prompt file, or a hash of the prompt and its answer.
    content: text, or messages for the chat template. The content of a message is a text, or several texts where the
        file has it in parts; its other fields, such as tool_calls, are as in the file.
    ground_truth: what `verify` compares with, as text; None where the file has none.
    data_source: the data set that it comes from, as in the prompt file.
    ability: such as math or code, as in the prompt file.
    tools: JSON descriptions of tools for the chat template; None where the file has none.
    where: the file and the row that it comes from, for messages, such as "train.parquet: row 3".
    decoded: whether reading it took more than to take the values as they stand: a list was unwrapped, JSON text
        decoded, a number shortened, or a message has fields besides its role and its content.
    """

    prompt_id: str
    content: str | list[Message]
    ground_truth: str | None
    data_source: str | None
    ability: str | None
    tools: list[dict[str, Any]] | None = None
    where: str = ""
    decoded: bool = False

    @property
    def name(self) -> str:
        """What messages call it: where it stands, else its id."""
        return self.where or f"prompt {self.prompt_id}"


@dataclass(frozen=True, slots=True)
class PromptColumns:
    """Which columns of a file hold the prompt and its answer, and what is done to them.

    prompt: name of the prompt's column; a.b is the field b inside the column a.
    answer: name of the answer's column, likewise; None for those that the known layouts have.
    answer_regex: what to take out of the answer: its first group, else the whole match; None for all of it.
    suffix: text that is added to every prompt, such as an instruction on how to write the answer.
    """

    prompt: str = "prompt"
    answer: str | None = None
    answer_regex: str | None = None
    suffix: str = ""

    def pattern(self) -> re.Pattern[str] | None:
        """The compiled `answer_regex`. Raises UsageError where it is not a regular expression."""
        if self.answer_regex is None:
            return None
        try:
            return re.compile(self.answer_regex)
        except re.error as error:
            raise UsageError(f"--answer-regex {self.answer_regex!r}: {error}") from error

    def needed(self) -> list[str]:
        """The columns of a file that may have to be read."""
        return [*BESIDE_PROMPT, *parts_of(self.prompt), *parts_of(self.answer or "")]


class AnswerError(InputError):
    """A row whose answer is not one that can be compared with. text: the answer as it stands in the file."""

    def __init__(self, message: str, hint: str | None = None, *, text: str | None = None) -> None:
        super().__init__(message, hint)
        self.text = text


def read_prompts(files: Sequence[Path], columns: PromptColumns) -> list[Prompt]:
    """All prompts of the files, in order. Raises InputError, naming the file and the row, where one cannot be read."""
    pattern, needed = columns.pattern(), columns.needed()
    prompts = [prompt_of(row, columns, pattern) for file in files for row in read_rows(file, needed)]
    if not prompts:
        raise InputError(f"{', '.join(map(str, files))}: no prompts found")
    return prompts


def parts_of(name: str) -> list[str]:
    """The columns that a name may refer to, as `values.find` looks for it.

    >>> parts_of("extra.answers.short")
    ['extra', 'extra.answers', 'extra.answers.short']
    """
    parts = name.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts) + 1)]


def prompt_of(
    row: Row,
    columns: PromptColumns,
    pattern: re.Pattern[str] | None,
    excuse: Callable[[AnswerError], None] | None = None,
) -> Prompt:
    """The prompt of a row.

    pattern: `columns.pattern()`. excuse: called where the answer is none to compare with; the prompt then has the
    answer as it stands in the file.

    Raises InputError, naming the file and the row, where it cannot be read; AnswerError without `excuse`.
    """
    value = _column(row, columns.prompt, "--prompt-column")
    try:
        content = read_content(value, padded=row.padded)
        if isinstance(content, str):
            content = programs.with_starter(row.values, content)
        content = with_suffix(content, columns.suffix)
        tools = read_tools(row.values.get(TOOLS), padded=row.padded)
    except UnusableError as error:
        raise InputError(f"{row.where}: {error.args[0]}", error.args[1]) from error
    texts = _Texts(row, decoded=row.decoded or tools is not None or _is_decoded(value, content))
    data_source, ability = texts.read(schema.DATA_SOURCE), texts.read(schema.ABILITY)
    try:
        truth = _tests(row, columns.answer)
        if truth is not None:
            ability, texts.decoded = ability or programs.ABILITY, True
        else:
            is_maths = choose_verifier(ability, data_source, {}) == DEFAULT_VERIFIER
            truth = _matched(row, pattern, _ground_truth(row, columns.answer, texts, is_maths))
    except AnswerError as error:
        if excuse is None:
            raise
        excuse(error)
        truth = error.text
    identity = next((text for name in IDS if (text := texts.read(name))), None)
    for name, read in {"the prompt": [content, tools], "the answer": truth, **texts.seen}.items():
        check_unicode(row.where, name, read)
    return Prompt(
        prompt_id=identity or _hash(content, tools, truth),
        content=content,
        ground_truth=truth,
        data_source=data_source,
        ability=ability,
        tools=tools,
        where=row.where,
        decoded=texts.decoded,
    )


class _Texts:
    """Reads values of a row as text. decoded: whether any was not taken as it stands. seen: the texts by column."""

    def __init__(self, row: Row, *, decoded: bool) -> None:
        self._row = row
        self.decoded = decoded
        self.seen: dict[str, str | None] = {}

    def read(self, column: str) -> str | None:
        self.seen[column] = text = self.text(column, self._row.values.get(column))
        return text

    def text(self, column: str, value: Any) -> str | None:
        try:
            text = as_text(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._row.where}: {column} cannot be read: {error}") from error
        self.decoded |= not stands_as(value, text)
        return text


def _column(row: Row, name: str, option: str) -> Any:
    try:
        return find(row.values, name)
    except Missing:
        raise InputError(
            f"{row.where}: no column {name!r}; its columns are {', '.join(sorted(row.values))}",
            f"name it with {option}",
        ) from None


def _is_decoded(value: Any, content: str | list[Message]) -> bool:
    """Whether a prompt is not what stands in the file: decoded, or messages with more than a role and a text."""
    if isinstance(content, str):
        return not isinstance(value, str)
    return isinstance(value, str) or any(
        set(message) != {"role", "content"} or not isinstance(message["content"], str) for message in content
    )


def _tests(row: Row, column: str | None) -> str | None:
    """The tests of a program in the layout of a public set; None for other rows, and where the answer is elsewhere."""
    if column is not None or any(name in row.values for name in (REWARD_MODEL, *ANSWERS)):
        return None
    try:
        return programs.tests_of(row.values)
    except programs.UnreadableTestsError as error:
        raise AnswerError(f"{row.where}: {error}") from error


def _matched(row: Row, pattern: re.Pattern[str] | None, truth: str | None) -> str | None:
    if pattern is None or truth is None:
        return truth
    match = pattern.search(truth)
    if match is None:
        raise AnswerError(f"{row.where}: --answer-regex {pattern.pattern!r} does not match the answer", text=truth)
    return ((match[1] if pattern.groups else match[0]) or "").strip()


def _ground_truth(row: Row, column: str | None, texts: _Texts, is_maths: bool) -> str | None:
    if column is not None:
        name, value = column, _column(row, column, "--answer-column")
    else:
        reward_model = as_object(unwrapped(row.values.get(REWARD_MODEL)))
        if reward_model is not None and schema.GROUND_TRUTH in reward_model:
            name, value = f"{REWARD_MODEL}.{schema.GROUND_TRUTH}", reward_model[schema.GROUND_TRUTH]
            texts.decoded |= reward_model is not row.values[REWARD_MODEL]
        else:
            name = next((name for name in ANSWERS if name in row.values), ANSWERS[0])
            value = row.values.get(name)
    several = unwrapped(value)
    if is_maths and isinstance(several, list):
        raise AnswerError(
            f"{row.where}: {name} is a list of {len(several)} answers, and an answer is compared with one",
            "keep one of them; for a verifier of your own, store the list as JSON text",
            text=texts.text(name, value),
        )
    text = texts.text(name, value)
    if is_maths and text is not None and text.lstrip().startswith('["'):  # no answer in maths begins so
        items = from_json(text)
        if isinstance(items, list) and isinstance(only := unwrapped(items), str):
            texts.decoded = True
            return only
    return text


def check_unicode(where: str, name: str, value: Any) -> None:
    """Raises InputError for a value that holds half of a character. where, name: the row and the column, to name."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(
            f"{where}: {name} holds U+{ord(half):04X}, half of a character, which is not valid Unicode text",
            "remove it, or write the whole character",
        ) from error


def _hash(content: str | list[Message], tools: list[dict[str, Any]] | None, truth: str | None) -> str:
    identity = [content, truth] if tools is None else [content, truth, tools]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:16]


def stream_positions(total: int, *, step: int, batch: int, seed: int) -> list[tuple[int, int]]:
    """The prompts of iteration `step` (from 1): the step-th slice of an endless shuffled stream.

    The stream consists of passes over all `total` prompts, each shuffled by (seed, number of the pass). It depends on
    nothing else, so any iteration can be generated alone. Returns `batch` pairs (position in the stream, index of the
    prompt).

    >>> positions = [stream_positions(5, step=step, batch=2, seed=0) for step in (1, 2, 3)]
    >>> sorted(index for slice_ in positions for _, index in slice_)[:5] == [0, 1, 2, 3, 4]
    False
    >>> sorted(index for slice_ in positions for _, index in slice_ if _ < 5)
    [0, 1, 2, 3, 4]
    """
    import numpy as np

    orders: dict[int, Any] = {}
    taken = []
    for position in range((step - 1) * batch, step * batch):
        epoch, index = divmod(position, total)
        if epoch not in orders:
            orders[epoch] = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(total)
        taken.append((position, int(orders[epoch][index])))
    return taken
