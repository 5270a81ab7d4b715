"""What the estimators and the transformations of process rewards cost: seconds and peak memory beside `rloo`.

Each runs `compute-advantages` on the same shards in a process of its own, with the libraries imported beforehand, so
that the seconds are those of the stage: reading, computing, writing. They are seconds of CPU time, by one thread: other
work on the machine counts less. `rloo again` says how far two equal runs are apart.

    python tests/benchmarks/advantages.py
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, in_turn, peak_mib, ratio, reset_peak, run_process, show  # noqa: E402

STEP = 40  # tokens of a step
SHARDS = 4
AGAIN = "--estimator rloo"
BASELINES = {"": "rloo", "--granularity step": "rloo by step"}
VARIANTS = (
    "",
    AGAIN,
    "--estimator grpo",
    "--estimator gdpo",
    "--estimator maxrl",
    "--estimator reinforce++",
    "--estimator reinforce++-baseline",
    "--process-form redistributed",
    "--process-form min",
    "--process-form wrong-centered",
    "--process-baseline recipe",
    "--process-baseline per-token",
    "--process-baseline pooled",
    "--process-baseline values --process-lambda 0.95",
    "--process-baseline position",
    "--process-gamma 0.99",
    "--process-share 0.3",
    "--granularity step",
    "--granularity step --process-form redistributed",
    "--granularity step --process-form min --process-baseline per-token",
    "--granularity step --process-baseline pooled --process-lambda 0",
    "--granularity step --process-baseline position",
)


def make(directory: Path, rows: int, tokens: int) -> None:
    """Shards as score-prm leaves them, with the ends of steps."""
    import pyarrow as pa

    from primecli.shards import parquet, schema
    from tests.benchmarks.made import write_rollouts

    for number in range(SHARDS):
        path = directory / parquet.shard_name(number, SHARDS)
        per_shard = rows // SHARDS
        stages = ("generate", "verify", "score-prm")
        write_rollouts(path, per_shard, tokens, spread=0.33, stages=stages, first_row=number * per_shard)
        table = parquet.read_table(path)
        lengths = [len(ids) for ids in table[schema.RESPONSE_IDS].to_pylist()]
        ends = [sorted({*range(STEP - 1, length, STEP), length - 1}) for length in lengths]
        table = table.append_column(schema.STEP_ENDS, pa.array(ends, pa.list_(pa.int32())))
        parquet.write_shard(path, table, fingerprint="f", recipe={}, counts={}, provenance=[])


def run_one(directory: Path, words: list[str]) -> dict[str, float]:
    """Seconds and peak memory of one command, after its imports."""
    import torch

    import primecli.stages.compute_advantages
    import primecli.training.advantages  # noqa: F401
    from primecli import cli

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=directory) as out:
        reset_peak()
        start = time.process_time()
        code = cli.run(["compute-advantages", str(directory / "score-prm"), "--out", out, "--quiet", *words])
        if code:
            raise SystemExit(code)
        return {"seconds": time.process_time() - start, "peak_mib": peak_mib()}


def main() -> None:
    """Measures some rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="rollouts")
    parser.add_argument("--tokens", type=int, default=2000, help="response tokens in the mean")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--words", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        print(json.dumps(run_one(options.directory, options.words.split())))
        return
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "score-prm").mkdir()
        make(Path(directory) / "score-prm", options.rows, options.tokens)
        command = [sys.executable, __file__, "--directory", directory]
        sides = {words: partial(run_process, [*command, f"--words={words}"]) for words in VARIANTS}
        found = in_turn(sides, options.rounds)
    figures = []
    for words, costs in found.items():
        base = "--granularity step" if words.startswith("--granularity step") else ""
        seconds = ratio(*([float(cost.said["seconds"]) for cost in side] for side in (costs, found[base])))
        memory = ratio([cost.mebibytes for cost in costs], [cost.mebibytes for cost in found[base]])
        name = "rloo again" if words == AGAIN else words or "rloo"
        figures += [
            Figure(f"{name}, seconds", seconds.median, str(seconds), BASELINES[base], "<= 1.50"),
            Figure(f"{name}, peak memory", memory.median, str(memory), BASELINES[base], "<= 1.05"),
        ]
    first = found[""][0]
    title = (
        f"{options.rows} rollouts of {options.tokens} tokens, {options.rounds} rounds; rloo takes "
        f"{first.said['seconds']:.1f} s and {first.mebibytes:,.0f} MiB"
    )
    show(title, figures, options.json)


if __name__ == "__main__":
    main()
