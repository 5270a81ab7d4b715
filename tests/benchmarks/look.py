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

from primecli import schema, shards  # noqa: E402

WORDS = 1000
GROUP = 4
LISTS = [name for name in schema.PER_RESPONSE_TOKEN if name != schema.VALUES]

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


def write(path: Path, rows: int, tokens: int) -> None:
    """One shard with every column of a whole iteration; responses are `tokens` long in the mean.

    Runs in a process of its own: what a process held before its fork counts as memory of the child.
    """
    import numpy as np
    import pyarrow as pa

    generator = np.random.default_rng(0)
    lengths = generator.integers(tokens // 4, tokens * 7 // 4, rows, endpoint=True)
    total = int(lengths.sum())
    outcome = (generator.random(rows) < 0.4).astype(np.float32)
    numbers = np.arange(rows)
    texts = {
        schema.PROMPT_ID: [f"p{number // GROUP}" for number in numbers],
        schema.GROUP_ID: [f"p{number // GROUP}@{number // GROUP}" for number in numbers],
        schema.DATA_SOURCE: ["numina" if number // GROUP % 3 else "gsm8k" for number in numbers],
        schema.ABILITY: ["math"] * rows,
        schema.GROUND_TRUTH: [str(number // GROUP) for number in numbers],
        schema.PROMPT: [f"question {number // GROUP}: " + "word " * 60 for number in numbers],
        schema.RESPONSE: [
            " ".join(f"w{number % WORDS}" for _ in range(length)) for number, length in enumerate(lengths)
        ],
        schema.FINISH_REASON: ["stop"] * rows,
        schema.POLICY_FINGERPRINT: ["0" * 32] * rows,
        schema.VERDICT: ["correct" if right else "wrong" for right in outcome],
        schema.EXTRACTED_ANSWER: [str(number) for number in numbers],
    }
    lists = {
        schema.PROMPT_IDS: (generator.integers(0, WORDS, 80 * rows), np.full(rows, 80)),
        schema.RESPONSE_IDS: (generator.integers(0, WORDS, total), lengths),
        **{name: (generator.normal(size=total).astype(np.float32) * 0.01, lengths) for name in LISTS},
    }
    lists[schema.ROLLOUT_LOGPROBS] = (-np.abs(lists[schema.ROLLOUT_LOGPROBS][0]), lengths)
    columns = {
        **texts,
        **{name: shards.list_column(values, sizes, name) for name, (values, sizes) in lists.items()},
        schema.GROUP_SIZE: np.full(rows, GROUP),
        schema.SAMPLE_INDEX: numbers % GROUP,
        schema.TEMPERATURE: np.ones(rows),
        schema.TOP_P: np.ones(rows),
        schema.TOP_K: np.zeros(rows),
        schema.OUTCOME_REWARD: outcome,
    }
    names = [column.name for column in schema.COLUMNS if column.name in columns]
    fields = {name: schema.BY_NAME[name].arrow_type() for name in names}
    arrays = [
        columns[name] if isinstance(columns[name], pa.Array) else pa.array(columns[name]).cast(fields[name])
        for name in names
    ]
    table = pa.Table.from_arrays(arrays, schema=schema.arrow_schema(names))
    record = {"stage": "generate", "command": "", "config": {}, "fingerprint": "f", "inputs": []}
    shards.write_shard(path, table, fingerprint="f", recipe={}, counts={}, provenance=[record])


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
        shard = directory / shards.shard_name(0, 1)
        writing = multiprocessing.get_context("spawn").Process(target=write, args=(shard, options.rows, options.tokens))
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
