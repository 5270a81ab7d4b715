"""Rollouts as JSON lines, in the layouts that other trainers read. `export_rollouts` is what `primecli export` does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from primecli.errors import InputError, PrimecliError, ReaderClosed
from primecli.files import make_directory, write_atomically
from primecli.generation.encoder import Encoder
from primecli.generation.layout import Layout
from primecli.generation.messages import Message
from primecli.generation.responses import STEP_JOINT
from primecli.generation.unchat import ChatReader
from primecli.models.token_text import TOKENISING, Spellers
from primecli.pipeline import pipe
from primecli.pipeline.inputs import Inputs
from primecli.pipeline.progress import say
from primecli.shards import parquet, schema
from primecli.shards.parquet import Shard
from primecli.shards.steps import given_step_ends
from primecli.shards.streaming import stream

RIGHT = 0.5  # the outcome reward from which a response is labelled right
BATCH_ROWS = 512  # in memory at once

NEEDS = {
    Layout.trl: (schema.RESPONSE,),
    Layout.trl_preference: (schema.RESPONSE, schema.OUTCOME_REWARD),
    Layout.trl_steps: (schema.RESPONSE, schema.RESPONSE_IDS, schema.STEP_ENDS, schema.FIRST_WRONG_STEP),
    Layout.verl: (schema.PROMPT_ID, schema.GROUND_TRUTH),
}
"""The columns that a layout needs besides the prompt and its group."""

OPTIONAL = (schema.OUTCOME_REWARD, schema.DATA_SOURCE, schema.ABILITY)

Row = Mapping[str, Any]
Prompt = str | list[Message]


@dataclass(slots=True)
class Exported:
    """What was written, and what was not.

    lines: of the file.
    left_out: responses that have no place in it.
    as_text: whether prompts are the texts after the chat template rather than messages.
    bare: prompts that are not what the chat template makes of messages.
    unanswered: prompts without a ground truth.
    prompts: the messages of each text.
    """

    lines: int = 0
    left_out: int = 0
    as_text: bool = False
    bare: int = 0
    unanswered: int = 0
    prompts: dict[str, Prompt] = field(default_factory=dict)


def export_rollouts(
    shards: Sequence[str], *, layout: Layout, out: Path, tokenizer: str | None, force: bool, partial: bool
) -> None:
    """Writes the rollouts of shards to a file, whole or not at all, says what was written, and prints the file's path.

    shards, partial: as on the command line. tokenizer: the one whose chat template made the prompts; None for that of
    the model that sampled.

    Raises PrimecliError where the file exists and `force` is False, InputError where nothing could be written.
    """
    if out.exists() and not force:
        raise PrimecliError(f"{out} exists", "choose another --out, or overwrite it with --force")
    inputs = list(Inputs(shards, partial=partial, together=True, warn=lambda text: say("export", text)))
    for shard in inputs:
        needed = [schema.GROUP_ID, schema.PROMPT, *NEEDS[layout]]
        parquet.require_columns(shard.path, shard.footer.columns, needed)
    done = Exported()
    spellers = Spellers(tokenizer)
    if layout is Layout.trl_steps:
        done.as_text = True  # TRL's trainer of PRMs applies no chat template
    else:
        _read_prompts(inputs, spellers, done, text_allowed=layout is not Layout.verl)
    lines = _LINES[layout](inputs, done, spellers)

    def write(file: IO[bytes]) -> None:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            done.lines += 1
        if not done.lines:
            raise InputError("nothing to write: " + _WANTS[layout], "see docs/offline.md for what each --format takes")

    make_directory(out.parent)
    write_atomically(out, write)
    _report(layout, done, out)
    with contextlib.suppress(ReaderClosed):
        pipe.emit(out)


_WANTS = {
    Layout.trl: "no response has an outcome reward",
    Layout.trl_preference: "no group has both a right and a wrong response",
    Layout.trl_steps: "no response says which step is the first wrong one",
    Layout.verl: "there are no prompts",
}


def _report(layout: Layout, done: Exported, out: Path) -> None:
    if done.bare:
        how = "each becomes a message of the user" if layout is Layout.verl else "all prompts are written as text"
        say("export", f"{done.bare} prompts did not go through this model's chat template: {how}")
    if done.left_out:
        why = {
            Layout.trl: "are not graded",
            Layout.trl_preference: "have no counterpart in their group",
            Layout.trl_steps: "do not say which step is the first wrong one",
        }[layout]
        say("export", f"{done.left_out} responses {why}, and are left out")
    if done.unanswered:
        say("export", f"{done.unanswered} of {done.lines} prompts have no ground truth, which is left empty")
    what = {Layout.trl_preference: "pairs", Layout.verl: "prompts"}.get(layout, "responses")
    say("export", f"{done.lines:,} {what} -> {out}")


def _read_prompts(inputs: Sequence[Shard], spellers: Spellers, done: Exported, *, text_allowed: bool) -> None:
    """Turns the prompts of all shards back into messages. Where one went through no chat template, they all stay text,
    unless text is not allowed: then that one becomes a message of the user."""
    readers: dict[tuple[Path, str], ChatReader | None] = {}
    for shard in inputs:
        speller = spellers.find(shard.path, shard.footer.provenance)
        if speller is None:
            raise InputError(
                f"{shard.path}: the tokenizer, whose chat template made the prompts, is not found",
                "name it with --tokenizer",
            )
        arguments = _template_arguments(shard)
        key = speller.path.parent, json.dumps(arguments, sort_keys=True)
        if key not in readers:
            encoder = Encoder(speller.path.parent, arguments=arguments)
            template = encoder.template
            readers[key] = None if template is None else ChatReader(template, encoder.special_texts)
        reader = readers[key]
        for _, table in stream(shard.path, [schema.PROMPT], rows=BATCH_ROWS):
            for text in table[schema.PROMPT].to_pylist():
                if text not in done.prompts:
                    messages = None if reader is None else reader.read(text)
                    done.bare += messages is None
                    done.prompts[text] = [{"role": "user", "content": text}] if messages is None else messages
    done.as_text = bool(done.bare) and text_allowed


def _template_arguments(shard: Shard) -> dict[str, Any]:
    """The arguments of the chat template that the provenance has."""
    made = [record for record in shard.footer.provenance if record.get("stage") in TOKENISING]
    arguments = (made[-1].get("config") or {}).get("chat_template_args") if made else None
    return dict(arguments) if isinstance(arguments, dict) else {}


def _rows(inputs: Sequence[Shard], layout: Layout) -> Iterator[Row]:
    for shard in inputs:
        names = [schema.GROUP_ID, schema.PROMPT, *NEEDS[layout]]
        names += [name for name in OPTIONAL if name in shard.footer.columns and name not in names]
        for _, table in stream(shard.path, names, rows=BATCH_ROWS):
            yield from table.to_pylist()


def _exchange(row: Row, done: Exported) -> tuple[Prompt, Callable[[str], Any]]:
    """The prompt of a row, and what a response to it is written as."""
    if done.as_text:
        return row[schema.PROMPT], lambda text: text
    return done.prompts[row[schema.PROMPT]], lambda text: [{"role": "assistant", "content": text}]


def _responses(inputs: Sequence[Shard], done: Exported, spellers: Spellers) -> Iterator[Row]:
    graded = any(schema.OUTCOME_REWARD in shard.footer.columns for shard in inputs)
    for row in _rows(inputs, Layout.trl):
        prompt, written = _exchange(row, done)
        line = {"prompt": prompt, "completion": written(row[schema.RESPONSE])}
        reward = row.get(schema.OUTCOME_REWARD)
        if reward is not None:
            yield {**line, "label": reward >= RIGHT, "reward": reward}
        elif graded:
            done.left_out += 1
        else:
            yield line


def _pairs(inputs: Sequence[Shard], done: Exported, spellers: Spellers) -> Iterator[Row]:
    groups: dict[str, tuple[list[Row], list[Row]]] = {}
    for row in _rows(inputs, Layout.trl_preference):
        wrong, right = groups.setdefault(row[schema.GROUP_ID], ([], []))
        reward = row[schema.OUTCOME_REWARD]
        if reward is None:
            done.left_out += 1
        else:
            (right if reward >= RIGHT else wrong).append(row)
    for wrong, right in groups.values():
        done.left_out += abs(len(wrong) - len(right))
        for bad, good in zip(wrong, right, strict=False):  # in the order of sampling; the rest has no counterpart
            prompt, written = _exchange(good, done)
            yield {
                "prompt": prompt,
                "chosen": written(good[schema.RESPONSE]),
                "rejected": written(bad[schema.RESPONSE]),
            }


def _stepwise(inputs: Sequence[Shard], done: Exported, spellers: Spellers) -> Iterator[Row]:
    for shard in inputs:
        speller = spellers.find(shard.path, shard.footer.provenance)
        if speller is None:
            raise InputError(
                f"{shard.path}: the tokenizer, which spells the steps, is not found", "name it with --tokenizer"
            )
        names = [schema.PROMPT, *NEEDS[Layout.trl_steps]]
        for first_row, table in stream(shard.path, names, rows=BATCH_ROWS):
            rows = table.to_pylist()
            for row, ends in zip(rows, given_step_ends(table, shard.path, first_row=first_row), strict=True):
                first = row[schema.FIRST_WRONG_STEP]
                if ends is None or first is None:
                    done.left_out += 1
                    continue
                steps = _step_texts(row[schema.RESPONSE], speller.known_texts(row[schema.RESPONSE_IDS]), ends.tolist())
                labelled = len(steps) if first < 0 else first + 1
                yield {
                    "prompt": row[schema.PROMPT],
                    "completions": [_without_separator(step) for step in steps[:labelled]],
                    "labels": [index != first for index in range(labelled)],
                }


def _without_separator(step: str) -> str:
    """A step without the empty line or the line's end that parts it from the next, which TRL puts there itself."""
    return step.removesuffix(STEP_JOINT) if step.endswith(STEP_JOINT) else step.removesuffix("\n")


def _step_texts(response: str, texts: Sequence[str], ends: Sequence[int]) -> list[str]:
    """The text of each step; that of the last is the rest of the response, without an end token. texts: of tokens."""
    starts = [0, *(end + 1 for end in ends[:-1])]
    steps = ["".join(texts[start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    return [*steps[:-1], response[sum(map(len, steps[:-1])) :]]


def _prompts(inputs: Sequence[Shard], done: Exported, spellers: Spellers) -> Iterator[Row]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in _rows(inputs, Layout.verl):
        found.setdefault((row.get(schema.DATA_SOURCE) or "", row[schema.PROMPT_ID]), []).append(row)
    for index, ((source, identity), rows) in enumerate(found.items()):
        done.unanswered += rows[0][schema.GROUND_TRUTH] is None
        rewards = [row[schema.OUTCOME_REWARD] for row in rows if row.get(schema.OUTCOME_REWARD) is not None]
        rate = {"pass_rate": sum(rewards) / len(rewards), "samples": len(rewards)} if rewards else {}
        yield {
            "data_source": source,
            "prompt": done.prompts[rows[0][schema.PROMPT]],
            "ability": rows[0].get(schema.ABILITY) or "",
            "reward_model": {"style": "rule", "ground_truth": rows[0][schema.GROUND_TRUTH] or ""},
            "extra_info": {"index": index, "prompt_id": identity, **rate},
        }


_LINES: Mapping[Layout, Callable[[Sequence[Shard], Exported, Spellers], Iterator[Row]]] = {
    Layout.trl: _responses,
    Layout.trl_preference: _pairs,
    Layout.trl_steps: _stepwise,
    Layout.verl: _prompts,
}
