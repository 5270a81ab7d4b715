"""Speed and accuracy of `GradingPool` on mathematics beside plain math-verify, on the same input in the same run.

Pairs are made from GSM8K and MATH-500: each gold answer against itself, respelt, and changed in value. Rollouts are
four samples a prompt, as a policy gives them: mostly worked solutions that end in the right or a wrong answer, many
of them the same answer. Both labels are known by construction. What is timed on one side is `grade_list` with
workers that are already running; on the other parse and verify for each rollout, in this process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from primecli.verifiers import Task  # noqa: E402
from primecli.verifiers.pool import GradingPool  # noqa: E402

DATA = Path(os.environ.get("PRIMECLI_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Sample:
    """One response, the gold answer, and whether the response is right by construction."""

    response: str
    gold: str
    right: bool


def problems() -> list[tuple[str, str]]:
    """(worked solution, gold answer) of GSM8K's and MATH-500's problems."""
    found = []
    for line in (DATA / "gsm8k_test.jsonl").read_text().splitlines():
        solution, _, gold = json.loads(line)["answer"].rpartition("#### ")
        found.append((re.sub(r"<<.*?>>", "", solution), gold))
    for line in (DATA / "math500.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.append((row["solution"].replace("\\boxed", ""), row["answer"]))
    return found


def is_expression(gold: str) -> bool:
    """Whether a gold answer is one value, so that it can stand in a formula."""
    return not re.search(r"\\text|\\in|\\cup|\\begin|\\pm|mbox|circ|[,=_%$]", gold)


def respelt(gold: str, rng: random.Random) -> str:
    """The same answer in another spelling."""
    ways = [f"{gold}.", f"${gold}$", f" {gold} ", gold.replace("\\frac", "\\dfrac"), gold.replace("\\left", "")]
    ways[-1] = ways[-1].replace("\\right", "")
    if re.fullmatch(r"-?\d+", gold):
        ways += [f"{int(gold):,}", f"{gold}.00", f"{gold}\\text{{ units}}", f"\\frac{{{2 * int(gold)}}}{{2}}"]
    if is_expression(gold):
        ways += [f"x = {gold}", f"{gold} + 0", f"\\frac{{3({gold})}}{{3}}", f"-(-({gold}))"]
    return rng.choice([way for way in ways if way != gold])


def changed(gold: str, rng: random.Random) -> str:
    """A wrong answer near the right one."""
    digits = list(re.finditer(r"[1-9]", gold))
    if digits and rng.random() < 0.7:
        at = rng.choice(digits)
        return gold[: at.start()] + rng.choice([d for d in "123456789" if d != at.group()]) + gold[at.end() :]
    return f"{gold} + 1" if is_expression(gold) else "\\text{another one}"


def make_pairs(seed: int) -> list[Sample]:
    """Each gold answer against itself, respelt, and changed, in a box."""
    rng = random.Random(seed)
    pairs = []
    for _, gold in problems():
        answers = ((gold, True), (respelt(gold, rng), True), (changed(gold, rng), False))
        pairs += [Sample(f"\\boxed{{{answer}}}", gold, right) for answer, right in answers]
    return pairs


ENDINGS = ("So the answer is $\\boxed{%s}$.", "\\[\n\\boxed{%s}\n\\]", "The final answer is $%s$.", "**Answer:** $%s$")


def make_rollouts(seed: int) -> list[Sample]:
    """Four samples a prompt: of the answers of a group half are right, and the wrong ones tend to be the same."""
    rng = random.Random(seed)
    rollouts = []
    for solution, gold in problems():
        wrong, other = changed(gold, rng), respelt(gold, rng)
        for _ in range(4):
            draw = rng.random()
            answer = gold if draw < 0.35 else other if draw < 0.5 else wrong if draw < 0.85 else changed(gold, rng)
            text = answer.strip("$ ") if "$" in answer else answer.strip().rstrip(".")
            rollouts.append(Sample(f"{solution}\n{rng.choice(ENDINGS) % text}", gold, draw < 0.5))
    rng.shuffle(rollouts)
    return rollouts


def grade_with_pool(samples: list[Sample], workers: int) -> tuple[list[bool], float]:
    """Verdicts of `GradingPool` and the seconds that they took."""
    with GradingPool("math", workers=workers) as pool:
        pool.grade_list([Task(r"\boxed{\int_0^1 x dx}", f"\\frac{{{k}}}{{2}}") for k in range(2, 2 + 4 * workers)])
        start = time.perf_counter()
        grades = pool.grade_list([Task(sample.response, sample.gold) for sample in samples])
        seconds = time.perf_counter() - start
    return [grade is not None and grade.reward == 1.0 for grade in grades], seconds


def grade_with_math_verify(samples: list[Sample]) -> tuple[list[bool], float]:
    """Verdicts of math-verify and the seconds that they took, with its own time limit for each."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    verify(parse("$1$"), parse("$1$"))
    start = time.perf_counter()
    verdicts = []
    for sample in samples:
        try:
            verdicts.append(bool(verify(parse(f"${sample.gold}$"), parse(sample.response))))
        except Exception:  # a sample that it cannot read is one that it calls wrong
            verdicts.append(False)
    return verdicts, time.perf_counter() - start


def accuracy(samples: list[Sample], verdicts: list[bool]) -> str:
    """Precision and recall of the verdicts."""
    true = sum(sample.right and verdict for sample, verdict in zip(samples, verdicts, strict=True))
    return f"precision {true / max(1, sum(verdicts)):.4f}  recall {true / max(1, sum(s.right for s in samples)):.4f}"


def report(name: str, samples: list[Sample], workers: int, show: int, say: Callable[[str], None]) -> None:
    """Grades the samples both ways and says how they compare."""
    ours, our_seconds = grade_with_pool(samples, workers)
    theirs, their_seconds = grade_with_math_verify(samples)
    agreement = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(samples)
    say(f"{name}: {len(samples)} ({sum(sample.right for sample in samples)} right)")
    say(f"  primecli    {len(samples) / our_seconds:9.0f} per second  {accuracy(samples, ours)}  ({workers} workers)")
    say(f"  math-verify {len(samples) / their_seconds:9.0f} per second  {accuracy(samples, theirs)}  (1 process)")
    say(f"  {their_seconds / our_seconds:.1f} times as fast, agreement {agreement:.4f}")
    missed = [sample for sample, verdict in zip(samples, ours, strict=True) if verdict != sample.right]
    for sample in missed[:show]:
        wanted = "right" if sample.right else "wrong"
        say(f"    {wanted}, but not said so: {sample.gold!r} {sample.response[-80:]!r}")


def main() -> None:
    """Prints both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="worker processes of the pool (default 2)")
    parser.add_argument("--limit", type=int, default=0, help="grade only this many of each kind (default all)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the changes and the mix (default 1)")
    parser.add_argument("--show", type=int, default=5, help="show up to this many errors of the pool (default 5)")
    options = parser.parse_args()
    if not (DATA / "math500.jsonl").exists():
        parser.error(f"there is no data in {DATA}; PRIMECLI_DATA names another directory")
    for name, samples in (("pairs", make_pairs(options.seed)), ("rollouts", make_rollouts(options.seed))):
        chosen = random.Random(options.seed).sample(samples, options.limit) if options.limit else samples
        report(name, chosen, options.workers, options.show, print)


if __name__ == "__main__":
    main()
