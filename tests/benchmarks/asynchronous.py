"""The arithmetic example with ASYNC=1 beside the same example without: time per iteration, and held-out accuracy.

Both start from the same SFT model and take the same prompts, samples and steps. The asynchronous loop samples the
rollouts of an iteration during the update of the one before, with the policy of one update before.

    python tests/benchmarks/asynchronous.py                              3 seeds: some 25 minutes on two idle cores
    python tests/benchmarks/asynchronous.py --iterations 3 --seeds 0     to try it

Time is taken from the end of the first iteration to the end of the last, without evaluations, which come afterwards.
Each stage has one thread. Two pipelines can only be faster than one where they have cores, or GPUs, of their own: the
table says how busy others kept the cores just before each run.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, in_turn, ratio, run_process, show  # noqa: E402

EXAMPLE = ROOT / "examples" / "arithmetic"
LOOK_SECONDS = 3.0  # for which the cores are looked at before a run
BUSY = 0.2  # of a core, by others: above it the times are not worth much


@dataclass(frozen=True)
class Measured:
    """One run.

    seconds: per iteration. others: how many cores other processes kept busy just before. accuracy: held-out, by
    iteration. rollouts: sampled in all. staleness: of each iteration, in updates. capped: the share of tokens, over all
    iterations, whose importance weight was at the cap.
    """

    seconds: float
    others: float
    accuracy: dict[int, float]
    rollouts: int
    staleness: list[int]
    capped: float


def busy_cores(seconds: float) -> float:
    """How many of the cores that this process may use are busy, over some seconds in which it sleeps."""
    before = _core_times()
    time.sleep(seconds)
    busy = 0.0
    for core, (idle, total) in _core_times().items():
        idle_before, total_before = before[core]
        busy += 1 - (idle - idle_before) / max(1, total - total_before)
    return busy


def _core_times() -> dict[int, tuple[int, int]]:
    """Idle and total time of each of our cores since the start of the machine, in ticks."""
    times = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in os.sched_getaffinity(0):
            ticks = list(map(int, fields[:8]))  # user, nice, system, idle, iowait, irq, softirq, steal
            times[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return times


class Loops:
    """The two loops, in a directory, from one SFT model."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self.work = options.work or directory / "work"
        self._make([f"{self.work}/.done/sft"])

    def _make(self, words: Sequence[str]) -> None:
        warm = [sys.executable, "-m", "primecli", "warm", "--"]
        make = ["make", "-C", str(EXAMPLE), f"PYTHON={sys.executable}", f"WORK={self.work}", *words]
        run_process([*warm, *make])

    def run(self, seed: int, *, asynchronous: bool) -> Measured:
        """Trains from the SFT model, then evaluates; see `Measured`."""
        given = self.options
        kind = "async" if asynchronous else "sync"
        runs = self.directory / kind
        words = [
            f"RUNS={runs}",
            f"SEED={seed}",
            f"ITERATIONS={given.iterations}",
            f"PROMPTS={given.prompts}",
            "KEEP=all",
        ]
        words += ["ASYNC=1"] if asynchronous else []
        run = runs / f"rloo-process-seed{seed}"
        timed = [*words, f"EVAL_EVERY={given.iterations}"]
        self._make([*timed, f"{run}/.done/eval-0"])
        others = busy_cores(LOOK_SECONDS)
        self._make([*timed, f"{run}/.done/{given.iterations}"])
        first, last = ((run / ".done" / str(number)).stat().st_mtime for number in (1, given.iterations))
        self._make([*words, f"EVAL_EVERY={given.eval_every}"])
        with open(run / "accuracy.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        updates = [
            json.loads((run / f"policy/{number}/_summary.json").read_text())["metrics"]
            for number in range(1, given.iterations + 1)
        ]
        return Measured(
            seconds=(last - first) / (given.iterations - 1),
            others=others,
            accuracy={int(row["iteration"]): float(row["heldout_accuracy"]) for row in rows if row["heldout_accuracy"]},
            rollouts=int(rows[-1]["rollouts"]),
            staleness=[int(update["staleness"]) for update in updates],
            capped=statistics.fmean(update.get("importance_capped", 0.0) for update in updates),
        )


def check(sync: Sequence[Measured], asynchronous: Sequence[Measured]) -> None:
    """SystemExit where the two loops did not do the same work, or the second was not asynchronous."""
    for one, other in zip(sync, asynchronous, strict=True):
        if one.rollouts != other.rollouts:
            raise SystemExit(f"{one.rollouts} rollouts without ASYNC, {other.rollouts} with it")
        if any(one.staleness) or other.staleness != [0, *[1] * (len(other.staleness) - 1)]:
            raise SystemExit(f"updates behind: {one.staleness} without ASYNC, {other.staleness} with it")


def mean_and_error(values: Sequence[float]) -> str:
    """The mean, with its standard error where there is more than one value.

    >>> mean_and_error([0.5, 0.7]), mean_and_error([0.5])
    ('0.600 ± 0.100', '0.500')
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def report(options: argparse.Namespace, found: dict[str, list[Measured]]) -> None:
    """Prints the ratio of the times, each run, and held-out accuracy by iteration."""
    sync, asynchronous = found["sync"], found["async"]
    value = ratio([run.seconds for run in asynchronous], [run.seconds for run in sync])
    middle = [statistics.median(run.seconds for run in runs) for runs in (asynchronous, sync)]
    figure = Figure(
        "time per iteration, ASYNC=1", value.median, f"{value}  {middle[0]:.2f} s", f"without it {middle[1]:.2f} s"
    )
    title = (
        f"{options.iterations} iterations of {options.prompts} prompts × 4 samples, one thread a stage, under primecli "
        f"warm, {len(options.seeds)} seeds"
    )
    runs = {name: [asdict(run) for run in each] for name, each in found.items()}
    show(title, [figure], options.json, seeds=options.seeds, runs=runs)
    print("\nseed  loop    s per iteration  held-out accuracy at the end  weights at the cap  cores busy with others")
    for index, seed in enumerate(options.seeds):
        for name, each in found.items():
            run = each[index]
            print(
                f"{seed:<5} {name:7} {run.seconds:15.2f} {run.accuracy[options.iterations]:29.3f} {run.capped:19.2%}"
                f" {run.others:23.2f}"
            )
    print("\nheld-out accuracy, mean and standard error over seeds\niteration   without ASYNC    with it")
    for iteration in sorted(sync[0].accuracy):
        cells = [mean_and_error([run.accuracy[iteration] for run in each]) for each in (sync, asynchronous)]
        print(f"{iteration:<11} {cells[0]:16} {cells[1]}")
    loudest = max(run.others for run in [*sync, *asynchronous])
    if loudest > BUSY:
        print(f"\nothers kept up to {loudest:.1f} cores busy: measure the times again on an idle machine")


def main() -> None:
    """Measures both loops in turn, seed by seed, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=14)
    parser.add_argument("--prompts", type=int, default=128, help="of an iteration")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eval-every", type=int, default=2)
    parser.add_argument("--work", type=Path, help="an example's WORK that has the SFT model; else it is trained first")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    if options.iterations < 2:
        parser.error("--iterations must be at least 2: time is taken from the end of the first")
    options.work = options.work and options.work.resolve()
    with tempfile.TemporaryDirectory() as name:
        loops = Loops(Path(name), options)
        seeds = {"sync": iter(options.seeds), "async": iter(options.seeds)}
        sides = {
            "sync": lambda: loops.run(next(seeds["sync"]), asynchronous=False),
            "async": lambda: loops.run(next(seeds["async"]), asynchronous=True),
        }
        found = in_turn(sides, len(options.seeds))
    check(found["sync"], found["async"])
    report(options, found)


if __name__ == "__main__":
    main()
