"""How long `primecli prepare` takes for a large set of prompts, and how much memory, with every check on.

The prompts are made up: words drawn from a Zipf law, numbers among them, an instruction at the end of each. One in
twenty repeats another with 5% of its words changed, one in twenty repeats one exactly, and one in a thousand holds a
benchmark's prompt. The result is compared with what was planted.

    python tests/benchmarks/prepare.py --prompts 450000
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, peak_mib, run_process, show  # noqa: E402

INSTRUCTION = "Present the answer in LaTeX format: \\boxed{Your answer}"
NEAR, EXACT, HELD = 0.05, 0.05, 0.001  # of the prompts
BENCHMARK = 1000  # prompts
MINUTES, GIB = 10.0, 4.0


def make(directory: Path, prompts: int, words: int) -> None:
    """Writes prompts.parquet, benchmark.jsonl, and planted.json, which says how many of each kind were planted."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draws = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(draws.choice(letters, size)) for size in draws.integers(2, 9, 30_000)]
    chances = np.cumsum(1 / np.arange(5, 30_005))
    chances /= chances[-1]

    def problem(size: int) -> list[str]:
        text = [vocabulary[word] for word in np.searchsorted(chances, draws.random(size))]
        for place in draws.integers(0, size, max(1, size // 15)):
            text[place] = str(draws.integers(2, 1000))
        return text

    benchmark = [problem(int(draws.integers(15, 80))) for _ in range(BENCHMARK)]
    lines = [json.dumps({"problem": " ".join(text), "answer": "1"}) for text in benchmark]
    (directory / "benchmark.jsonl").write_text("\n".join(lines) + "\n")
    near, exact, held = (round(share * prompts) for share in (NEAR, EXACT, HELD))
    originals = prompts - near - exact
    sizes = np.clip(draws.normal(words, words / 5, originals).astype(int), 60, None)
    texts = [problem(int(size)) for size in sizes]
    for place in range(held):
        texts[place] += benchmark[place % BENCHMARK]
    answers = list(range(originals))  # whose answer each has
    for number in draws.integers(0, originals, near):
        answers.append(int(number))
        text = list(texts[number])
        for place in draws.choice(len(text), len(text) // 20, replace=False):
            if not text[place].isdigit():
                text[place] = vocabulary[draws.integers(30_000)]
        texts.append(text)
    repeated = draws.integers(0, originals, exact).tolist()
    texts += [texts[number] for number in repeated]
    answers += repeated
    truths = [str(value) if value % 5 else f"\\frac{{{value}}}{{7}}" for value in draws.integers(1, 10**6, originals)]
    order = draws.permutation(len(texts))
    rows: list[dict[str, Any]] = [
        {
            "data_source": "made",
            "prompt": [{"role": "user", "content": f"{' '.join(texts[number])}\n\n{INSTRUCTION}"}],
            "ability": "math",
            "reward_model": {"ground_truth": truths[answers[number]], "style": "rule"},
            "extra_info": {"index": int(number), "split": "train"},
        }
        for number in order
    ]
    pq.write_table(pa.Table.from_pylist(rows), directory / "prompts.parquet")
    planted = {"duplicate": near + exact, "contaminated": held}
    (directory / "planted.json").write_text(json.dumps(planted))


def run(directory: Path) -> None:
    """Runs the command in this process and prints what it took, as JSON."""
    from primecli import cli

    start = time.perf_counter()
    command = ["prepare", "prompts.parquet", "--contamination", "benchmark.jsonl", "--out", "out.parquet", "--force"]
    code = cli.run([str(directory / word) if "." in word else word for word in command])
    assert code == 0, code
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": cpu, "peak_mib": peak_mib()}))


def marks(directory: Path) -> dict[str, int]:
    """How many prompts have each mark."""
    import pyarrow.parquet as pq

    reasons = pq.read_table(directory / "out.parquet", columns=["reason"])["reason"].to_pylist()
    names = [name for reason in reasons if reason for name in reason.split(", ")]
    return {name: names.count(name) for name in sorted(set(names))}


def main() -> None:
    """Makes the prompts, prepares them, and prints seconds, memory and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=450_000)
    parser.add_argument("--words", type=int, default=100, help="words of a prompt, on average")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        run(options.directory)
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory, options.prompts, options.words)
        cost = run_process([sys.executable, __file__, "--directory", name])
        found, planted = marks(directory), json.loads((directory / "planted.json").read_text())
    seconds = float(cost.said["seconds"])
    allowed = MINUTES * 60 * options.prompts / 450_000
    figures = [
        Figure(
            "time",
            seconds / allowed,
            f"{seconds:,.1f} s, CPU {cost.said['cpu_seconds']:,.1f} s",
            f"{allowed:,.0f} s",
            "<= 1",
        ),
        Figure("memory", cost.mebibytes / 1024 / GIB, f"{cost.mebibytes:,.0f} MiB", f"{GIB:g} GiB", "<= 1"),
        *(
            Figure(name, found.get(name, 0) / count, f"{found.get(name, 0):,} marked", f"{count:,} planted")
            for name, count in planted.items()
        ),
    ]
    show(f"{options.prompts:,} prompts of {options.words} words; marks: {found}", figures, options.json)


if __name__ == "__main__":
    main()
