"""What is wrong with shards, all of it: each problem with its shard, row and column.

A few thousand rows are in memory at once. `validate_shards` prints what `primecli validate` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from primecli.analysis.footers import problems_of_footer
from primecli.errors import InputError, ReaderClosed
from primecli.printable import one_line
from primecli.shards import parquet, schema
from primecli.shards.batches import Listings
from primecli.shards.columns import flat_column
from primecli.shards.steps import problem_of_ends
from primecli.shards.streaming import BATCH_ROWS, raw_stream
from primecli.shards.texts import row_of_broken_text
from primecli.verifiers import VERDICTS

FINISH_REASONS = ("stop", "length")
REWARD_TOLERANCE = 1e-5  # of a process reward, relative above 1: the rounding of float32
LOGPROB_TOLERANCE = 1e-4  # nats above 0 that a log-probability may be, for the same reason


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    shard: the file.
    what: in words, such as `is null`.
    row: from 0; None where it is not about one row.
    column: None where it is not about one column.
    """

    shard: Path
    what: str
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        where = [f"row {self.row}"] if self.row is not None else []
        where += [self.column] if self.column is not None else []
        return f"{self.shard}: {', '.join(where)}: {self.what}" if where else f"{self.shard}: {self.what}"


def validate_shards(shards: Sequence[str], *, limit: int, as_json: bool, partial: bool) -> None:
    """Prints what is wrong with shards, and raises InputError where anything is.

    shards, partial: as on the command line. limit: problems to print; all are counted.
    """
    import contextlib

    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    inputs = Inputs(shards, partial=partial, together=True, warn=lambda text: say("validate", text))
    validator = Validator()
    shown: list[Problem] = []
    count = 0
    with contextlib.suppress(ReaderClosed):  # a reader that closed the pipe still gets the exit code
        for problem in (problem for path in inputs.paths() for problem in validator.check(path)):
            count += 1
            if count <= limit:
                shown.append(problem)
                if not as_json:
                    print(one_line(str(problem)), flush=True)
        _print_end(validator, shown, count, as_json)
    if count:
        raise InputError(f"{count:,} problem{'' if count == 1 else 's'} in {validator.extent()}")


def _print_end(validator: Validator, shown: Sequence[Problem], count: int, as_json: bool) -> None:
    """What is printed after the last shard: all of the JSON, or how many problems there are besides those shown."""
    import json

    if as_json:
        problems = [
            {"shard": str(problem.shard), "row": problem.row, "column": problem.column, "what": problem.what}
            for problem in shown
        ]
        numbers = {"shards": validator.shards, "rows": validator.rows, "problem_count": count}
        print(json.dumps({**numbers, "problems": problems}, indent=2))
    elif count > len(shown):
        print(f"and {count - len(shown):,} more (--limit)")
    elif not count:
        print(f"{validator.extent()}: no problems found")


class Validator:
    """Checks shards one after another, and remembers the groups of each directory: a group belongs to one shard only.

    batch_rows: rows that are held in memory at once.
    """

    def __init__(self, batch_rows: int = BATCH_ROWS) -> None:
        self.rows = 0
        self.shards = 0
        self._batch_rows = batch_rows
        self._listings = Listings()
        self._owners: dict[Path, dict[str, Path]] = {}  # by directory, the shard of each group

    def extent(self) -> str:
        """How much has been checked, in words."""
        return f"{self.rows:,} rows in {self.shards:,} shard{'' if self.shards == 1 else 's'}"

    def check(self, path: Path) -> Iterator[Problem]:
        """Everything that is wrong with one shard."""
        self.shards += 1
        try:
            footer = parquet.read_footer(path)
            self.rows += footer.rows
            if not footer.rows:
                yield Problem(path, "has no rows")
                return
            for what in problems_of_footer(path, footer, self._listings):
                yield Problem(path, what)
            for name in (schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS):
                if name not in footer.columns:
                    yield Problem(path, "is missing", column=name)
            yield from self._check_rows(path, footer)
        except InputError as error:
            yield Problem(path, error.message.removeprefix(f"{path}: "))

    def _check_rows(self, path: Path, footer: parquet.Footer) -> Iterator[Problem]:
        import pyarrow as pa

        groups = _SamplesByGroup()
        mistyped: set[str] = set()  # columns of another type, which are reported once
        try:
            for first_row, table in raw_stream(path, rows=self._batch_rows):
                batch = _Batch(path, first_row)
                valid = []
                for name in table.column_names:
                    problems = [] if name in mistyped else list(_check_type(batch, table, name))
                    yield from problems
                    mistyped |= {name} if any(problem.row is None for problem in problems) else set()
                    if not problems and name not in mistyped and name in schema.BY_NAME:
                        valid.append(name)
                table = table.select(valid)
                yield from _check_lists(batch, table)
                yield from _check_values(batch, table)
                yield from _check_steps(batch, table)
                yield from _check_provenance(batch, table, footer)
                groups.add(table, first_row)
        except (pa.ArrowException, OSError) as error:
            yield Problem(path, f"cannot be read: {' '.join(str(error).split())}")
            return
        yield from groups.check(path, self._owners.setdefault(path.parent, {}))
        expected = (footer.counts or {}).get("groups")
        if expected is not None and groups.complete and len(groups.samples) != expected:
            yield Problem(path, f"has {len(groups.samples)} groups, and its footer says {expected:g}")


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of a shard that are checked together.

    path: the shard.
    first_row: the number of the first of them in the shard.
    """

    path: Path
    first_row: int

    def problems(self, rows: Iterable[Any], column: str, what: Callable[[int], str]) -> Iterator[Problem]:
        """One problem a row.

        rows: counted from the start of the batch. what: says of such a row what is wrong with it.
        """
        for row in rows:
            yield Problem(self.path, what(int(row)), self.first_row + int(row), column)


class _SamplesByGroup:
    """The groups of a shard: their sample indices, first row and size, gathered a batch at a time.

    samples: the sample indices of each group, in the order of the rows.
    complete: whether every row so far had a group and a sample index.
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[int]] = {}
        self.complete = True
        self._first_row: dict[str, int] = {}
        self._size: dict[str, int] = {}

    def add(self, table: Any, first_row: int) -> None:
        """Adds the rows of a table, which start at this row of the shard."""
        if not {schema.GROUP_ID, schema.SAMPLE_INDEX} <= set(table.column_names):
            self.complete = False
            return
        groups, indices = (table[name].to_pylist() for name in (schema.GROUP_ID, schema.SAMPLE_INDEX))
        for row, (group, index) in enumerate(zip(groups, indices, strict=True)):
            self.samples.setdefault(group, []).append(index)
            self._first_row.setdefault(group, first_row + row)
        if schema.GROUP_SIZE in table.column_names:
            self._size.update(zip(groups, table[schema.GROUP_SIZE].to_pylist(), strict=True))

    def check(self, path: Path, owners: dict[str, Path]) -> Iterator[Problem]:
        """Problems of whole groups. owners: the shard of each group seen so far in the directory; is added to."""
        for group, samples in self.samples.items():
            row = self._first_row[group]
            size = self._size.get(group, len(samples))
            if sorted(samples) != list(range(size)):
                what = f"group {group} has the samples {sorted(samples)} of {size}"
                yield Problem(path, what, row, schema.SAMPLE_INDEX)
            if group in owners:
                yield Problem(path, f"group {group} is also in {owners[group]}", row, schema.GROUP_ID)
            owners.setdefault(group, path)


def _check_type(batch: _Batch, table: Any, name: str) -> Iterator[Problem]:
    column = schema.BY_NAME.get(name)
    if column is None:
        return
    broken = row_of_broken_text(table[name])
    if broken is not None:
        yield Problem(batch.path, "holds bytes that are not UTF-8", batch.first_row + broken, name)
        return
    type_in_file = table.schema.field(name).type
    if not type_in_file.equals(column.arrow_type()):
        yield Problem(batch.path, f"is {type_in_file}, and the schema says {column.type}", column=name)
    elif not column.nullable and table[name].null_count:
        nulls = np.flatnonzero(table[name].is_null().to_numpy())
        yield from batch.problems(nulls, name, lambda row: "is null")


def _check_lists(batch: _Batch, table: Any) -> Iterator[Problem]:
    lengths_by_name = {}  # of the lists without nulls
    for name in (schema.RESPONSE_IDS, schema.PROMPT_IDS, *schema.PER_RESPONSE_TOKEN):
        if name not in table.column_names:
            continue
        values, lengths = flat_column(table, name)
        nulls = table[name].combine_chunks().flatten().is_null().to_numpy(zero_copy_only=False)
        if nulls.any():
            yield from batch.problems(_rows_with(nulls, lengths), name, lambda row: "holds a null")
            continue
        lengths_by_name[name] = lengths
        if name in (schema.RESPONSE_IDS, schema.PROMPT_IDS):
            yield from _check_ids(batch, name, values, lengths)
        else:
            yield from _check_numbers(batch, name, values, lengths)
    if schema.RESPONSE_IDS not in lengths_by_name:
        return
    expected = lengths_by_name[schema.RESPONSE_IDS]
    for name in schema.PER_RESPONSE_TOKEN:
        if name in lengths_by_name:
            yield from _check_lengths(batch, name, lengths_by_name[name], expected)


def _check_ids(batch: _Batch, name: str, ids: np.ndarray, lengths: np.ndarray) -> Iterator[Problem]:
    yield from batch.problems(np.flatnonzero(lengths == 0), name, lambda row: "is empty")
    yield from batch.problems(_rows_with(ids < 0, lengths), name, lambda row: "holds a negative token id")


def _check_numbers(batch: _Batch, name: str, values: np.ndarray, lengths: np.ndarray) -> Iterator[Problem]:
    infinite = ~np.isfinite(values)
    rows, first_in_row = np.unique(_row_of_tokens(infinite, lengths), return_index=True)
    examples = dict(zip(rows, values[infinite][first_in_row], strict=True))
    yield from batch.problems(examples, name, lambda row: f"is {examples[row]} at a token")
    if name == schema.ROLLOUT_LOGPROBS:
        above = _rows_with(values > LOGPROB_TOLERANCE, lengths)
        yield from batch.problems(above, name, lambda row: "is above 0, which no log-probability is")


def _check_lengths(batch: _Batch, name: str, lengths: np.ndarray, expected: np.ndarray) -> Iterator[Problem]:
    yield from batch.problems(
        np.flatnonzero(lengths != expected),
        name,
        lambda row: f"has {lengths[row]} values for {expected[row]} response tokens",
    )


def _row_of_tokens(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(M,): the row of each token that is marked. tokens: (N,) bool, over all rows; lengths: (B,) tokens of each."""
    return np.searchsorted(np.cumsum(lengths), np.flatnonzero(tokens), side="right")


def _rows_with(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The rows that have a marked token, each once. tokens: (N,) bool, over all rows; lengths: (B,) tokens of each."""
    return np.unique(_row_of_tokens(tokens, lengths))


def _check_values(batch: _Batch, table: Any) -> Iterator[Problem]:
    import pyarrow.compute as pc

    for name, allowed in ((schema.VERDICT, VERDICTS), (schema.FINISH_REASON, FINISH_REASONS)):
        if name in table.column_names:
            texts = table[name]
            unknown = np.flatnonzero(~np.isin(texts.to_numpy(), allowed))
            choices = ", ".join(allowed)
            for row in unknown.tolist():
                what = f"is {texts[row].as_py()!r}; it must be one of {choices}"
                yield Problem(batch.path, what, batch.first_row + row, name)
    if schema.OUTCOME_REWARD not in table.column_names:
        return
    rewards = table[schema.OUTCOME_REWARD].to_numpy().astype(np.float64)
    outside = np.flatnonzero((rewards < 0) | (rewards > 1))
    yield from batch.problems(
        outside, schema.OUTCOME_REWARD, lambda row: f"is {rewards[row]:g}; it must be within 0 and 1"
    )
    if schema.VERDICT in table.column_names:
        verdicts = table[schema.VERDICT]
        failed = pc.equal(verdicts, "error").to_numpy()
        yield from batch.problems(
            np.flatnonzero(np.isnan(rewards) & ~failed),
            schema.OUTCOME_REWARD,
            lambda row: f"is null, though the verdict is {verdicts[row].as_py()}",
        )


def _check_steps(batch: _Batch, table: Any) -> Iterator[Problem]:
    """Whether steps end within their response, the last one with it, and the first wrong one is one of them."""
    if not {schema.STEP_ENDS, schema.RESPONSE_IDS} <= set(table.column_names):
        return
    _, lengths = flat_column(table, schema.RESPONSE_IDS)
    steps = table[schema.STEP_ENDS].to_pylist()
    for row, ends in enumerate(steps):
        if (problem := problem_of_ends(ends, int(lengths[row]))) is not None:
            yield Problem(batch.path, problem, batch.first_row + row, schema.STEP_ENDS)
    if schema.FIRST_WRONG_STEP in table.column_names:
        for row, first in enumerate(table[schema.FIRST_WRONG_STEP].to_pylist()):
            number = len(steps[row] or ())
            if first is not None and not -1 <= first < number:
                what = f"is {first}, and the response has {number} steps"
                yield Problem(batch.path, what, batch.first_row + row, schema.FIRST_WRONG_STEP)


def _check_provenance(batch: _Batch, table: Any, footer: parquet.Footer) -> Iterator[Problem]:
    """Whether rows are what the provenance says: sampled by that policy, scored with that beta."""
    for record in footer.provenance:
        stage = record.get("stage")
        policy = (record.get("models") or {}).get("policy")
        if stage == "generate" and policy and schema.POLICY_FINGERPRINT in table.column_names:
            yield from _check_policy(batch, table, policy)
        beta = (record.get("config") or {}).get("beta")
        if stage == "score-prm" and isinstance(beta, int | float):
            yield from _check_rewards(batch, table, beta)


def _check_policy(batch: _Batch, table: Any, policy: str) -> Iterator[Problem]:
    others = np.flatnonzero(table[schema.POLICY_FINGERPRINT].to_numpy() != policy)
    what = f"is not {policy}, the policy that the provenance names"
    yield from batch.problems(others, schema.POLICY_FINGERPRINT, lambda row: what)


def _check_rewards(batch: _Batch, table: Any, beta: float) -> Iterator[Problem]:
    names = (schema.PRM_LOGPROBS, schema.REF_LOGPROBS, schema.PROCESS_REWARDS)
    if not set(names) <= set(table.column_names):
        return
    (prm, lengths), (ref, _), (rewards, _) = (flat_column(table, name) for name in names)  # (N,) each
    if len(prm) != len(ref) or len(prm) != len(rewards):
        return  # the lengths are a problem of their own
    error = np.abs(beta * (prm.astype(np.float64) - ref) - rewards)
    wrong = _rows_with(error > REWARD_TOLERANCE * np.maximum(1, np.abs(rewards)), lengths)
    what = f"is not {beta:g} * (prm_logprobs - ref_logprobs)"
    yield from batch.problems(wrong, schema.PROCESS_REWARDS, lambda row: what)
