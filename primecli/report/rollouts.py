"""The rollouts that a page shows: whole groups, taken evenly from all iterations, as columns that it can read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from primecli.catalog import SHARD_STAGES
from primecli.errors import InputError
from primecli.models.token_text import Speller, Spellers
from primecli.pipeline.summary import committed
from primecli.report.payload import Payload, quantise
from primecli.report.runs import FINISHED, TRAINING, Entry, Run
from primecli.shards import parquet, schema
from primecli.shards.columns import flat_column
from primecli.shards.questions import questions
from primecli.shards.rollouts import check_lists

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")

QUESTION_CHARACTERS = 300  # of a question, for the list; the whole prompt stands beside the rollout

VALUES = (schema.PROCESS_REWARDS, schema.ADVANTAGES, schema.ROLLOUT_LOGPROBS, schema.VALUES)
"""Columns with one number per token, by which a page can colour the tokens."""

NEEDED = (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS)
READ = (
    *NEEDED,
    *(schema.DATA_SOURCE, schema.GROUND_TRUTH, schema.FINISH_REASON, schema.OUTCOME_REWARD, schema.VERDICT),
    *(schema.EXTRACTED_ANSWER, schema.VERIFIER_DETAIL, schema.TESTS_PASSED, schema.TESTS_TOTAL, schema.FIRST_FAILURE),
    *VALUES,
)


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """One group of one iteration, in the shard that has the most columns for it.

    run: the index of the run among those of the report.
    purpose: `training`, or the name of an evaluation.
    iteration: its iteration.
    stage: the stage that wrote the shard.
    path: the shard.
    name: the group_id.
    rows: its rows in the shard.
    dropped: whether the filter dropped it.
    """

    run: int
    purpose: str
    iteration: int
    stage: str
    path: Path
    name: str
    rows: tuple[int, ...]
    dropped: bool = False


@dataclass(slots=True)
class Choice:
    """The groups that are shown.

    groups: in the order of the runs.
    available: how many rollouts there were to choose from.
    """

    groups: list[RolloutGroup]
    available: int

    @property
    def rollouts(self) -> int:
        """How many rollouts are shown."""
        return sum(len(group.rows) for group in self.groups)


def choose(runs: Sequence[Run], limit: int) -> Choice:
    """At most `limit` rollouts in whole groups, spread evenly over runs, purposes and iterations, and within them.

    A shard that cannot be read is left out, and named in the problems of its run.
    """
    if not limit:
        return Choice([], 0)  # without reading any shard
    by_run = [list(_groups(index, run)) for index, run in enumerate(runs)]
    ordered = [group for sets in by_run for groups in sets for group in groups]
    taken: list[RolloutGroup] = []
    room = limit
    for group in _in_turn([_in_turn([_spread(groups) for groups in _spread(sets)]) for sets in by_run]):
        if len(group.rows) <= room:
            taken.append(group)
            room -= len(group.rows)
    position = {id(group): index for index, group in enumerate(ordered)}
    return Choice(sorted(taken, key=lambda group: position[id(group)]), sum(len(group.rows) for group in ordered))


def spread(count: int) -> list[int]:
    """0 … count-1, ordered so that every prefix is spread evenly: sorted by their reversed binary digits.

    >>> spread(8)
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    digits = max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda number: int(format(number, f"0{max(digits, 1)}b")[::-1], 2))


def _spread(items: list[Item]) -> list[Item]:
    return [items[index] for index in spread(len(items))]


def _in_turn(lists: list[list[Item]]) -> list[Item]:
    """The first of each list, then the second of each, and so on."""
    return [item for row in itertools.zip_longest(*lists) for item in row if item is not None]


def _groups(index: int, run: Run) -> Iterator[list[RolloutGroup]]:
    """For each purpose and iteration of a run its groups, each from the latest stage whose shards still have it."""
    keys = dict.fromkeys((entry.purpose, entry.iteration) for entry in run.entries)
    for purpose, iteration in sorted(keys, key=lambda key: (key[0] != TRAINING, key)):
        entries = [entry for entry in run.entries if (entry.purpose, entry.iteration) == (purpose, iteration)]
        latest_first = [entry for entry in entries if entry.stage in SHARD_STAGES and entry.summary.status in FINISHED]
        latest_first.sort(key=lambda entry: -SHARD_STAGES.index(entry.stage))
        filtered = purpose == TRAINING and any(entry.stage == "filter" for entry in latest_first)
        groups: dict[str, RolloutGroup] = {}
        for entry in latest_first:
            dropped = filtered and entry.stage in ("generate", "verify")
            for path, name, rows in _groups_in(entry, run.problems):
                groups.setdefault(name, RolloutGroup(index, purpose, iteration, entry.stage, path, name, rows, dropped))
        if groups:
            yield list(groups.values())


def _groups_in(entry: Entry, problems: list[str]) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """The groups in the shards of a directory that have not been deleted: shard, group_id and rows.

    problems: gets a line for each shard that cannot be read.
    """
    for shard in committed(entry.path, entry.summary):
        path = entry.path / shard
        if path.exists():
            try:
                names = parquet.read_table(path, [schema.GROUP_ID])[schema.GROUP_ID].to_pylist()
            except InputError as error:
                problems.append(error.message)
                continue
            rows_of: dict[str, list[int]] = {}
            for row, name in enumerate(names):
                rows_of.setdefault(name, []).append(row)
            yield from ((path, name, tuple(rows)) for name, rows in rows_of.items())


@dataclass(slots=True)
class _Codes:
    """Codes for texts that repeat.

    known: the code of each text, in the order of their first use.
    """

    known: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))


class Embedding:
    """Turns the chosen rollouts into the page's columns.

    spellers: find the tokenizer of each shard. spelled: how many responses so far have a text for each token.
    """

    def __init__(self, spellers: Spellers) -> None:
        self.spellers = spellers
        self.spelled = 0
        self._rows: list[dict[str, Any]] = []
        self._groups: list[dict[str, str]] = []
        self._groups_of_set: dict[tuple[int, str | None], list[int]] = {}  # by run and data set
        self._purposes, self._stages, self._verdicts = _Codes(), _Codes(), _Codes()
        self._sources, self._finishes = _Codes(), _Codes()
        self._values: dict[str, tuple[list[np.ndarray], list[np.float32]]] = {name: ([], []) for name in VALUES}
        self._pieces: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, groups: Sequence[RolloutGroup]) -> None:
        """Reads these groups, all of one shard, and adds their rollouts."""
        path = groups[0].path
        table = _read_rows(path, [row for group in groups for row in group.rows])
        speller = self.spellers.find(path, parquet.read_footer(path).provenance)
        values = {name: np.split(*_flat(table, name)) for name in VALUES if name in table.column_names}
        rows = table.drop_columns([name for name in VALUES if name in table.column_names]).to_pylist()
        start = 0
        for group in groups:
            indices = range(start, start + len(group.rows))
            start += len(group.rows)
            by_sample = sorted(indices, key=lambda index: int(rows[index][schema.SAMPLE_INDEX]))
            first = rows[by_sample[0]]
            self._groups.append(
                {"name": group.name, "prompt": first[schema.PROMPT], "truth": first.get(schema.GROUND_TRUTH) or ""}
            )
            data_set = group.run, first.get(schema.DATA_SOURCE)
            self._groups_of_set.setdefault(data_set, []).append(len(self._groups) - 1)
            for index in by_sample:
                self._add_row(group, rows[index], {name: lists[index] for name, lists in values.items()}, speller)

    def _add_row(
        self, group: RolloutGroup, row: dict[str, Any], values: dict[str, np.ndarray], speller: Speller | None
    ) -> None:
        pieces = speller.texts_of(row[schema.RESPONSE_IDS], row[schema.RESPONSE]) if speller else None
        if pieces is not None:
            self.spelled += 1
            self._pieces.append(np.array(_units(pieces), dtype=np.uint16))
        for name, (parts, scales) in self._values.items():
            part, scale = quantise(values[name]) if name in values else (np.zeros(0, dtype=np.int8), np.float32(np.nan))
            parts.append(part)
            scales.append(scale)
        rewards = values.get(schema.PROCESS_REWARDS)
        reward = row.get(schema.OUTCOME_REWARD)
        self._rows.append(
            {
                "run": group.run,
                "purpose": self._purposes[group.purpose],
                "iteration": group.iteration,
                "group": len(self._groups) - 1,
                "sample": row[schema.SAMPLE_INDEX],
                "stage": self._stages[group.stage],
                "dropped": group.dropped,
                "verdict": self._verdicts[row.get(schema.VERDICT) or "ungraded"],
                "finish": self._finishes[row.get(schema.FINISH_REASON) or ""],
                "source": self._sources[row.get(schema.DATA_SOURCE) or ""],
                "outcome": np.nan if reward is None else reward,
                "tokens": len(row[schema.RESPONSE_IDS]),
                "spelled": pieces is not None,
                "sum": np.nan if rewards is None else float(rewards.sum(dtype=np.float64)),
                "text": row[schema.RESPONSE] if pieces is None else "".join(pieces),
                "answer": row.get(schema.EXTRACTED_ANSWER) or "",
                "detail": _detail(row),
            }
        )

    def encode(self, *, compress: bool) -> str:
        """Everything added so far, as the text that the page embeds."""
        payload = Payload()
        kinds: dict[str, Any] = {
            **dict.fromkeys(("run", "purpose", "stage", "dropped", "verdict", "finish", "spelled"), np.uint8),
            **dict.fromkeys(("iteration", "sample"), np.int32),
            **dict.fromkeys(("group", "source", "tokens"), np.uint32),
            **dict.fromkeys(("outcome", "sum"), np.float32),
        }
        for name, kind in kinds.items():
            payload.add(name, np.array([row[name] for row in self._rows], dtype=kind))
        for name in ("text", "answer", "detail"):
            payload.add_texts(name, [row[name] for row in self._rows])
        for indices in self._groups_of_set.values():
            groups = [self._groups[index] for index in indices]
            for group, question in zip(groups, questions([group["prompt"] for group in groups]), strict=True):
                group["question"] = question[:QUESTION_CHARACTERS]
        for name in ("name", "prompt", "question", "truth"):
            payload.add_texts(f"group.{name}", [group[name] for group in self._groups])
        payload.add("pieces", np.concatenate(self._pieces or [np.zeros(0, dtype=np.uint16)]))
        present = [name for name, (parts, _) in self._values.items() if any(len(part) for part in parts)]
        for name in present:
            parts, scales = self._values[name]
            payload.add(f"{name}.scale", np.array(scales, dtype=np.float32))
            payload.add(name, np.concatenate(parts))
        lists = {
            "purposes": self._purposes,
            "stages": self._stages,
            "verdicts": self._verdicts,
            "finishes": self._finishes,
            "sources": self._sources,
        }
        index = {name: list(codes.known) for name, codes in lists.items()}
        return payload.encode({"rows": len(self._rows), "values": present, **index}, compress=compress)


def embed(choice: Choice, spellers: Spellers, runs: Sequence[Run] = ()) -> Embedding:
    """Reads the chosen groups shard by shard, and of each shard only the row groups and columns that it needs.

    runs: of the choice. Groups of a shard that is damaged further on are taken out of the choice, and the shard is
    named in the problems of its run. Without runs, that is an error.
    """
    embedding = Embedding(spellers)
    for _, some in itertools.groupby(list(choice.groups), key=lambda group: group.path):
        groups = list(some)
        try:
            embedding.add(groups)
        except InputError as error:
            if not runs:
                raise
            runs[groups[0].run].problems.append(error.message)
            choice.groups = [group for group in choice.groups if group.path != groups[0].path]
    return embedding


def _read_rows(path: Path, rows: Sequence[int]) -> pa.Table:
    """Some rows of a shard, in this order, with the columns that a page can use."""
    import pyarrow as pa

    file = parquet.open_parquet(path)
    present = file.schema_arrow.names
    parquet.require_columns(path, present, NEEDED)
    columns = [name for name in READ if name in present]
    parts, first, kept = [], 0, 0
    position_of: dict[int, int] = {}  # of a row of the shard, among the rows that were read
    for number in range(file.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        inside = [row - first for row in rows if first <= row < first + count]
        if inside:
            try:
                parts.append(file.read_row_group(number, columns=columns).take(pa.array(inside)))
            except (pa.ArrowException, OSError) as error:
                raise parquet.unreadable(path, error) from error
            position_of |= {first + row: kept + index for index, row in enumerate(inside)}
            kept += len(inside)
        first += count
    table = pa.concat_tables(parts).take(pa.array([position_of[row] for row in rows]))
    table = parquet.conform(table.select(columns), path)
    check_lists(table, path)
    return table


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as one array, with the indices at which to split it into rows."""
    values, lengths = flat_column(table, name)
    return values, np.cumsum(lengths)[:-1]


def _units(pieces: Sequence[str]) -> list[int]:
    """Lengths in UTF-16 code units, which JavaScript counts in."""
    return [len(piece) if piece.isascii() else len(piece.encode("utf-16-le")) // 2 for piece in pieces]


def _detail(row: dict[str, Any]) -> str:
    """What the verifier says besides the verdict."""
    total = row.get(schema.TESTS_TOTAL)
    parts = [
        f"{row.get(schema.TESTS_PASSED)} of {total} tests passed" if total is not None else None,
        row.get(schema.FIRST_FAILURE),
        row.get(schema.VERIFIER_DETAIL),
    ]
    return "; ".join(part for part in parts if part)
