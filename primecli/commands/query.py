"""`primecli query`."""

from __future__ import annotations

from typing import Annotated

from primecli.analysis.query import Format, print_query
from primecli.options import Option, Partial


def query(
    shards: Annotated[
        tuple[str, ...],
        Option(
            "Shards, directories or globs, or none where paths come from stdin; then SQL.",
            argument=True,
            metavar="[SHARDS]... SQL",
        ),
    ],
    output: Annotated[Format, Option("A table, CSV with a header, or JSON lines.", flags="--format")] = Format.table,
    partial: Partial = False,
) -> None:
    """DuckDB runs it; the shards are the table `rollouts`, with the columns `filename` and `file_row_number` (from 0)
    beside their own; a column that some shards do not have is NULL there. Needs the package duckdb. Nothing is written,
    unless the SQL itself says COPY ... TO, and no extension is loaded, so that nothing goes over the network.

    Lists are 1-based: process_rewards[1] is the first token's, list_sum(process_rewards) a response's.

    Example:

      \b
      primecli query runs/1/score-prm \\
        "SELECT verdict, count(*), avg(list_sum(process_rewards)) FROM rollouts GROUP BY 1"
      primecli query 'runs/*/verify' --format csv "SELECT filename, avg(outcome_reward) FROM rollouts GROUP BY 1"
    """
    print_query(shards, format=output, partial=partial)
