"""Looking at 100,000 rollouts: time to the whole answer and peak memory, as ratios to pandas on the same shards.

Each is a process of its own, start-up included. pandas reads the columns that the question needs, and no others.

    python tests/benchmarks/look.py [--rollouts 100000] [--tokens 300]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from primecli import schema, shards

GROUP = 8
PER_SHARD = 8192


def make_shards(directory: Path, rollouts: int, tokens: int) -> None:
    """Rollouts of about so many tokens each, with rewards, as the stages write them."""
    generator = np.random.default_rng(0)
    total = -(-rollouts // PER_SHARD)
    for number in range(total):
        rows = min(PER_SHARD, rollouts - number * PER_SHARD)
        lengths = generator.integers(tokens // 2, tokens + tokens // 2, rows)
        count = int(lengths.sum())
        outcome = generator.integers(0, 2, rows)
        lists = {
            schema.RESPONSE_IDS: generator.integers(0, 150_000, count).astype(np.int32),
            schema.ROLLOUT_LOGPROBS: -generator.exponential(size=count).astype(np.float32),
            schema.PROCESS_REWARDS: generator.normal(0, 0.01, count).astype(np.float32),
        }
        prompt = [[1, 2, 3]] * rows
        table = pa.table(
            {
                schema.GROUP_ID: [f"{number}-{row // GROUP}" for row in range(rows)],
                schema.SAMPLE_INDEX: pa.array(np.arange(rows) % GROUP, pa.int32()),
                schema.DATA_SOURCE: ["made"] * rows,
                schema.PROMPT: ["What is it?"] * rows,
                schema.RESPONSE: ["It is that. " * (tokens // 4)] * rows,
                schema.PROMPT_IDS: pa.array(prompt, pa.list_(pa.int32())),
                schema.FINISH_REASON: ["stop"] * rows,
                schema.OUTCOME_REWARD: pa.array(outcome, pa.float32()),
                schema.VERDICT: np.where(outcome == 1, "correct", "wrong"),
                **{name: shards.list_column(values, lengths, name) for name, values in lists.items()},
            }
        )
        path = directory / shards.shard_name(number, total)
        shards.write_shard(path, table, fingerprint="made", recipe={}, counts={}, provenance=[])


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MiB of a command."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    assert process.stderr is not None
    if status:
        raise SystemExit(f"{' '.join(command)[:200]}: {process.stderr.read().decode()}")
    process.stderr.close()
    process.returncode = 0
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "score-prm"
        directory.mkdir()
        # in a process of its own: a child counts what its parent held when it was forked
        maker = get_context("spawn").Process(target=make_shards, args=(directory, arguments.rollouts, arguments.tokens))
        maker.start()
        maker.join()
        size = sum(path.stat().st_size for path in directory.iterdir()) / 2**20
        print(f"{arguments.rollouts} rollouts of about {arguments.tokens} tokens, {size:.0f} MiB of shards")
        primecli = [sys.executable, "-m", "primecli"]
        read = f"import pandas as pd; frame = pd.read_parquet({str(directory)!r}, columns=COLUMNS); "
        score = "frame['process_rewards'].map(sum)"
        questions = [
            ("inspect, the first", [*primecli, "inspect", str(directory)], "", "print(frame.iloc[0])"),
            (
                "inspect --sort disagreement",
                [*primecli, "inspect", str(directory), "--sort", "disagreement"],
                "['process_rewards', 'outcome_reward']",
                f"print((-{score} * (2 * frame['outcome_reward'] - 1)).nlargest(1))",
            ),
            (
                "stats",
                [*primecli, "stats", str(directory)],
                "['group_id', 'outcome_reward', 'verdict', 'response_ids', 'process_rewards']",
                f"print(frame['verdict'].value_counts(), {score}.describe(), "
                "frame['response_ids'].map(len).describe())",
            ),
            (
                "query",
                [
                    *primecli,
                    "query",
                    str(directory),
                    "SELECT verdict, avg(list_sum(process_rewards)) FROM rollouts GROUP BY 1",
                ],
                "['verdict', 'process_rewards']",
                f"print({score}.groupby(frame['verdict']).mean())",
            ),
        ]
        print(f"{'':30}{'primecli':>20}{'pandas':>20}{'time':>8}{'memory':>8}")
        for name, command, columns, code in questions:
            ours = measure(command)
            theirs = measure([sys.executable, "-c", read.replace("COLUMNS", columns or "None") + code])
            cells = "".join(f"{f'{seconds:.2f} s {memory:.0f} MiB':>20}" for seconds, memory in (ours, theirs))
            print(f"{name:30}{cells}{ours[0] / theirs[0]:8.2f}{ours[1] / theirs[1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
