"""Iterations of the arithmetic task as a shell pipeline, beside TRL's GRPOTrainer doing the same work.

Both start from the same weights and take the same prompts, samples, lengths, mini-batches, estimator (GRPO, no process
rewards, no KL) and CPU threads a process. TRL is one process for all iterations, which saves nothing; primecli is
a process a stage, and each iteration writes a checkpoint. Start-up counts on both sides. TRL is an extra:
pip install -c constraints.txt -e '.[bench]'.

    python tests/benchmarks/loop.py                                         a random model of the example's shape
    python tests/benchmarks/loop.py --model examples/arithmetic/work/sft    the example's own

A pretrained model on other prompts, here those of examples/smollm, whose answers are numbers:

    python tests/benchmarks/loop.py --model examples/smollm/work/model \
        --prompts examples/smollm/work/addition/train.jsonl \
        --iterations 3 --batch-prompts 32 --max-tokens 32 --mini-batch 32 --lr 2e-6

A random model's responses run to --max-tokens; the example's are 46 tokens long.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Cost, Figure, in_turn, ratio, run_process, show  # noqa: E402

EXAMPLE = ROOT / "examples" / "arithmetic"
STAGES = ("generate", "verify", "filter", "compute-advantages", "update-policy")
LENGTH_TOLERANCE = 0.05  # of mean response tokens: the sides sample with other random numbers

PIPELINE = """
set -euo pipefail
primecli() {{ python -m primecli "$@"; echo "$1 $EPOCHREALTIME" >> {times}; }}
policy={model}
for step in $(seq {iterations}); do
  echo "start $EPOCHREALTIME" >> {times}
  primecli generate --model $policy --prompts {prompts} --n {n} --seed 0 --step $step --batch-prompts {batch_prompts} \\
      --engine hf --max-tokens {max_tokens} --quiet --out {out}/$step/generate \\
    | primecli verify --quiet \\
    | primecli filter --accuracy 0 1 --allow-truncated --quiet \\
    | primecli compute-advantages --estimator grpo --process-coef 0 --quiet \\
    | primecli update-policy --policy $policy --checkpoint {out}/policy/$step --lr {lr} --mini-batch {mini_batch} \\
        --quiet > /dev/null
  policy={out}/policy/$step
done
"""


def make_model(task: Path, directory: Path) -> None:
    """A random model of the example's shape, with its tokenizer; in a process of its own, which imports torch."""
    code = (
        "import sys; from pathlib import Path; import torch; from transformers import AutoTokenizer; import sft; "
        "torch.manual_seed(0); tokenizer = AutoTokenizer.from_pretrained(Path(sys.argv[1]) / 'tokenizer'); "
        "sft.save(sft.make_model(tokenizer, 2, 96), tokenizer, Path(sys.argv[2]))"
    )
    run_process([sys.executable, "-c", code, str(task), str(directory)], cwd=EXAMPLE)


def ordered_prompts(path: Path, out: Path, iterations: int, batch: int) -> None:
    """The prompts that primecli takes in its iterations, in that order, for a side that reads a file from its start."""
    from primecli.generation.prompts import stream_positions

    lines = path.read_text().splitlines()
    taken = [
        lines[index]
        for step in range(1, iterations + 1)
        for _, index in stream_positions(len(lines), step=step, batch=batch, seed=0)
    ]
    out.write_text("".join(f"{line}\n" for line in taken))


def marginal_seconds(times: str) -> dict[str, float]:
    """What each stage adds to an iteration after the one before it has ended, s, the median over iterations.

    times: lines of `name seconds`, the moment when an iteration started and each of its stages ended. They add up
    to the iteration's wall time.

    >>> marginal_seconds("start 1.0\\ngenerate 4.0\\nverify 4.5\\n")
    {'generate': 3.0, 'verify': 0.5}
    """
    found: dict[str, list[float]] = {}
    ended = 0.0
    for name, text in (line.split() for line in times.splitlines()):
        if name != "start":
            found.setdefault(name, []).append(float(text) - ended)
        ended = float(text)
    return {name: statistics.median(values) for name, values in found.items()}


class Loop:
    """The two sides, on the same prompts and weights."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self.task = directory / "task"
        self.prompts = options.prompts or self.task / "train.jsonl"
        if options.prompts is None or options.model is None:
            run_process([sys.executable, "make_task.py", str(self.task), "--demonstrations", "1"], cwd=EXAMPLE)
        self.model = options.model
        if self.model is None:
            self.model = directory / "model"
            make_model(self.task, self.model)
        self.ordered = directory / "ordered.jsonl"
        ordered_prompts(self.prompts, self.ordered, options.iterations, options.batch_prompts)
        self.number = 0
        self.stage_seconds: list[dict[str, float]] = []

    def trl(self) -> Cost:
        """All iterations by TRL."""
        given = self.options
        command = [sys.executable, "tests/benchmarks/trl_loop.py", str(self.model), str(self.ordered)]
        for name in ("iterations", "batch_prompts", "n", "max_tokens", "mini_batch", "lr"):
            command += [f"--{name.replace('_', '-')}", str(getattr(given, name))]
        return run_process([*command, "--out", str(self.directory / "trl")], threads=given.threads)

    def primecli(self, before: tuple[str, ...] = ()) -> Cost:
        """All iterations as pipelines. before: words of the command that runs the script."""
        self.number += 1
        out = self.directory / f"run{self.number}"
        out.mkdir()
        given = {name: value for name, value in vars(self.options).items() if name not in ("model", "prompts")}
        script = PIPELINE.format(**given, model=self.model, prompts=self.prompts, out=out, times=out / "times")
        cost = run_process([*before, "bash", "-c", script], threads=self.options.threads)
        self.stage_seconds.append(marginal_seconds((out / "times").read_text()))
        return Cost(cost.seconds, cost.mebibytes, self._done(out))

    def _done(self, out: Path) -> dict[str, object]:
        """What the iterations did, in the words of TRL's side."""
        iterations = range(1, self.options.iterations + 1)
        sampled = [json.loads((out / str(step) / "generate" / "_summary.json").read_text()) for step in iterations]
        graded = [json.loads((out / str(step) / "verify" / "_summary.json").read_text()) for step in iterations]
        updates = [json.loads((out / "policy" / str(step) / "_summary.json").read_text()) for step in iterations]
        return {
            "steps": int(sum(update["metrics"]["steps"] for update in updates)),
            "rows": [update["rows"] for update in updates],
            "rewards": [summary["metrics"]["accuracy"] for summary in graded],
            "response_tokens": [summary["metrics"]["response_tokens"] for summary in sampled],
        }


def check_same_work(ours: Cost, theirs: Cost, rows: int) -> None:
    """SystemExit where the two sides did not do the same: optimizer steps, rollouts, lengths, rewards."""
    if ours.said["steps"] != theirs.said["steps"]:
        raise SystemExit(f"{ours.said['steps']} optimizer steps by primecli, {theirs.said['steps']} by TRL")
    if any(found != rows for found in ours.said["rows"]):
        raise SystemExit(f"primecli trained on {ours.said['rows']} rollouts, not on {rows} an iteration")
    mean, other = (statistics.mean(cost.said["response_tokens"]) for cost in (ours, theirs))
    if abs(mean - other) > LENGTH_TOLERANCE * other:
        raise SystemExit(f"responses of {mean:.1f} tokens by primecli, of {other:.1f} by TRL")
    first, second = ours.said["rewards"][0], theirs.said["rewards"][0]
    if abs(first - second) > 4 * (0.5 / rows) ** 0.5:  # four standard errors of a difference of two shares, at most
        raise SystemExit(f"the first iteration's accuracy is {first:.3f} by primecli and {second:.3f} by TRL")


def main() -> None:
    """Measures the sides in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an SFT model of the example, or another")
    parser.add_argument(
        "--prompts", type=Path, help="JSON lines with `prompt` and `answer`, a number; --model's template applies"
    )
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--batch-prompts", type=int, default=128)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--mini-batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        parser.error("TRL is not installed: pip install -c constraints.txt -e '.[bench]'")
    if options.model is not None and not (options.model / "config.json").exists():
        parser.error(f"{options.model} holds no model")
    if options.batch_prompts * options.n % options.mini_batch:
        parser.error("--mini-batch must divide the rollouts of an iteration: TRL drops what is left over")
    if options.prompts is not None and not options.prompts.exists():
        parser.error(f"{options.prompts}: no such file")
    options.model = options.model and options.model.resolve()
    options.prompts = options.prompts and options.prompts.resolve()
    from primecli.catalog import NAMES

    with tempfile.TemporaryDirectory() as name:
        loop = Loop(Path(name), options)
        sides = {"TRL": loop.trl, "primecli": loop.primecli}
        if "warm" in NAMES:
            command = (sys.executable, "-m", "primecli", "warm", "--")
            sides["primecli warm"] = lambda: loop.primecli(command)
        found = in_turn(sides, options.rounds)
    rows = options.batch_prompts * options.n
    for name in sides:
        if name != "TRL":
            check_same_work(found[name][0], found["TRL"][0], rows)
    report(options, found, loop.stage_seconds)


def report(options: argparse.Namespace, found: dict[str, list[Cost]], stage_seconds: list[dict[str, float]]) -> None:
    """Prints the ratios, and where primecli's time goes."""
    baseline = [cost.seconds / options.iterations for cost in found["TRL"]]
    startup = statistics.median(cost.said["seconds_to_first_step"] for cost in found["TRL"])
    figures = []
    for name, costs in found.items():
        if name == "TRL":
            continue
        seconds = [cost.seconds / options.iterations for cost in costs]
        against = ratio(seconds, baseline)
        text = f"{against}  {statistics.median(seconds):.2f} s an iteration"
        figures.append(
            Figure(
                name,
                against.median,
                text,
                f"TRL {statistics.median(baseline):.2f} s ({startup:.1f} s of start-up once)",
                "<= 1.00",
            )
        )
    tokens = statistics.mean(found["TRL"][0].said["response_tokens"])
    title = (
        f"{options.iterations} iterations of {options.batch_prompts} prompts × {options.n} samples of {tokens:.0f} "
        f"tokens, {options.threads} thread a process, median of {options.rounds} rounds"
    )
    show(title, figures, options.json, stage_seconds=stage_seconds)
    print("\nwhat each stage adds to a primecli iteration after the stage before it has ended, s, by run:")
    for stage in STAGES:
        print(f"  {stage:20}" + "".join(f"{run[stage]:8.2f}" for run in stage_seconds))


if __name__ == "__main__":
    main()
