"""A stage that takes the place of score-prm and knows which steps are wrong: the best that process rewards could be.

The token that ends a wrong line, which is the last character of its result, has the reward -1, every other token 0.
Reads the paths of shards from stdin and writes shards with the column process_rewards to the directory `oracle` beside
them, like any stage: it can be killed and rerun.

Example:
    primecli filter runs/1/verify | python examples/arithmetic/oracle.py | primecli compute-advantages --process-gamma 0
"""

from __future__ import annotations

import argparse
import sys
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from make_task import check_steps

from primecli.errors import PrimecliError
from primecli.pipeline.options import StageOptions
from primecli.pipeline.stage_run import StageRun
from primecli.shards import schema
from primecli.shards.columns import with_columns

if TYPE_CHECKING:
    import pyarrow as pa


def line_ends(response: str) -> list[int]:
    """The index of the last character of each line, before its newline; of an empty line, that of its newline.

    A character is a token. The end-of-sequence token comes after all of them.

    >>> line_ends("7+5=2\\n2*3=6")
    [4, 10]
    """
    lines = response.split("\n")
    starts = accumulate([0, *(len(line) + 1 for line in lines[:-1])])
    return [start + max(len(line) - 1, 0) for start, line in zip(starts, lines, strict=True)]


def rewards_of(prompt: str, response: str, length: int) -> list[float]:
    """The oracle's reward of each of `length` tokens.

    A line that `check_steps` calls wrong and that the response does not have is blamed on its last token.

    >>> rewards_of("7 +5 mod 10:", "7+5=3\\n\\\\boxed{3}", 16)[:6]
    [0.0, 0.0, 0.0, 0.0, -1.0, 0.0]
    """
    rewards = [0.0] * length
    ends = line_ends(response)
    for index, right in enumerate(check_steps(prompt, response)):
        if not right:
            rewards[min(ends[index] if index < len(ends) else length - 1, length - 1)] = -1.0
    return rewards


def scored(table: pa.Table) -> pa.Table:
    """The table with the oracle's process rewards."""
    columns = (table[name].to_pylist() for name in (schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS))
    rewards = [rewards_of(prompt, response, len(ids)) for prompt, response, ids in zip(*columns, strict=True)]
    return with_columns(table, {schema.PROCESS_REWARDS: rewards})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", metavar="SHARDS", help="instead of paths from stdin")
    parser.add_argument("--out", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    options = StageOptions(shards=tuple(arguments.shards), out=arguments.out, quiet=True)
    with StageRun("oracle", options) as run:
        for shard in run.shards([schema.PROMPT, schema.RESPONSE, schema.RESPONSE_IDS]):
            if not run.skip(shard):
                run.commit(scored(run.read(shard)))


if __name__ == "__main__":
    try:
        main()
    except PrimecliError as error:
        print(f"oracle.py: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
