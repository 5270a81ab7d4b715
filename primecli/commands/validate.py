"""`primecli validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from primecli.commands import _options as options


def validate(
    shards: options.Shards = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Problems to print; all are counted.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    partial: options.Partial = False,
) -> None:
    """Check shards: types, lengths of lists, whole groups, finite numbers, provenance.

    Prints each problem with its shard, row and column, and ends with exit code 3 when there is one. Rows are
    counted from 0. The rows are held against the hash that was taken when they were written.

    Example:

      primecli validate runs/1/compute-advantages
    """
    import json

    from primecli.errors import InputError
    from primecli.inputs import Inputs
    from primecli.progress import say
    from primecli.validating import Validator, problems_of

    validator = Validator()
    inputs = Inputs(shards or (), partial=partial, warn=lambda text: say("validate", text))
    found = list(problems_of(inputs, validator))
    if as_json:
        problems = [
            {"shard": str(problem.shard), "row": problem.row, "column": problem.column, "what": problem.what}
            for problem in found
        ]
        print(json.dumps({"shards": validator.shards, "rows": validator.rows, "problems": problems}, indent=2))
    else:
        for problem in found[:limit]:
            print(problem)
        if len(found) > limit:
            print(f"and {len(found) - limit} more (--limit)")
        if not found:
            print(f"{validator.rows} rows in {validator.shards} shards: nothing is wrong")
    if found:
        raise InputError(f"{len(found)} problem{'s' if len(found) > 1 else ''} in {validator.shards} shards")
