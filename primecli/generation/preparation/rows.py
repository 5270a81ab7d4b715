"""The prompts of several files as Arrow columns, which take a fraction of the memory that objects would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.generation.messages import Message
from primecli.generation.prompt_files import Row, read_rows
from primecli.generation.prompts import REWARD_MODEL, Prompt, PromptColumns, prompt_of
from primecli.generation.values import as_object, is_null, unwrapped
from primecli.verifiers import choose_verifier

if TYPE_CHECKING:
    import pyarrow as pa

PROMPT_COLUMNS = ("prompt", "problem", "question", "question_content", "query", "Problem", "Question", "text")
"""Where the prompt is looked for if no column is named, in this order."""

EXTRA_INFO = "extra_info"
DUPLICATE_OF, CONTAMINATED_BY, PASS_RATE, REASON = "duplicate_of", "contaminated_by", "pass_rate", "reason"
CONTAMINATION_SHARE, CONTAMINATION_WORDS = "contamination_share", "contamination_words"
MARKS = (DUPLICATE_OF, CONTAMINATED_BY, CONTAMINATION_SHARE, CONTAMINATION_WORDS, PASS_RATE, REASON)
SOURCES = ("source_file", "source_row")
KEPT = (CONTAMINATED_BY, CONTAMINATION_SHARE, CONTAMINATION_WORDS, PASS_RATE)
"""The marks of an earlier run that stay, unless this run finds them anew."""

BATCH = 8192  # rows that are Python objects at the same time
SHOWN = 20  # rows that are named one by one


@dataclass(slots=True)
class FileRead:
    """What came of one file. column: where its prompts were. rows: how many it has. unreadable: of them, those that
    `generate` could not read, which are left out."""

    file: Path
    column: str = ""
    rows: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class Prompts:
    """The prompts of all files.

    table: one row for each; see `_schema`.
    files: what came of each file.
    unreadable: why rows were left out, the first few.
    left_out: columns of the files that the result does not have.
    renamed: how many rows got another id, since another prompt had theirs.
    """

    table: pa.Table
    files: list[FileRead]
    unreadable: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    renamed: int = 0

    def text(self, number: int) -> str:
        """The text of a prompt, as it is compared."""
        return str(self.table["text"][number].as_py())

    def where(self, number: int) -> str:
        """Where a prompt stands, such as "train.jsonl: row 3"."""
        file, row = (self.table[name][number].as_py() for name in ("file", "row"))
        return f"{self.files[file].file.name}: row {row}"


def _schema() -> pa.Schema:
    """The columns of `Prompts.table`.

    messages: the prompt where each message is a role and a text; json: any other prompt, as JSON. text: what the user,
    the assistant and tools say. ability: as in the file, or the verifier's name. answer_problem: why the answer is none
    to compare with. file, row: where it stands, row from 1. The rest is as in the file.
    """
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("prompt_id", pa.string()),
            ("data_source", pa.string()),
            ("ability", pa.string()),
            ("messages", pa.list_(message)),
            ("json", pa.string()),
            ("text", pa.string()),
            ("ground_truth", pa.string()),
            ("style", pa.string()),
            ("answer_problem", pa.string()),
            ("extra", pa.string()),
            ("tools", pa.string()),
            ("file", pa.int32()),
            ("row", pa.int64()),
            (CONTAMINATED_BY, pa.string()),
            (CONTAMINATION_SHARE, pa.float64()),
            (CONTAMINATION_WORDS, pa.int32()),
            (PASS_RATE, pa.float64()),
        ]
    )


def read(files: Sequence[Path], columns: PromptColumns, prompt_column: str | None) -> Prompts:
    """Reads the prompts of all files. A row that `generate` could not read is left out and counted.

    prompt_column: where the prompts are; None to look for them in each file.

    Raises InputError for a file that cannot be read, or of which no row can.
    """
    import pyarrow as pa

    schema = _schema()
    prompts = Prompts(schema.empty_table(), [])
    ids: dict[str, bytes] = {}
    batches: list[pa.RecordBatch] = []
    pending: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        prompts.files.append(FileRead(file))
        for values in _rows(prompts, columns, prompt_column, number):
            _keep_id_unique(prompts, ids, values)
            pending.append(values)
            if len(pending) == BATCH:
                batches.append(pa.RecordBatch.from_pylist(pending, schema=schema))
                pending.clear()
    batches.append(pa.RecordBatch.from_pylist(pending, schema=schema))
    prompts.table = pa.Table.from_batches(batches, schema=schema)
    if not prompts.table.num_rows:
        raise InputError(f"{', '.join(map(str, files))}: no prompts found")
    return prompts


def _rows(prompts: Prompts, columns: PromptColumns, prompt_column: str | None, number: int) -> Iterator[dict[str, Any]]:
    """The rows of a file. number: of the file, the last of `prompts.files`."""
    found = prompts.files[number]
    pattern = columns.pattern()
    names = PROMPT_COLUMNS if prompt_column is None else (prompt_column,)
    needed = {name for column in names for name in replace(columns, prompt=column).needed()}
    first: InputError | None = None
    for row in read_rows(found.file, [*needed, EXTRA_INFO, *KEPT]):
        found.rows += 1
        if not found.column:
            found.column = next((name for name in names if name in row.values), names[0])
            columns = replace(columns, prompt=found.column)
        if not prompts.left_out.issuperset(row.values):
            prompts.left_out.update(row.values)
        problems: list[InputError] = []
        try:
            prompt = prompt_of(row, columns, pattern, problems.append)
        except InputError as error:
            first = first or error
            found.unreadable += 1
            if len(prompts.unreadable) < SHOWN:
                prompts.unreadable.append(error.message)
            continue
        yield _values(prompt, row, number, found, problems)
    if first is not None and found.unreadable == found.rows:
        raise first
    prompts.left_out -= {*columns.needed(), EXTRA_INFO, *MARKS, *SOURCES}


def _values(prompt: Prompt, row: Row, number: int, found: FileRead, problems: Sequence[InputError]) -> dict[str, Any]:
    content = prompt.content
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    is_plain = all(set(message) == {"role", "content"} and isinstance(message["content"], str) for message in messages)
    source = prompt.data_source or found.file.name.partition(".")[0]
    extra = row.values.get(EXTRA_INFO)
    reward_model = as_object(unwrapped(row.values.get(REWARD_MODEL))) or {}
    style = reward_model.get("style")
    carried = {name: row.values.get(name) for name in KEPT}
    return {
        "prompt_id": prompt.prompt_id,
        "data_source": source,
        "ability": prompt.ability or choose_verifier(prompt.ability, source, {}),
        "messages": messages if is_plain else None,
        "json": None if is_plain else json.dumps(messages, ensure_ascii=False, default=str),
        "text": _text(messages),
        "ground_truth": prompt.ground_truth,
        "style": style if isinstance(style, str) else "rule",
        "answer_problem": problems[0].message.removeprefix(f"{row.where}: ") if problems else None,
        "extra": None if is_null(extra) else json.dumps(extra, default=str),
        "tools": None if prompt.tools is None else json.dumps(prompt.tools),
        "file": number,
        "row": found.rows,
        **{name: value if _fits(name, value) else None for name, value in carried.items()},
    }


def _fits(name: str, value: Any) -> bool:
    """Whether a mark of an earlier run is of its type."""
    return isinstance(value, str) if name == CONTAMINATED_BY else isinstance(value, int | float) and not is_null(value)


def _text(messages: Sequence[Message]) -> str:
    """What is said in the messages, without the system's."""
    contents = [message.get("content") for message in messages if message.get("role") != "system"]
    return "\n".join("\n".join(content) if isinstance(content, list) else content or "" for content in contents)


def _keep_id_unique(prompts: Prompts, ids: dict[str, bytes], values: dict[str, Any]) -> None:
    """Gives a row another id if a different problem has it, as the numbers of two files may coincide."""
    identity = json.dumps([values["json"] or values["messages"], values["ground_truth"], values["tools"]])
    digest = hashlib.blake2b(identity.encode(), digest_size=16).digest()
    if ids.setdefault(values["prompt_id"], digest) != digest:
        values["prompt_id"] = f"{values['prompt_id']}-{digest.hex()[:8]}"
        prompts.renamed += 1
        ids.setdefault(values["prompt_id"], digest)


def extras(table: pa.Table) -> tuple[pa.Array | pa.ChunkedArray, bool]:
    """The column extra_info as Arrow has it, and whether that is JSON text, since no one type fits all rows."""
    import pyarrow as pa

    texts = table["extra"]
    values: list[Mapping[str, Any] | None] = [None if text is None else json.loads(text) for text in texts.to_pylist()]
    try:
        return pa.array(values), False
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return texts, True
