"""`primecli validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from primecli.options import Option, Partial, Shards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from primecli.analysis.validation import Problem, Validator


def validate(
    shards: Shards = (),
    limit: Annotated[int, Option("Problems to print; all are counted.", min=1)] = 20,
    as_json: Annotated[bool, Option("Print JSON.", flags="--json")] = False,
    partial: Partial = False,
) -> None:
    """Prints each problem with its shard, row and column, and ends with exit code 3 when there is one. Rows are
    counted from 0. The rows are held against the hash that was taken when they were written, against the policy that
    the provenance names, and process rewards against the log-probabilities that they come from.

    Example:

      \b
      primecli validate runs/1/compute-advantages
      primecli validate 'runs/*/*/'
    """
    import contextlib

    from primecli.analysis.validation import Validator
    from primecli.errors import InputError, ReaderClosed
    from primecli.models.token_text import printable
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    validator = Validator()
    inputs = Inputs(shards or (), partial=partial, together=True, warn=lambda text: say("validate", text))
    kept: list[Problem] = []
    count = 0
    with contextlib.suppress(ReaderClosed):  # who reads no further asks for the exit code all the same
        for problem in (problem for path in inputs.paths() for problem in validator.check(path)):
            count += 1
            if count <= limit:
                kept.append(problem)
                if not as_json:
                    print(printable(str(problem)).replace("\n", " "), flush=True)
        _close(validator, kept, count, as_json)
    if count:
        raise InputError(f"{count:,} problem{'' if count == 1 else 's'} in {_looked_at(validator)}")


def _looked_at(validator: Validator) -> str:
    return f"{validator.rows:,} rows in {validator.shards:,} shard{'' if validator.shards == 1 else 's'}"


def _close(validator: Validator, kept: Sequence[Problem], count: int, as_json: bool) -> None:
    """What is printed once all is seen."""
    import json

    if as_json:
        problems = [
            {"shard": str(problem.shard), "row": problem.row, "column": problem.column, "what": problem.what}
            for problem in kept
        ]
        numbers = {"shards": validator.shards, "rows": validator.rows, "problem_count": count}
        print(json.dumps({**numbers, "problems": problems}, indent=2))
    elif count > len(kept):
        print(f"and {count - len(kept):,} more (--limit)")
    elif not count:
        print(f"{_looked_at(validator)}: nothing is wrong")
