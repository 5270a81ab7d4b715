"""What is wrong with shards, all of it: each problem with its shard, row and column, a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from primecli.errors import InputError
from primecli.files import fingerprint
from primecli.shards import parquet, schema
from primecli.shards.streaming import raw_stream
from primecli.verifiers import VERDICTS

FINISH_REASONS = ("stop", "length")
LINK = ("stage", "command", "config", "fingerprint", "inputs")  # what a provenance record has to say
REWARD_TOLERANCE = 1e-5  # of a process reward, for the rounding of float32
ABOVE_ZERO = 1e-4  # of a log-probability, likewise


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. row, column: where, as far as it is of a row or of a column."""

    shard: Path
    what: str
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        where = [f"row {self.row}"] if self.row is not None else []
        where += [self.column] if self.column is not None else []
        return f"{self.shard}: {', '.join(where)}: {self.what}" if where else f"{self.shard}: {self.what}"


class Validator:
    """Looks at shards one after another; remembers groups by directory, where each stands in one shard only."""

    def __init__(self) -> None:
        self.rows = 0
        self.shards = 0
        self._owners: dict[Path, dict[str, Path]] = {}

    def check(self, path: Path) -> Iterator[Problem]:
        """Everything that is wrong with one shard."""
        self.shards += 1
        try:
            footer = parquet.read_footer(path)
            self.rows += footer.rows
            if not footer.rows:
                yield Problem(path, "has no rows")
                return
            yield from _check_footer(path, footer)
            for name in (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS):
                if name not in footer.columns:
                    yield Problem(path, "is missing", column=name)
            yield from self._check_rows(path, footer)
        except InputError as error:
            yield Problem(path, error.message.removeprefix(f"{path}: "))

    def _check_rows(self, path: Path, footer: parquet.Footer) -> Iterator[Problem]:
        import pyarrow as pa

        groups = _Groups()
        odd: set[str] = set()  # columns of another type, said once
        try:
            for first, table in raw_stream(path):
                part = _Part(path, first)
                fitting = []
                for name in table.column_names:
                    problems = [] if name in odd else list(_check_type(part, table, name))
                    yield from problems
                    odd |= {name} if any(problem.row is None for problem in problems) else set()
                    if not problems and name not in odd and name in schema.BY_NAME:
                        fitting.append(name)
                table = table.select(fitting)
                yield from _check_lists(part, table)
                yield from _check_values(part, table)
                yield from _check_made(part, table, footer)
                groups.add(table, first)
        except (pa.ArrowException, OSError) as error:
            yield Problem(path, f"cannot be read: {' '.join(str(error).split())}")
            return
        yield from groups.check(path, self._owners.setdefault(path.parent, {}))
        expected = (footer.counts or {}).get("groups")
        if expected is not None and groups.known() and len(groups.samples) != expected:
            yield Problem(path, f"has {len(groups.samples)} groups, and its footer says {expected:g}")


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a shard, from the row `first` on."""

    path: Path
    first: int

    def problems(self, rows: Iterable[Any], column: str, what: Callable[[int], str]) -> Iterator[Problem]:
        """One problem a row. rows: numbers in the part. what: says of such a number what is wrong."""
        for row in rows:
            yield Problem(self.path, what(int(row)), self.first + int(row), column)


class _Groups:
    """The samples of a shard's groups."""

    def __init__(self) -> None:
        self.samples: dict[str, list[int]] = {}
        self._first: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._unknown = False

    def known(self) -> bool:
        """Whether every row said what it is a sample of."""
        return not self._unknown

    def add(self, table: Any, first: int) -> None:
        if not {schema.GROUP_ID, schema.SAMPLE_INDEX} <= set(table.column_names):
            self._unknown = True
            return
        groups, indices = (table[name].to_pylist() for name in (schema.GROUP_ID, schema.SAMPLE_INDEX))
        for row, (group, index) in enumerate(zip(groups, indices, strict=True)):
            self.samples.setdefault(group, []).append(index)
            self._first.setdefault(group, first + row)
        if schema.GROUP_SIZE in table.column_names:
            self._sizes.update(zip(groups, table[schema.GROUP_SIZE].to_pylist(), strict=True))

    def check(self, path: Path, owners: dict[str, Path]) -> Iterator[Problem]:
        for group, found in self.samples.items():
            row = self._first[group]
            expected = self._sizes.get(group, len(found))
            if sorted(found) != list(range(expected)):
                what = f"group {group} has the samples {sorted(found)} of {expected}"
                yield Problem(path, what, row, schema.SAMPLE_INDEX)
            if group in owners:
                yield Problem(path, f"group {group} stands in {owners[group]} too", row, schema.GROUP_ID)
            owners.setdefault(group, path)


def _check_footer(path: Path, footer: parquet.Footer) -> Iterator[Problem]:
    if footer.fingerprint is None:
        yield Problem(path, "has no primecli footer: another tool wrote it, and nothing says how")
        return
    content = parquet.content_of(path)
    if content != footer.content:
        yield Problem(
            path, f"its rows are not those that were written: they have the hash {content}, not {footer.content}"
        )
    if not footer.provenance:
        yield Problem(path, "its provenance is empty")
        return
    for number, record in enumerate(footer.provenance):
        missing = [key for key in LINK if key not in record]
        if missing:
            yield Problem(path, f"link {number + 1} of its provenance lacks {', '.join(missing)}")
    last, recipe = footer.provenance[-1], dict(footer.recipe or {})
    if last.get("fingerprint") != footer.fingerprint:
        yield Problem(path, "its last provenance record is of another recipe than its footer")
    if recipe and fingerprint(recipe) != footer.fingerprint:
        yield Problem(path, "its recipe does not have the fingerprint that its footer says")
    made_from = [entry.get("content") for entry in last.get("inputs") or ()]
    if recipe and made_from and list(recipe.get("inputs") or ()) != made_from:
        yield Problem(path, "its last provenance record names other inputs than its recipe")


def _check_type(part: _Part, table: Any, name: str) -> Iterator[Problem]:
    column = schema.BY_NAME.get(name)
    if column is None:
        return
    found = table.schema.field(name).type
    if not found.equals(column.arrow_type()):
        yield Problem(part.path, f"is {found}, and the schema says {column.type}", column=name)
    elif not column.nullable and table[name].null_count:
        nulls = np.flatnonzero(table[name].is_null().to_numpy())
        yield from part.problems(nulls, name, lambda row: "is null")


def _check_lists(part: _Part, table: Any) -> Iterator[Problem]:
    lists = {}
    for name in (schema.RESPONSE_IDS, schema.PROMPT_IDS, *schema.PER_RESPONSE_TOKEN):
        if name not in table.column_names:
            continue
        lists[name] = values, lengths = parquet.flat_column(table, name)
        empty = table[name].combine_chunks().flatten().is_null().to_numpy(zero_copy_only=False)
        if empty.any():
            yield from part.problems(_rows_of(lengths, empty), name, lambda row: "holds a null")
            del lists[name]
        elif name in (schema.RESPONSE_IDS, schema.PROMPT_IDS):
            yield from part.problems(np.flatnonzero(lengths == 0), name, lambda row: "is empty")
            yield from part.problems(_rows_of(lengths, values < 0), name, lambda row: "holds a negative token id")
        else:
            odd = ~np.isfinite(values)
            found = dict(zip(_rows_of(lengths, odd), values[odd][_firsts(lengths, odd)], strict=True))
            yield from part.problems(found, name, lambda row, found=found: f"is {found[row]} at a token")  # type: ignore[misc]
        if name == schema.ROLLOUT_LOGPROBS and name in lists:
            above = _rows_of(lengths, values > ABOVE_ZERO)
            yield from part.problems(above, name, lambda row: "is above 0, and a log-probability is not")
    if schema.RESPONSE_IDS in lists:
        expected = lists[schema.RESPONSE_IDS][1]
        for name in schema.PER_RESPONSE_TOKEN:
            if name in lists:
                lengths = lists[name][1]
                yield from part.problems(
                    np.flatnonzero(lengths != expected),
                    name,
                    lambda row, lengths=lengths: f"has {lengths[row]} values for {expected[row]} response tokens",  # type: ignore[misc]
                )


def _rows_of(lengths: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The rows that have one of some tokens. tokens: (N,) bool, of all rows one after another."""
    return np.unique(np.searchsorted(np.cumsum(lengths), np.flatnonzero(tokens), side="right"))


def _firsts(lengths: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Of the tokens that are meant, the places of each row's first."""
    return np.unique(np.searchsorted(np.cumsum(lengths), np.flatnonzero(tokens), side="right"), return_index=True)[1]


def _check_values(part: _Part, table: Any) -> Iterator[Problem]:
    import pyarrow.compute as pc

    for name, allowed in ((schema.VERDICT, VERDICTS), (schema.FINISH_REASON, FINISH_REASONS)):
        if name in table.column_names:
            known = ", ".join(allowed)
            for row in np.flatnonzero(~np.isin(table[name].to_numpy(), allowed)).tolist():
                what = f"is {table[name][row].as_py()!r}; it is one of {known}"
                yield Problem(part.path, what, part.first + row, name)
    if schema.OUTCOME_REWARD not in table.column_names:
        return
    rewards = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    outside = np.flatnonzero((rewards < 0) | (rewards > 1))
    yield from part.problems(outside, schema.OUTCOME_REWARD, lambda row: f"is {rewards[row]:g}; it is within 0 and 1")
    if schema.VERDICT in table.column_names:
        failed = pc.equal(table[schema.VERDICT], "error").to_numpy()
        verdicts = table[schema.VERDICT]
        yield from part.problems(
            np.flatnonzero(np.isnan(rewards) & ~failed),
            schema.OUTCOME_REWARD,
            lambda row: f"is null, and the verdict is {verdicts[row].as_py()}",
        )


def _check_made(part: _Part, table: Any, footer: parquet.Footer) -> Iterator[Problem]:
    """Whether rows are what the provenance says: sampled by that policy, scored with that beta."""
    for record in footer.provenance:
        stage = record.get("stage")
        policy = (record.get("models") or {}).get("policy")
        if stage == "generate" and policy and schema.POLICY_FINGERPRINT in table.column_names:
            others = np.flatnonzero(table[schema.POLICY_FINGERPRINT].to_numpy() != policy)
            what = f"is of another policy than {policy}, which the provenance names"
            yield from part.problems(others, schema.POLICY_FINGERPRINT, lambda row, what=what: what)  # type: ignore[misc]
        scored = (schema.PRM_LOGPROBS, schema.REF_LOGPROBS, schema.PROCESS_REWARDS)
        beta = (record.get("config") or {}).get("beta")
        if stage == "score-prm" and beta is not None and set(scored) <= set(table.column_names):
            (prm, lengths), (ref, _), (rewards, _) = (parquet.flat_column(table, name) for name in scored)
            if len(prm) == len(ref) == len(rewards):
                off = np.abs(beta * (prm.astype(np.float64) - ref) - rewards)
                odd = _rows_of(lengths, off > REWARD_TOLERANCE * np.maximum(1, np.abs(rewards)))
                yield from part.problems(
                    odd,
                    schema.PROCESS_REWARDS,
                    lambda row, beta=beta: f"is not {beta:g} * (prm_logprobs - ref_logprobs)",  # type: ignore[misc]
                )
