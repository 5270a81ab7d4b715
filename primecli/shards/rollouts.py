"""The rollouts of a whole batch as arrays, gathered from its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from primecli.errors import InputError
from primecli.shards import parquet, schema
from primecli.shards.columns import flat_column
from primecli.shards.groups import check_groups, claim_groups
from primecli.shards.parquet import Shard

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Rollouts:
    """B rollouts with N response tokens in total, in the order of the shards.

    response_lengths: (B,) int64, tokens.
    group_index: (B,) int64, the number of each row's group, from 0.
    values: columns by name; (N,) for lists over response tokens, (B,) for numbers; null is NaN.
    strings: text columns by name, B strings each.
    shard_rows: number of rows of each shard.
    prompt_ids: token ids of each prompt, one int32 array per row; empty unless they were asked for.
    response_ids: token ids of each response, likewise.
    """

    response_lengths: np.ndarray
    group_index: np.ndarray
    values: dict[str, np.ndarray]
    strings: dict[str, list[str]]
    shard_rows: tuple[int, ...]
    prompt_ids: tuple[np.ndarray, ...] = ()
    response_ids: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.response_lengths)

    def starts(self) -> np.ndarray:
        """(B + 1,): the index among the N tokens at which each row starts; the last is N."""
        return np.concatenate([[0], np.cumsum(self.response_lengths)])

    def token_rows(self, rows: Sequence[int], name: str) -> np.ndarray:
        """The values of a per-token column for some rows, row after row."""
        starts = self.starts()
        values = self.values[name]
        return np.concatenate([values[starts[row] : starts[row + 1]] for row in rows])

    def sequences(self, *, temperature: bool = False) -> Sequences:
        """The token ids, as a model takes them; with each row's sampling temperature if `temperature` is True."""
        temperatures = self.values[schema.TEMPERATURE] if temperature else None
        return Sequences(self.prompt_ids, self.response_ids, temperatures)


def load_rollouts(parts: Sequence[Shard], columns: Sequence[str], *, token_ids: bool) -> Rollouts:
    """The rollouts of all shards: these columns, and the token ids if `token_ids` is True.

    Raises InputError for groups that are incomplete or in two shards, for lists that are not as long as their response,
    for values that are not finite, and for prompts or responses without tokens.
    """
    needed = list(dict.fromkeys([schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE_IDS, *columns]))
    if token_ids:
        needed.append(schema.PROMPT_IDS)
    tables = []
    owners: dict[str, Path] = {}
    for part in parts:
        extra = [schema.GROUP_SIZE] if schema.GROUP_SIZE in part.footer.columns else []
        table = parquet.read_table(part.path, [*needed, *extra], expected=part.footer)
        check_groups(table, part.path)
        claim_groups(table[schema.GROUP_ID].unique().to_pylist(), part.path, owners)
        check_lists(table, part.path)
        _check_rewards(table, part.path)
        tables.append(table.select(needed))
    return _gather(tables, columns, token_ids=token_ids)


STORED_REFERENCES = {"rollout": schema.ROLLOUT_LOGPROBS, "shards": schema.REF_LOGPROBS}
"""Columns of the shards that --ref can take the reference's log-probabilities from, in place of a model."""


def reference_columns(ref: str) -> list[str]:
    """The columns that --ref needs; none if it names a model."""
    if ref not in STORED_REFERENCES:
        return []
    return [STORED_REFERENCES[ref], *(schema.SAMPLED_WITH if ref == "rollout" else ())]


def check_untouched_distribution(values: Mapping[str, np.ndarray], option: str, *, temperature: bool = True) -> None:
    """Raises InputError where rollouts were sampled with top-p, top-k, or a temperature other than 1.

    Their `rollout_logprobs` then belong to another distribution than the model's own.

    values: the columns of `schema.SAMPLED_WITH`, (B,) each. option: the option that needs it, for the message.
    temperature: whether a temperature other than 1 matters.
    """
    plain = {schema.TOP_P: 1.0, schema.TOP_K: 0, **({schema.TEMPERATURE: 1.0} if temperature else {})}
    for name, expected in plain.items():
        odd = values[name][values[name] != expected]
        if len(odd):
            raise InputError(
                f"{option} needs rollouts sampled with {name} {expected:g}, but some were sampled with {odd[0]:g}",
                "their rollout_logprobs belong to another distribution than the model's",
            )


def truncated_sampling(values: Mapping[str, np.ndarray]) -> str | None:
    """A warning about probability ratios to rollouts that were sampled with top-p or top-k; None where none were.

    A trainer's log-probabilities cover the whole vocabulary. Truncation excluded some tokens and gave their
    probability to the others, so every ratio is too small; and which tokens could be sampled at all depends on the
    weights at the time.

    values: the columns `top_p` and `top_k`, (B,) each.
    """
    truncated = (values[schema.TOP_P] < 1) | (values[schema.TOP_K] > 0)
    if not truncated.any():
        return None
    return (
        f"{int(truncated.sum())} of {len(truncated)} rollouts were sampled with top-p or top-k: ratios between the "
        "trainer's and the sampler's probabilities are biased"
    )


def check_lists(table: pa.Table, path: object, *, first_row: int = 0) -> None:
    """Raises InputError unless every per-token list is finite and as long as its response, and no row is empty.

    first_row: the table's first row in the shard, for the message.
    """
    _, lengths = flat_column(table, schema.RESPONSE_IDS)
    for name in (schema.RESPONSE_IDS, schema.PROMPT_IDS):
        if name in table.column_names:
            if table[name].combine_chunks().flatten().null_count:
                raise InputError(f"{path}: {name} holds a null token id")
            _, sizes = flat_column(table, name)
            if (sizes == 0).any():
                raise InputError(f"{path}: {name} is empty at row {first_row + int(np.argmin(sizes))}")
    for name in schema.PER_RESPONSE_TOKEN:
        if name not in table.column_names:
            continue
        values, sizes = flat_column(table, name)
        if (sizes != lengths).any():
            row = int(np.argmax(sizes != lengths))
            raise InputError(
                f"{path}: {name} has {sizes[row]} values for {lengths[row]} response tokens at row {first_row + row}"
            )
        if not np.isfinite(values).all():
            token = int(np.argmin(np.isfinite(values)))
            row = int(np.searchsorted(np.cumsum(sizes), token, side="right"))
            raise InputError(f"{path}: {name} is {values[token]} at row {first_row + row}")


def _check_rewards(table: pa.Table, path: Path) -> None:
    """Raises InputError for an outcome reward outside [0, 1]. NaN has been refused before, and null is unknown."""
    if schema.OUTCOME_REWARD in table.column_names:
        rewards = table[schema.OUTCOME_REWARD].to_numpy()
        outside = (rewards < 0) | (rewards > 1)
        if outside.any():
            row = int(np.argmax(outside))
            raise InputError(f"{path}: outcome_reward is {rewards[row]:g} at row {row}; it must be between 0 and 1")


def _gather(tables: list[pa.Table], columns: Sequence[str], *, token_ids: bool) -> Rollouts:
    import pyarrow as pa

    whole = pa.concat_tables(tables)
    _, lengths = flat_column(whole, schema.RESPONSE_IDS)
    _, group_index = np.unique(np.asarray(whole[schema.GROUP_ID].to_pylist()), return_inverse=True)
    values: dict[str, np.ndarray] = {}
    strings: dict[str, list[str]] = {}
    for name in columns:
        column = whole[name]
        if pa.types.is_list(column.type):
            values[name] = np.array(flat_column(whole, name)[0])  # a copy, since Arrow's memory is read-only
        elif pa.types.is_string(column.type):
            strings[name] = column.to_pylist()
        else:
            values[name] = np.array(column.to_numpy())
    return Rollouts(
        response_lengths=lengths.astype(np.int64),
        group_index=group_index.astype(np.int64),
        values=values,
        strings=strings,
        shard_rows=tuple(table.num_rows for table in tables),
        prompt_ids=split_rows(whole, schema.PROMPT_IDS) if token_ids else (),
        response_ids=split_rows(whole, schema.RESPONSE_IDS) if token_ids else (),
    )


def split_rows(table: pa.Table, name: str) -> tuple[np.ndarray, ...]:
    """The lists of a column, one array per row."""
    values, lengths = flat_column(table, name)
    return tuple(np.split(values, np.cumsum(lengths)[:-1]))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Prompts with their responses, as token ids.

    prompt_ids: one int32 array per row.
    response_ids: one int32 array per row.
    temperature: (B,) float32, what each row's logits are divided by; None for 1.
    """

    prompt_ids: Sequence[np.ndarray]
    response_ids: Sequence[np.ndarray]
    temperature: np.ndarray | None = None

    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and response together."""
        return [
            len(prompt) + len(response) for prompt, response in zip(self.prompt_ids, self.response_ids, strict=True)
        ]
