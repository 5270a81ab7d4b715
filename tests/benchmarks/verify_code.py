"""Programs per second: HumanEval's canonical solutions in the sandbox, and the same with a wrong return.

python tests/benchmarks/verify_code.py [--sandbox bwrap|limits|none] [--workers N]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import time
from collections import Counter
from pathlib import Path

from primecli.verifiers import Task
from primecli.verifiers.pool import GradingPool

DATA = Path(os.environ.get("PRIMECLI_DATA", Path(__file__).parents[3] / "shared" / "data"))
WRONG = "\n_right = {name}\ndef {name}(*arguments, **named):\n    return [_right(*arguments, **named), 'wrong']\n"


def main() -> None:
    """Prints one line for each of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sandbox", default="bwrap")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    with gzip.open(DATA / "HumanEval.jsonl.gz", "rt") as lines:
        problems = [json.loads(line) for line in lines]
    for name, addition in (("canonical", ""), ("wrong return", WRONG)):
        tasks = []
        for row in problems:
            program = row["prompt"] + row["canonical_solution"] + addition.format(name=row["entry_point"])
            truth = {"test": row["test"], "entry_point": row["entry_point"]}
            tasks.append(Task(f"```python\n{program}```", json.dumps(truth)))
        with GradingPool("code", arguments.workers, 300, {"sandbox": arguments.sandbox}) as pool:
            pool.grade_list(tasks[: 4 * arguments.workers])  # the workers start
            start = time.perf_counter()
            grades = pool.grade_list(tasks)
            seconds = time.perf_counter() - start
        counts = Counter(grade.verdict for grade in grades if grade is not None)
        print(
            f"{name}: {counts['correct']} of {len(tasks)} correct, {len(tasks) / seconds:.1f} programs/s "
            f"({arguments.sandbox}, {arguments.workers} workers) {dict(counts)}"
        )


if __name__ == "__main__":
    main()
