"""Prompt files: in the layout of verl, TRL and Eurus-2-RL-Data, or as plain questions and answers.

The layout has the columns `prompt` (a list of {role, content}), `reward_model.ground_truth`, `data_source`, `ability`
and `extra_info`; plain files have a text column and an answer column of any name. Files are Parquet,
JSON lines, or gzipped JSON lines.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primecli.errors import InputError, UsageError
from primecli.shards import schema

PROMPT_FORMS = "a prompt is a text or a list of {role, content}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem.

    prompt_id: its id in the prompt file, or a hash of the prompt and its answer.
    content: text, or messages for the chat template.
    ground_truth: what `verify` compares with, as text; None where the file has none.
    data_source: the data set that it comes from, as in the prompt file.
    ability: such as math or code, as in the prompt file.
    """

    prompt_id: str
    content: str | list[dict[str, str]]
    ground_truth: str | None
    data_source: str | None
    ability: str | None


@dataclass(frozen=True, slots=True)
class PromptColumns:
    """Which columns of a file hold the prompt and its answer, and what is done to them.

    prompt: name of the prompt's column.
    answer: name of the answer's column; None for those that the known layouts have.
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


def read_prompts(files: Sequence[Path], columns: PromptColumns) -> list[Prompt]:
    """All prompts of the files, in order. Raises InputError, naming the file and the row, where one cannot be read."""
    pattern = columns.pattern()
    prompts = [
        _prompt(row, columns, pattern, f"{file}: row {number}")
        for file in files
        for number, row in enumerate(_rows(file), start=1)
    ]
    if not prompts:
        raise InputError(f"{', '.join(map(str, files))}: no prompts found")
    return prompts


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    if not file.is_file():
        raise InputError(f"{file}: is not a regular file" if file.exists() else f"{file}: no such file")
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise InputError(f"{file}: line {number} is not a JSON object")
                    yield row
        except json.JSONDecodeError as error:
            raise InputError(
                f"{file}: line {number} is not JSON: {error.msg}",
                "prompt files are Parquet, or have one JSON object per line",
            ) from error
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(f"{file}: cannot be read as text: {error}") from error


def _parquet_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file}: not a readable Parquet file") from error


def _prompt(row: Mapping[str, Any], columns: PromptColumns, pattern: re.Pattern[str] | None, where: str) -> Prompt:
    content = _with_suffix(_content(row, columns.prompt, where), columns.suffix)
    truth = _ground_truth(row, columns.answer, where)
    if pattern is not None and truth is not None:
        match = pattern.search(truth)
        if match is None:
            raise InputError(f"{where}: --answer-regex {pattern.pattern!r} does not match the answer")
        truth = (match[1] if pattern.groups else match[0]).strip()
    identity = row.get(schema.PROMPT_ID) or row.get("unique_id") or row.get("task_id") or _hash(content, truth)
    return Prompt(str(identity), content, truth, _text(row, schema.DATA_SOURCE), _text(row, schema.ABILITY))


def _content(row: Mapping[str, Any], column: str, where: str) -> str | list[dict[str, str]]:
    if column not in row:
        raise InputError(
            f"{where}: no column {column!r}; its columns are {', '.join(sorted(row))}", "name it with --prompt-column"
        )
    value = row[column]
    if value is None:
        raise InputError(f"{where}: the prompt is null", "drop the row or fill it in")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_message(message) for message in value):
        return [{"role": message["role"], "content": message["content"]} for message in value]
    raise InputError(f"{where}: the prompt is {type(value).__name__}", PROMPT_FORMS)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _with_suffix(content: str | list[dict[str, str]], suffix: str) -> str | list[dict[str, str]]:
    if not suffix:
        return content
    if isinstance(content, str):
        return content + suffix
    return [*content[:-1], {**content[-1], "content": content[-1]["content"] + suffix}]


def _ground_truth(row: Mapping[str, Any], column: str | None, where: str) -> str | None:
    if column is not None:
        if column not in row:
            raise InputError(
                f"{where}: no column {column!r}; its columns are {', '.join(sorted(row))}",
                "name it with --answer-column",
            )
        return _as_text(row[column])
    reward_model = row.get("reward_model")
    if isinstance(reward_model, dict) and "ground_truth" in reward_model:
        return _as_text(reward_model["ground_truth"])
    for name in (schema.GROUND_TRUTH, "answer"):
        if name in row:
            return _as_text(row[name])
    return None


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(row: Mapping[str, Any], column: str) -> str | None:
    return _as_text(row.get(column))


def _hash(content: str | list[dict[str, str]], truth: str | None) -> str:
    return hashlib.sha256(json.dumps([content, truth], ensure_ascii=False).encode()).hexdigest()[:16]


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
