"""What a shard costs `compute-advantages` when it is one of 1,000 instead of one of 10: seconds, and bytes of footer.

Every output depends on the whole batch, so it has to say what that was, and this must not grow with the batch. The
shards are small, so that what grows with their number would show; each has the same rollouts in both sizes. Seconds
are CPU seconds of the command in one process, after its imports. The command again, `lineage` and `validate` read what
it has written.

    python tests/benchmarks/many_shards.py
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, in_turn, ratio, run_process, show  # noqa: E402

SIZES = (10, 1000)
ROWS, TOKENS = 16, 64  # of a shard: rollouts, and response tokens in the mean
COMMANDS = {
    "compute-advantages": ["compute-advantages", "score-prm", "--quiet"],
    "the same again": ["compute-advantages", "score-prm", "--quiet"],
    "lineage": ["lineage", "compute-advantages"],
    "validate": ["validate", "compute-advantages"],
}


def make(directory: Path, shards: int) -> None:
    """Shards as score-prm leaves them."""
    from primecli.shards import parquet
    from tests.benchmarks.made import write_rollouts

    (directory / "score-prm").mkdir(parents=True)
    for number in range(shards):
        path = directory / "score-prm" / parquet.shard_name(number, shards)
        write_rollouts(path, ROWS, TOKENS, stages=("generate", "verify", "score-prm"), first_row=number * ROWS)


def run_all(directory: Path) -> dict[str, float]:
    """CPU seconds of each command, by name, and the bytes of all footers that were written."""
    import pyarrow.parquet as pq
    import torch

    import primecli.stages.compute_advantages
    import primecli.training.advantages  # noqa: F401
    from primecli import cli
    from primecli.shards.parquet import FOOTER_KEY

    torch.set_num_threads(1)
    os.chdir(directory)
    with contextlib.redirect_stdout(io.StringIO()):  # the first time, libraries set themselves up
        for line in ("compute-advantages few --quiet --out first", "lineage first", "validate first"):
            cli.run(line.split())
    found: dict[str, float] = {}
    for name, words in COMMANDS.items():
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            code = cli.run(words)
        found[name] = time.process_time() - start
        if code and name != "validate":  # made by hand, the shards do not have all that `validate` asks for
            raise SystemExit(code)
    made = sorted((directory / "compute-advantages").glob("*.parquet"))
    found["bytes"] = sum(len(pq.read_metadata(path).metadata[FOOTER_KEY]) for path in made)
    found["shards"] = len(made)
    return found


def one_round(directory: Path, shards: int) -> dict[str, float]:
    """The costs of a shard, of so many, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        os.symlink(directory / str(shards) / "score-prm", Path(name) / "score-prm")
        os.symlink(directory / str(SIZES[0]) / "score-prm", Path(name) / "few")
        said = run_process([sys.executable, __file__, "--directory", name]).said
    if said["shards"] != shards:
        raise SystemExit(f"{said['shards']} shards were written instead of {shards}")
    return {what: value / shards for what, value in said.items()}


def main() -> None:
    """Measures some rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        print(json.dumps(run_all(options.directory)))
        return
    with tempfile.TemporaryDirectory() as name:
        for shards in SIZES:
            make(Path(name) / str(shards), shards)
        found = in_turn({str(shards): partial(one_round, Path(name), shards) for shards in SIZES}, options.rounds)
    few, many = (found[str(shards)] for shards in SIZES)
    figures = []
    for what in (*COMMANDS, "bytes"):
        compared = ratio([cost[what] for cost in many], [cost[what] for cost in few])
        cost = (
            f"{1000 * side[0][what]:.1f} ms" if what != "bytes" else f"{side[0][what]:,.0f}" for side in (few, many)
        )
        label = "footer" if what == "bytes" else what
        text = f"{compared}  {' -> '.join(cost)}"
        figures.append(
            Figure(f"{label}, a shard of {SIZES[1]}", compared.median, text, f"one of {SIZES[0]}", "<= 2.00")
        )
    show(f"{ROWS} rollouts of {TOKENS} tokens a shard, {options.rounds} rounds", figures, options.json)


if __name__ == "__main__":
    main()
