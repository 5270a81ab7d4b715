"""The file that `prepare` writes: verl's layout, with a column for each kind of mark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from primecli.errors import UsageError
from primecli.generation.preparation import rows

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.generation.preparation.marking import Marks


def table(prompts: rows.Prompts, marks: Marks, *, as_text: bool, drop: bool) -> pa.Table:
    """The rows to write. as_text: prompts are texts rather than messages. drop: without the rows that have a mark.

    Raises UsageError where all rows would be left out, or where prompts cannot be written as text.
    """
    import pyarrow as pa

    source = prompts.table
    total = source.num_rows
    names = [file.file.name for file in prompts.files]
    ids = source["prompt_id"].to_pylist()
    columns: dict[str, Any] = {
        "prompt_id": source["prompt_id"],
        "data_source": source["data_source"],
        "prompt": _prompt_column(prompts, as_text=as_text),
        "ability": source["ability"],
        "reward_model": _struct({"ground_truth": source["ground_truth"], "style": source["style"]}),
        rows.EXTRA_INFO: _extra_info(source),
    }
    if source["tools"].null_count < total:
        columns["tools"] = source["tools"]
    files, places = source["file"].to_pylist(), source["row"]
    columns |= dict(zip(rows.SOURCES, (pa.array([names[file] for file in files], pa.string()), places), strict=True))

    def marked(found: dict[int, Any], kind: pa.DataType) -> pa.Array:
        return pa.array([found.get(number) for number in range(total)], kind)

    columns |= {
        rows.DUPLICATE_OF: marked({number: ids[other] for number, other in marks.duplicate_of.items()}, pa.string()),
        rows.CONTAMINATED_BY: marked(marks.contaminated_by, pa.string()),
        rows.CONTAMINATION_SHARE: marked(marks.shares, pa.float64()),
        rows.CONTAMINATION_WORDS: marked(marks.words, pa.int32()),
        rows.PASS_RATE: marked(marks.rates, pa.float64()),
        rows.REASON: pa.array(marks.texts(), pa.string()),
    }
    made = pa.table(columns)
    if not drop:
        return made
    kept = made.filter(pa.array(marks.flags == 0))
    if not kept.num_rows:
        raise UsageError("every prompt has a mark, and --drop would leave none", "look at the marks without --drop")
    return kept


def _prompt_column(prompts: rows.Prompts, *, as_text: bool) -> Any:
    """The prompts: messages, JSON text where a message is more than a role and a text, or texts."""
    import json

    source = prompts.table
    if as_text:
        for number, messages in enumerate(source["messages"].to_pylist()):
            if messages is None or [message["role"] for message in messages] != ["user"]:
                raise UsageError(
                    f"--text: {prompts.where(number)} is not a single message of the user", "leave out --text"
                )
        return source["text"]
    if source["json"].null_count == source.num_rows:
        return source["messages"]
    pairs = zip(source["json"].to_pylist(), source["messages"].to_pylist(), strict=True)
    return [text if text is not None else json.dumps(messages, ensure_ascii=False) for text, messages in pairs]


def _extra_info(source: pa.Table) -> Any:
    """What the files have as extra_info; the number of the row where they have none."""
    import pyarrow as pa

    if source["extra"].null_count == source.num_rows:
        return _struct({"index": pa.chunked_array([pa.array(range(source.num_rows), pa.int64())])})
    return rows.extras(source)[0]


def _struct(columns: dict[str, pa.ChunkedArray]) -> pa.Array:
    import pyarrow as pa

    return pa.StructArray.from_arrays([column.combine_chunks() for column in columns.values()], list(columns))


def notes(prompts: rows.Prompts) -> list[str]:
    """What was changed or left out, a line each."""
    source = prompts.table
    found = []
    if prompts.left_out:
        found.append(f"columns left out: {', '.join(sorted(prompts.left_out))}")
    if prompts.renamed:
        found.append(f"{prompts.renamed:,} prompts had the id of a different one, and got an id of their own")
    if source["json"].null_count < source.num_rows:
        found.append("the column prompt is JSON text, since some messages are more than a role and a text")
    if source["extra"].null_count < source.num_rows and rows.extras(source)[1]:
        found.append("the column extra_info is JSON text, since no one type fits all rows")
    return found
