"""The rollouts that a page shows: whole groups, taken evenly from all iterations, in columns that it can read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from primecli.catalog import SHARD_STAGES
from primecli.models.token_text import Speller, Spellers
from primecli.pipeline.summary import committed
from primecli.report.payload import Payload, quantise
from primecli.report.runs import FINISHED, TRAINING, Entry, Run
from primecli.shards import parquet, schema
from primecli.shards.rollouts import check_lists

if TYPE_CHECKING:
    import pyarrow as pa

Item = TypeVar("Item")

VALUES = (schema.PROCESS_REWARDS, schema.ADVANTAGES, schema.ROLLOUT_LOGPROBS, schema.VALUES)
"""Columns of one number a token that a page can colour by."""

NEEDED = (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS)
WANTED = (
    *NEEDED,
    *(schema.DATA_SOURCE, schema.GROUND_TRUTH, schema.FINISH_REASON, schema.OUTCOME_REWARD, schema.VERDICT),
    *(schema.EXTRACTED_ANSWER, schema.VERIFIER_DETAIL, schema.TESTS_PASSED, schema.TESTS_TOTAL, schema.FIRST_FAILURE),
    *VALUES,
)


@dataclass(frozen=True, slots=True)
class Group:
    """One group of one iteration: the shard that knows most of it, and its rows there."""

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
    """The groups that are shown, and of how many rollouts there are."""

    groups: list[Group]
    there: int

    @property
    def rollouts(self) -> int:
        """How many rollouts are shown."""
        return sum(len(group.rows) for group in self.groups)


def choose(runs: Sequence[Run], limit: int) -> Choice:
    """At most `limit` rollouts in whole groups, evenly over runs, purposes and iterations, and within them."""
    if not limit:
        return Choice([], 0)  # no shard is read
    by_run = [list(_groups(place, run)) for place, run in enumerate(runs)]
    ordered = [group for sets in by_run for groups in sets for group in groups]
    taken: list[Group] = []
    room = limit
    for group in _in_turn([_in_turn([_spread(groups) for groups in _spread(sets)]) for sets in by_run]):
        if len(group.rows) <= room:
            taken.append(group)
            room -= len(group.rows)
    order = {id(group): place for place, group in enumerate(ordered)}
    return Choice(sorted(taken, key=lambda group: order[id(group)]), sum(len(group.rows) for group in ordered))


def spread(count: int) -> list[int]:
    """0 … count-1 in an order of which every beginning is spread evenly: by the reversed binary digits.

    >>> spread(8)
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    digits = max(count - 1, 0).bit_length()
    return sorted(range(count), key=lambda place: int(format(place, f"0{max(digits, 1)}b")[::-1], 2))


def _spread(items: list[Item]) -> list[Item]:
    return [items[place] for place in spread(len(items))]


def _in_turn(lists: list[list[Item]]) -> list[Item]:
    """The first of each list, then the second of each, and so on."""
    return [item for row in itertools.zip_longest(*lists) for item in row if item is not None]


def _groups(place: int, run: Run) -> Iterator[list[Group]]:
    """The groups of each purpose and iteration of a run, each from the directory that knows most of it."""
    keys = dict.fromkeys((entry.purpose, entry.iteration) for entry in run.entries)
    ordered = sorted(keys, key=lambda key: (key[0] != TRAINING, key))
    for purpose, iteration in ordered:
        entries = [entry for entry in run.entries if (entry.purpose, entry.iteration) == (purpose, iteration)]
        ranked = [entry for entry in entries if entry.stage in SHARD_STAGES and entry.summary.status in FINISHED]
        ranked.sort(key=lambda entry: -SHARD_STAGES.index(entry.stage))
        filtered = purpose == TRAINING and any(entry.stage == "filter" for entry in ranked)
        found: dict[str, Group] = {}
        for entry in ranked:
            dropped = filtered and entry.stage in ("generate", "verify")
            for path, name, rows in _directory_groups(entry):
                found.setdefault(name, Group(place, purpose, iteration, entry.stage, path, name, rows, dropped))
        if found:
            yield list(found.values())


def _directory_groups(entry: Entry) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """The groups of a directory's shards, as far as they have not been deleted."""
    for name in committed(entry.path, entry.summary):
        path = entry.path / name
        if path.exists():
            rows: dict[str, list[int]] = {}
            for row, group in enumerate(parquet.read_table(path, [schema.GROUP_ID])[schema.GROUP_ID].to_pylist()):
                rows.setdefault(group, []).append(row)
            yield from ((path, group, tuple(found)) for group, found in rows.items())


@dataclass(slots=True)
class _Numbers:
    """Texts that repeat, each by its number."""

    known: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, text: str) -> int:
        return self.known.setdefault(text, len(self.known))


class Embedding:
    """Turns chosen rollouts into the page's columns."""

    def __init__(self, spellers: Spellers) -> None:
        self.spellers = spellers
        self.spelled = 0
        self._rows: list[dict[str, Any]] = []
        self._groups: list[dict[str, str]] = []
        self._purposes, self._stages, self._verdicts = _Numbers(), _Numbers(), _Numbers()
        self._sources, self._finishes = _Numbers(), _Numbers()
        self._values: dict[str, tuple[list[np.ndarray], list[np.float32]]] = {name: ([], []) for name in VALUES}
        self._pieces: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, groups: Sequence[Group]) -> None:
        """Reads these groups of one shard and adds their rollouts."""
        path = groups[0].path
        table = _read_rows(path, [row for group in groups for row in group.rows])
        speller = self.spellers.find(path, parquet.read_footer(path).provenance)
        values = {name: np.split(*_flat(table, name)) for name in VALUES if name in table.column_names}
        rows = table.drop_columns([name for name in VALUES if name in table.column_names]).to_pylist()
        start = 0
        for group in groups:
            mine = sorted(
                range(start, start + len(group.rows)), key=lambda place: int(rows[place][schema.SAMPLE_INDEX])
            )
            start += len(group.rows)
            first = rows[mine[0]]
            self._groups.append(
                {"name": group.name, "prompt": first[schema.PROMPT], "truth": first.get(schema.GROUND_TRUTH) or ""}
            )
            for place in mine:
                self._add_row(group, rows[place], {name: lists[place] for name, lists in values.items()}, speller)

    def _add_row(
        self, group: Group, row: dict[str, Any], values: dict[str, np.ndarray], speller: Speller | None
    ) -> None:
        pieces = speller.texts_of(row[schema.RESPONSE_IDS], row[schema.RESPONSE]) if speller else None
        if pieces is not None:
            self.spelled += 1
            self._pieces.append(np.array(_units(pieces), dtype=np.uint16))
        for name, (parts, scales) in self._values.items():
            found = values.get(name)
            part, scale = (np.zeros(0, dtype=np.int8), np.float32(np.nan)) if found is None else quantise(found)
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
        """All of it, for the page."""
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
        for name in ("name", "prompt", "truth"):
            payload.add_texts(f"group.{name}", [group[name] for group in self._groups])
        payload.add("pieces", np.concatenate(self._pieces or [np.zeros(0, dtype=np.uint16)]))
        there = [name for name, (parts, _) in self._values.items() if any(len(part) for part in parts)]
        for name in there:
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
        index = {name: list(numbers.known) for name, numbers in lists.items()}
        return payload.encode({"rows": len(self._rows), "values": there, **index}, compress=compress)


def embed(choice: Choice, spellers: Spellers) -> Embedding:
    """Reads the chosen groups, shard by shard, only the row groups and columns that are needed."""
    embedding = Embedding(spellers)
    start = 0
    groups = choice.groups
    for place in range(1, len(groups) + 1):
        if place == len(groups) or groups[place].path != groups[start].path:
            embedding.add(groups[start:place])
            start = place
    return embedding


def _read_rows(path: Path, rows: Sequence[int]) -> pa.Table:
    """Some rows of a shard, in this order, with the columns that a page can use."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    present = file.schema_arrow.names
    parquet.require_columns(path, present, NEEDED)
    columns = [name for name in WANTED if name in present]
    parts, first, kept = [], 0, 0
    places: dict[int, int] = {}
    for number in range(file.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        inside = [row - first for row in rows if first <= row < first + count]
        if inside:
            parts.append(file.read_row_group(number, columns=columns).take(pa.array(inside)))
            places |= {first + row: kept + place for place, row in enumerate(inside)}
            kept += len(inside)
        first += count
    table = pa.concat_tables(parts).take(pa.array([places[row] for row in rows]))
    table = parquet.conform(table.select(columns), path)
    check_lists(table, path)
    return table


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    values, lengths = parquet.flat_column(table, name)
    return values, np.cumsum(lengths)[:-1]


def _units(pieces: Sequence[str]) -> list[int]:
    """Lengths in the UTF-16 units that a page counts in."""
    return [len(piece) if piece.isascii() else len(piece.encode("utf-16-le")) // 2 for piece in pieces]


def _detail(row: dict[str, Any]) -> str:
    """What the verifier says beside the verdict."""
    total = row.get(schema.TESTS_TOTAL)
    found = [
        f"{row.get(schema.TESTS_PASSED)} of {total} tests passed" if total is not None else None,
        row.get(schema.FIRST_FAILURE),
        row.get(schema.VERIFIER_DETAIL),
    ]
    return "; ".join(part for part in found if part)
