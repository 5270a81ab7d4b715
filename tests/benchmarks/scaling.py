"""What each stage takes at 1×, 4× and 16× the rollouts: time, which should be linear, and memory, which should be flat.

An iteration of the arithmetic task, a stage after another, each a process of its own, from a random model of the
example's shape. A rollout's price is the slope between two sizes, so that start-up is in neither; the figure is the
price between 4× and 16× over that between 1× and 4×, of the medians of the rounds' seconds. Where those of 1× and 4×
differ by no more than start-up does from round to round, it says nothing: take more prompts. The memory is the peak of
the stage's process, the median of the rounds' ratios.

    python tests/benchmarks/scaling.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.loop import EXAMPLE, make_model  # noqa: E402
from tests.benchmarks.measuring import Figure, environment, ratio, run_process, show  # noqa: E402

SIZES = (1, 4, 16)
STAGES = {
    "generate": "--model {model} --prompts {task}/train.jsonl --n 4 --batch-prompts {prompts} --engine hf "
    "--max-tokens {max_tokens} --out {out}/generate",
    "verify": "{out}/generate",
    "filter": "--accuracy 0 1 --allow-truncated {out}/verify",
    "update-prm": "--prm {model} --ref rollout --checkpoint {out}/prm --mini-batch 64 {out}/filter",
    "score-prm": "--prm {out}/prm --ref {model} {out}/filter",
    "compute-advantages": "{out}/score-prm",
    "update-policy": "--policy {model} --checkpoint {out}/policy --mini-batch 64 {out}/compute-advantages",
}


@dataclass(frozen=True)
class Spent:
    """Of a process. mebibytes: its peak."""

    seconds: float
    mebibytes: float


def spend(stage: str, options: str, directory: Path) -> Spent:
    """Runs a stage; SystemExit with its stderr where it fails."""
    start = time.perf_counter()
    with (directory / "stderr").open("w") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "primecli", stage, *options.split(), "--quiet"],
            cwd=directory,
            env=environment(1),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=error,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{stage} ended with code {process.returncode}\n{(directory / 'stderr').read_text()}")
    return Spent(time.perf_counter() - start, usage.ru_maxrss / 1024)


def slope_ratio(sizes: tuple[int, int, int], seconds: list[float]) -> float:
    """The price of a unit between the second and third size over that between the first and second.

    >>> slope_ratio((1, 4, 16), [5.0, 8.0, 20.0])
    1.0
    """
    first, second, third = sizes
    return (seconds[2] - seconds[1]) / (third - second) / ((seconds[1] - seconds[0]) / (second - first))


def measure(directory: Path, prompts: int, max_tokens: int) -> dict[str, list[Spent]]:
    """What every stage takes at every size, in a directory that is empty."""
    spent: dict[str, list[Spent]] = {stage: [] for stage in STAGES}
    run_process([sys.executable, "make_task.py", str(directory / "task"), "--demonstrations", "1"], cwd=EXAMPLE)
    make_model(directory / "task", directory / "model")
    for size in SIZES:
        out = directory / str(size)
        out.mkdir()
        given = {"model": directory / "model", "task": directory / "task", "out": out}
        for stage, words in STAGES.items():
            line = words.format(**given, prompts=size * prompts, max_tokens=max_tokens)
            spent[stage].append(spend(stage, line, directory))
    return spent


def main() -> None:
    """Measures every stage at every size and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="at 1×; 4 samples of each")
    parser.add_argument("--max-tokens", type=int, default=48, help="which the random model always takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    rounds: list[dict[str, list[Spent]]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            rounds.append(measure(Path(name), options.prompts, options.max_tokens))
    figures = []
    for stage in STAGES:
        found = [round_[stage] for round_ in rounds]
        times = [[spent.seconds for spent in size] for size in zip(*found, strict=True)]
        price = slope_ratio(SIZES, [median(each) for each in times])
        seconds = ", ".join(f"{median(each):.1f} ({min(each):.1f}–{max(each):.1f})" for each in times)
        figures.append(Figure(f"{stage}, time", price, f"{price:.2f}×  {seconds} s", "a rollout's price from 1× to 4×"))
        growth = ratio([each[-1].mebibytes for each in found], [each[0].mebibytes for each in found])
        memory = ", ".join(f"{median(spent.mebibytes for spent in size):,.0f}" for size in zip(*found, strict=True))
        figures.append(Figure(f"{stage}, memory", growth.median, f"{growth}  {memory} MiB", "its peak at 1×"))
    title = f"{', '.join(str(size * options.prompts * 4) for size in SIZES)} rollouts of {options.max_tokens} tokens"
    show(title, figures, options.json)


if __name__ == "__main__":
    main()
