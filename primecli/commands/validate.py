"""`primecli validate`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option, Partial, Shards


def validate(
    shards: Shards = (),
    limit: Annotated[int, Option("How many problems to print; all are counted.", min=1)] = 20,
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
    partial: Partial = False,
) -> None:
    """Prints each problem with its shard, row and column, and ends with exit code 3 if there is any. Rows are counted
    from 0. They are compared with the hash that was taken when they were written and with the policy that the
    provenance names, and process rewards with the log-probabilities that they were computed from.

    Example:

      \b
      primecli validate runs/1/compute-advantages
      primecli validate 'runs/*/*/'
    """
    from primecli.analysis.validation import validate_shards

    validate_shards(shards, limit=limit, as_json=as_json, partial=partial)
