"""`primecli query`."""

from __future__ import annotations

from typing import Annotated

from primecli.analysis.query import Format, print_query
from primecli.options import Option, Partial


def query(
    shards: Annotated[
        tuple[str, ...],
        Option(
            "Shards, directories or globs (none if paths come from stdin), then the query.",
            argument=True,
            metavar="[SHARDS]... SQL",
        ),
    ],
    output: Annotated[
        Format, Option("Print a table, CSV with a header, or JSON lines.", flags="--format")
    ] = Format.table,
    read_only: Annotated[bool, Option("Refuse SQL that writes, or that reads anything but the shards.")] = False,
    partial: Partial = False,
) -> None:
    """DuckDB runs the query; the shards are its table `rollouts`. The columns `filename` and `file_row_number` (from 0)
    are added to the shards' own; a column that some shards lack is NULL there. Needs the package duckdb.

    SQL can do more than look: COPY ... TO, EXPORT and ATTACH write files, read_csv, read_text and others read any file
    that you can read, and INSTALL and LOAD fetch and run an extension, after which httpfs reaches the network. Nothing
    of that happens unless the query says so. For a query that is not your own, --read-only refuses it: the query may
    be SELECT or EXPLAIN, and opens no file but the shards.

    Lists are 1-based: process_rewards[1] is the reward of the first token, list_sum(process_rewards) that of the
    response.

    Example:

      \b
      primecli query runs/1/score-prm \\
        "SELECT verdict, count(*), avg(list_sum(process_rewards)) FROM rollouts GROUP BY 1"
      primecli query 'runs/*/verify' --format csv "SELECT filename, avg(outcome_reward) FROM rollouts GROUP BY 1"
    """
    print_query(shards, format=output, partial=partial, read_only=read_only)
