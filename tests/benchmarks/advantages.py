"""What the estimators and the transformations of process rewards cost: seconds and peak memory beside `rloo`.

Each runs `compute-advantages` on the same shards in a process of its own, with the libraries imported beforehand, so
that the seconds are those of the stage: reading, computing, writing. They are seconds of CPU time, by one thread: other
work on the machine counts less. `rloo again` says how far two equal runs are apart. The memory is that of computing the
advantages alone, from a heap that gives back what is freed: reading and writing are the same for all, and take another
few hundred MiB each time.

    python tests/benchmarks/advantages.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, in_turn, peak_mib, ratio, reset_peak, resident_mib, run_process, show  # noqa: E402

if TYPE_CHECKING:
    from primecli.training.advantage_options import AdvantageOptions

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
    """CPU seconds of the command, after its imports, and the peak memory of computing the advantages."""
    import torch

    import primecli.stages.compute_advantages  # noqa: F401
    from primecli import cli

    torch.set_num_threads(1)
    computing = peak_of_computing(directory, words)  # first, in a heap that nothing has used
    with tempfile.TemporaryDirectory(dir=directory) as out:
        start = time.process_time()
        code = cli.run(["compute-advantages", str(directory / "score-prm"), "--out", out, "--quiet", *words])
        if code:
            raise SystemExit(code)
        return {"seconds": time.process_time() - start, "peak_mib": computing}


def peak_of_computing(directory: Path, words: list[str]) -> float:
    """MiB that the advantages of the batch take beyond the rollouts themselves."""
    import numpy as np

    from primecli.shards import schema
    from primecli.shards.parquet import Shard, read_footer
    from primecli.shards.rollouts import load_rollouts
    from primecli.training.advantages import batch_advantages

    shards = [Shard(path, read_footer(path)) for path in sorted((directory / "score-prm").glob("*.parquet"))]
    rollouts = load_rollouts(shards, [schema.OUTCOME_REWARD, schema.PROCESS_REWARDS], token_ids=False)
    options = options_of(words)
    ends = np.zeros(rollouts.starts()[-1], dtype=bool)
    for first, last in pairwise(rollouts.starts()):
        ends[first + STEP - 1 : last : STEP] = ends[last - 1] = True
    reset_peak()
    before = resident_mib()
    by_step = options.granularity == "step"
    batch_advantages(rollouts, options, ends if by_step else None, share=options.process_share)
    return peak_mib() - before


def options_of(words: list[str]) -> AdvantageOptions:
    """The options that these words of the command line give."""
    from primecli.options import declarations
    from primecli.training.advantage_options import AdvantageOptions

    declared = declarations(AdvantageOptions)
    given: dict[str, Any] = {}
    for flag, text in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        default = declared[name].default
        given[name] = float(text) if default is None else type(default)(text)
    options = AdvantageOptions(**given)
    options.check()
    return options


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
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
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
            Figure(f"{name}, peak memory", memory.median, str(memory), BASELINES[base], "<= 1.10"),
        ]
    first = found[""][0]
    title = (
        f"{options.rows} rollouts of {options.tokens} tokens, {options.rounds} rounds; rloo takes "
        f"{first.said['seconds']:.1f} s and {first.mebibytes:,.0f} MiB"
    )
    show(title, figures, options.json)


if __name__ == "__main__":
    main()
