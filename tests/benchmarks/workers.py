"""score-prm on two workers against one process: rollouts a second on 16 shards, one thread each, start-up excluded.

There are two shards more for each worker to begin with, and the clock starts when those are out: by then every worker
has loaded what it needs. It stops with the last path. The model is large enough that computing takes nearly all
of the time; reading, writing and committing shards are in both sides.

    python tests/benchmarks/workers.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.made import make_model, write_rollouts  # noqa: E402
from tests.benchmarks.measuring import Figure, environment, in_turn, ratio, show  # noqa: E402

SHARDS = 16
GOAL = ">= 1.70"


def rate(work: Path, workers: int, rows: int) -> float:
    """Rollouts a second of score-prm over the last SHARDS shards of a directory. rows: in each shard."""
    shards = sorted((work / "filter").glob("*.parquet"))[-SHARDS - 2 * workers :]
    models = ["--prm", str(work / "prm"), "--ref", str(work / "ref")]
    options = ["--out", str(work / f"out-{workers}"), "--workers", str(workers), "--threads", "1", "--force", "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-m", "primecli", "score-prm", *models, *options, *map(str, shards)],
        env=environment(1),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as stage:
        assert stage.stdout is not None
        began = 0.0
        count = 0
        for count, _ in enumerate(stage.stdout, start=1):
            if count == 2 * workers:  # every worker is in the middle of its second shard or beyond
                began = time.perf_counter()
        took = time.perf_counter() - began
    if stage.returncode or count != len(shards):
        raise SystemExit(f"score-prm ended with code {stage.returncode} after {count} of {len(shards)} shards")
    return SHARDS * rows / took


def main() -> None:
    """Measures both sides in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8, help="rollouts in a shard")
    parser.add_argument("--tokens", type=int, default=256, help="of a response, on average")
    parser.add_argument("--width", type=int, default=512, help="of the models")
    parser.add_argument("--layers", type=int, default=4, help="of the models")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for seed, model in enumerate(("prm", "ref")):
            make_model(work / model, words=1000, width=options.width, layers=options.layers, seed=seed)
        (work / "filter").mkdir()
        total = SHARDS + 4
        for number in range(total):
            write_rollouts(
                work / "filter" / f"rollouts-{number:05d}-of-{total:05d}.parquet",
                options.rows,
                options.tokens,
                stages=("generate", "verify"),
                first_row=number * options.rows,
            )
        sides = {"one": lambda: rate(work, 1, options.rows), "two": lambda: rate(work, 2, options.rows)}
        found = in_turn(sides, options.rounds)
    gain = ratio(found["two"], found["one"])
    each = ", ".join(f"{value:.1f}" for value in found["two"])
    text = f"{gain}  {each} rollouts/s"
    baseline = f"one process: {', '.join(f'{value:.1f}' for value in found['one'])} rollouts/s"
    show(
        f"score-prm, {SHARDS} shards of {options.rows} rollouts of {options.tokens} tokens, width {options.width}",
        [Figure("two workers", gain.median, text, baseline, GOAL)],
        options.json,
    )


if __name__ == "__main__":
    main()
