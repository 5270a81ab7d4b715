"""How often each prompt was solved, from graded rollout shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from primecli.pipeline.inputs import Inputs
from primecli.shards import schema
from primecli.shards.parquet import Shard, read_table, require_columns


@dataclass(frozen=True, slots=True)
class PassRates:
    """rates: the mean outcome reward of each prompt's graded responses, by id. ungraded: responses without one."""

    rates: Mapping[str, float]
    ungraded: int


def graded_shards(arguments: Sequence[str], *, partial: bool, warn: Callable[[str], None]) -> list[Shard]:
    """The shards that --pass-rate names. Raises InputError where they were not graded, or their stage failed."""
    shards = []
    for argument in arguments:
        for shard in Inputs([argument], partial=partial, together=True, warn=warn):
            require_columns(shard.path, shard.footer.columns, [schema.PROMPT_ID, schema.OUTCOME_REWARD])
            shards.append(shard)
    return shards


def read_pass_rates(shards: Sequence[Shard]) -> PassRates:
    """The pass rates in shards; all samplings of a prompt count together."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    ungraded = 0
    for shard in shards:
        table = read_table(shard.path, [schema.PROMPT_ID, schema.OUTCOME_REWARD], expected=shard.footer)
        for prompt, reward in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if reward is None:
                ungraded += 1
                continue
            sums[prompt] = sums.get(prompt, 0.0) + reward
            counts[prompt] = counts.get(prompt, 0) + 1
    return PassRates({prompt: sums[prompt] / counts[prompt] for prompt in sums}, ungraded)
