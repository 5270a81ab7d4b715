"""Looking at one shard of 100,000 rollouts: `inspect`, `stats`, `query` and `validate`, and pandas for the same.

Seconds are from the start of a process to its end, which for `inspect` is its screen; memory is the most that it held.
pandas reads only the columns that the question needs. Ratios are of one run, each side the best of --repeats:

    python tests/benchmarks/look.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from primecli.shards import parquet  # noqa: E402
from tests.benchmarks.made import write_rollouts  # noqa: E402

WORDS = 1000

INSPECT = """
import pandas as pd
rollouts = pd.read_parquet(shard, columns=["prompt", "verdict", "response_ids", "process_rewards"])
row = rollouts[rollouts.verdict == "wrong"].iloc[0]
print(row.prompt, pd.DataFrame({"token": row.response_ids, "reward": row.process_rewards}).to_string())
"""
SORTED = """
import pandas as pd
rollouts = pd.read_parquet(
    shard, columns=["prompt", "verdict", "outcome_reward", "response_ids", "process_rewards"]
)
score = rollouts.process_rewards.map(sum)
row = rollouts.loc[score.where(rollouts.outcome_reward < 0.5, -score).idxmax()]
print(row.prompt, pd.DataFrame({"token": row.response_ids, "reward": row.process_rewards}).to_string())
"""
STATS = """
import pandas as pd
columns = ["data_source", "group_id", "outcome_reward", "verdict", "response_ids", "process_rewards"]
rollouts = pd.read_parquet(shard, columns=columns)
rollouts["length"] = rollouts.response_ids.map(len)
rollouts["score"] = rollouts.process_rewards.map(sum)
print(rollouts.outcome_reward.mean(), rollouts.verdict.value_counts())
print(rollouts.groupby("group_id").outcome_reward.max().mean())
print(rollouts[["length", "score"]].quantile([0.05, 0.25, 0.5, 0.75, 0.95]))
"""
QUERY = """
import pandas as pd
rollouts = pd.read_parquet(shard, columns=["verdict", "process_rewards"])
print(rollouts.process_rewards.map(sum).groupby(rollouts.verdict).agg(["mean", "size"]))
"""
SQL = "SELECT verdict, avg(list_sum(process_rewards)), count(*) FROM rollouts GROUP BY 1"


def write_tokenizer(directory: Path) -> None:
    """A word a token."""
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordLevel({f"▁w{number}": number for number in range(WORDS)}, unk_token="▁w0"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(directory / "tokenizer.json"))


class Cost(NamedTuple):
    """What a process took: seconds, and the most megabytes that it held."""

    seconds: float
    megabytes: float


def run(command: list[str], repeats: int) -> Cost:
    """The least of some runs."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        error = process.stderr.read().decode() if process.stderr else ""
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{' '.join(command)[:200]}\n{error}")
        found.append(Cost(seconds, usage.ru_maxrss / 1000))
    return Cost(min(cost.seconds for cost in found), min(cost.megabytes for cost in found))


def main() -> None:
    """Makes the shard and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a response in the mean")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shard = directory / parquet.shard_name(0, 1)
        # in a process of its own: what a process held before its fork counts as memory of the child
        writing = multiprocessing.get_context("spawn").Process(
            target=write_rollouts, args=(shard, options.rows, options.tokens)
        )
        writing.start()
        writing.join()
        write_tokenizer(directory)
        print(
            f"{options.rows:,} rollouts of {options.tokens} tokens in the mean: "
            f"{shard.stat().st_size / 1e6:,.0f} MB in one shard"
        )
        look = [str(shard), "--tokenizer", str(directory)]
        cases: list[tuple[str, list[str], str | None]] = [
            ("inspect", ["inspect", *look, "--verdict", "wrong"], INSPECT),
            ("inspect --sort", ["inspect", *look, "--verdict", "wrong", "--sort", "disagreement"], SORTED),
            ("inspect --row", ["inspect", *look, "--row", str(options.rows - 1)], None),
            ("stats", ["stats", str(shard)], STATS),
            ("query", ["query", str(shard), SQL], QUERY),
            ("validate", ["validate", str(shard)], None),
        ]
        print(f"{'':16} {'primecli':>18} {'pandas':>18} {'time':>7} {'memory':>7}")
        for label, command, script in cases:
            ours = run([sys.executable, "-m", "primecli", *command], options.repeats)
            line = f"{label:16} {ours.seconds:7.2f} s {ours.megabytes:5,.0f} MB"
            if script is not None:
                theirs = run([sys.executable, "-c", f"shard = {str(shard)!r}\n{script}"], options.repeats)
                line += f" {theirs.seconds:7.2f} s {theirs.megabytes:5,.0f} MB"
                line += f" {ours.seconds / theirs.seconds:6.2f}x {ours.megabytes / theirs.megabytes:6.2f}x"
            print(line, flush=True)


if __name__ == "__main__":
    main()
