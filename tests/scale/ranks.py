"""Real ranks: what they compute, what a pipe into them loses, and what a kill leaves behind. Some minutes on two cores.

python -m tests.scale.ranks                      # everything
python -m tests.scale.ranks numbers              # two ranks against one process, ten steps, every kind of update
python -m tests.scale.ranks resume               # 2, 1 and 2 ranks one after the other against two ranks throughout
python -m tests.scale.ranks stdin --runs 20      # pipelines of 20 shards into an update of two ranks
python -m tests.scale.ranks kills --runs 30      # SIGKILL of a rank or of the launcher, at random times
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.in_ranks import ROOT, run_in_ranks

SHARDS, SIZE = 20, 4
KINDS = {
    "update-policy": ["update-policy", "--policy"],
    "update-policy, LoRA": ["update-policy", "--lora-rank", "4", "--policy"],
    "update-policy, bfloat16": ["update-policy", "--dtype", "bfloat16", "--policy"],
    "update-prm, ce": ["update-prm", "--ref", "shards", "--beta", "0.5", "--prm"],
    "update-prm, dpo": ["update-prm", "--ref", "shards", "--loss", "dpo", "--prm"],
    "update-critic": ["update-critic", "--critic"],
}
COMMON = ["--lr", "1e-5", "--mini-batch", "8", "--micro-batch-tokens", "96", "--quiet"]
PATIENCE = 30  # seconds after a kill until nothing may be left running


class Failed(Exception):
    """Something did not hold."""


def check(holds: bool, what: str) -> None:
    """Raises Failed unless it holds."""
    if not holds:
        raise Failed(what)


def make_batch(directory: Path, model: Path) -> Path:
    """Twenty shards of one group, with responses of 1 to 40 tokens and everything that an update asks for."""
    from primecli.models.identity import model_fingerprint
    from primecli.shards import schema
    from tests.builders import rollouts, write_shards

    generator = np.random.default_rng(0)
    rows = rollouts(SHARDS, SIZE, policy_fingerprint=model_fingerprint(model))
    for row in rows:
        length = int(generator.integers(1, 40))
        row[schema.RESPONSE_IDS] = generator.integers(0, 250, length).tolist()
        for name in (schema.ADVANTAGES, schema.RETURNS, schema.VALUES):
            row[name] = generator.normal(size=length).tolist()
        for name in (schema.ROLLOUT_LOGPROBS, schema.REF_LOGPROBS):
            row[name] = (-5.5 + 0.1 * generator.normal(size=length)).tolist()
    return write_shards(directory, rows, per_shard=SIZE)


def command(kind: str, model: Path, batch: Path, checkpoint: Path, *options: str) -> list[str]:
    """The words of an update after `primecli`."""
    stage, *words = KINDS[kind]
    return [stage, *COMMON, *words, str(model), "--checkpoint", str(checkpoint), *options, str(batch)]


def plain(words: Sequence[str], *, stdin: Any = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with one thread."""
    return subprocess.run(
        [sys.executable, "-m", "primecli", *words],
        cwd=ROOT, env=environment(), stdin=stdin, capture_output=True, text=True, check=False,
    )  # fmt: skip


def environment() -> dict[str, str]:
    """One thread, and this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def gap(left: Path, right: Path) -> tuple[float, float]:
    """How far the trained parameters of two checkpoints are apart at most; and how far both have moved at most."""
    from safetensors.torch import load_file

    def numbers(checkpoint: Path) -> dict[str, Any]:
        master = checkpoint / "trainer/master.safetensors"
        return load_file(master if master.exists() else checkpoint / "model.safetensors")

    one, other = numbers(left), numbers(right)
    check(one.keys() == other.keys(), f"{left} and {right} have other tensors")
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one), 10 * 1e-5


def files(checkpoint: Path) -> dict[str, bytes]:
    """The tensors of a checkpoint, as bytes, by file."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*.safetensors")}


def numbers(work: Path, options: argparse.Namespace) -> None:
    """Every kind of update: two ranks twice against one process, ten steps with ragged micro-batches."""
    model, batch = models(work)
    in_two = {kind: [work / f"{number}-{time}" for time in "ab"] for number, kind in enumerate(KINDS)}
    commands = [command(kind, model, batch, target) for kind, targets in in_two.items() for target in targets]
    check(run_in_ranks(2, commands) == [0] * len(commands), "an update failed in two ranks")
    for number, kind in enumerate(KINDS):
        first, second = in_two[kind]
        check(files(first) == files(second), f"{kind}: two ranks gave other bits the second time")
        done = plain(command(kind, model, batch, work / f"{number}-plain"))
        check(done.returncode == 0, done.stderr)
        apart, moved = gap(first, work / f"{number}-plain")
        print(
            f"{kind:26} two ranks and one process, 10 steps: at most {apart:.1e} apart (10 steps of 1e-5: {moved:.0e})"
        )
        check(apart <= (0.5 if "bfloat16" in kind else 0.05) * moved, f"{kind}: too far apart")


def resume(work: Path, options: argparse.Namespace) -> None:
    """Three updates one after the other, by 2, 1 and 2 ranks, against three by two ranks, and those done again."""
    model, batch = models(work)
    paths = {name: [model, *(work / f"{name}-{number}" for number in (1, 2, 3))] for name in ("two", "again", "mixed")}
    stale = ("--max-staleness", "3")

    def step(name: str, number: int) -> list[str]:
        return command("update-policy", paths[name][number - 1], batch, paths[name][number], *stale)

    for name in ("two", "again"):
        check(run_in_ranks(2, [step(name, number) for number in (1, 2, 3)]) == [0, 0, 0], "two ranks failed")
    check(run_in_ranks(2, [step("mixed", 1)]) == [0], "two ranks failed")
    check(plain([*step("mixed", 2), "--nproc", "1"]).returncode == 0, "one rank failed")
    check(run_in_ranks(2, [step("mixed", 3)]) == [0], "two ranks failed")
    check(files(paths["two"][3]) == files(paths["again"][3]), "the same ranks gave other bits")
    apart, _ = gap(paths["two"][3], paths["mixed"][3])
    print(f"2, 1 and 2 ranks against 2, 2 and 2, 30 steps: at most {apart:.1e} apart; 2, 2, 2 twice: same bits")
    check(apart <= 0.05 * 30 * 1e-5, "too far apart")


def stdin(work: Path, options: argparse.Namespace) -> None:
    """A pipe of twenty paths into two ranks: all of them come out, in order, and the update has seen all of them."""
    import json

    model, batch = models(work)
    paths = sorted(str(path) for path in batch.glob("*.parquet"))
    for run in range(options.runs):
        words = [*command("update-policy", model, batch, work / f"piped-{run}")[:-1], "--nproc", "2"]
        feeder = subprocess.Popen(
            ["bash", "-c", 'for path in "$@"; do echo "$path"; sleep 0.0$((RANDOM % 9)); done', "bash", *paths],
            stdout=subprocess.PIPE,
        )
        done = plain(words, stdin=feeder.stdout)
        feeder.wait()
        check(done.returncode == 0, done.stderr)
        check(done.stdout.splitlines() == paths, f"{len(done.stdout.splitlines())} of {len(paths)} paths came out")
        found = json.loads((work / f"piped-{run}/_summary.json").read_text())
        check(found["rows"] == SHARDS * SIZE, f"the update saw {found['rows']} of {SHARDS * SIZE} rollouts")
    print(f"{options.runs} of {options.runs} pipelines of {SHARDS} shards into two ranks lost none")


def ranks_of(launcher: int) -> dict[int, int]:
    """The process numbers of a launcher's ranks, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == launcher:
                variables = entry.joinpath("environ").read_bytes().split(b"\0")
                ranks = [int(value[5:]) for value in variables if value.startswith(b"RANK=")]
                found[ranks[0]] = int(entry.name)
    return found


def alive(process: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def update(work: Path, words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A running update."""
    process = subprocess.Popen(
        [sys.executable, "-m", "primecli", *words],
        cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kills(work: Path, options: argparse.Namespace) -> None:
    """SIGKILL of rank 0, rank 1 or the launcher: one line, no checkpoint, nothing left running, a rerun succeeds."""
    model, batch = models(work, large=True)
    target = work / "killed"
    words = [*command("update-policy", model, batch, target), "--nproc", "2", "--epochs", "2"]
    started = time.monotonic()
    check(plain(words).returncode == 0, "the update fails even without a kill")
    whole = time.monotonic() - started
    expected = files(target)
    chance = random.Random(options.seed)
    moments: dict[str, int] = {}
    for run in range(options.runs):
        shutil.rmtree(target)
        victim = ("rank 0", "rank 1", "launcher")[run % 3]
        saving = run % 5 == 4
        when = chance.uniform(0.3, 1.0) * whole
        moment, lines, was_done = kill_once(work, words, target, victim, when, saving=saving)
        moments[moment] = moments.get(moment, 0) + 1
        print(f"kill {run + 1}: {victim}, {moment}: {' | '.join(lines) or 'silent'}", flush=True)
        if not was_done:
            check(not target.exists(), "a killed update left a checkpoint")
        check(len(lines) <= 1, f"more than a line: {lines}")
        check(victim == "launcher" or was_done or len(lines) == 1, "the kill of a rank was not said")
        done = plain(words)
        check(done.returncode == 0, f"the rerun failed: {done.stderr}")
        check(files(target) == expected, "the rerun gave other bits")
    print(f"{options.runs} kills ({', '.join(f'{moment} {count}' for moment, count in moments.items())}): nothing left")


def kill_once(
    work: Path, words: Sequence[str], target: Path, victim: str, when: float, *, saving: bool
) -> tuple[str, list[str], bool]:
    """Kills one process; returns at what moment, the lines on stderr, and whether the update was done before."""
    with update(work, words) as process:
        started = time.monotonic()
        processes: dict[int, int] = {}
        while process.poll() is None:
            processes = ranks_of(process.pid) or processes
            written = list(work.glob(f".*{target.name}.*"))
            is_saving = any(path.is_dir() for path in written)
            if len(processes) == 2 and (is_saving if saving else time.monotonic() - started > when):
                break
            time.sleep(0.002 if saving else 0.02)
        if process.poll() is not None:
            return "too late", [], True
        number = process.pid if victim == "launcher" else processes[int(victim[-1])]
        os.kill(number, signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while any(alive(each) for each in processes.values()):
            check(time.monotonic() < deadline, f"processes run on: {processes}")
            time.sleep(0.1)
        lines = [line for line in errors.splitlines() if line]
        done = target.exists()
        check(process.returncode != 0 or done, "a killed update ended with exit code 0")
        return ("while saving" if is_saving else f"after {when:.0f} s"), lines, done


def models(work: Path, *, large: bool = False) -> tuple[Path, Path]:
    """A model and a batch for it; a large model takes some seconds a step, so that a kill can come at any moment."""
    from primecli.setup.tiny_model import make_model, make_tokenizer

    directory = work / ("large" if large else "model")
    if not directory.exists():
        if large:
            import torch
            from transformers import Qwen2Config, Qwen2ForCausalLM

            torch.manual_seed(0)
            config = Qwen2Config(
                vocab_size=258, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
                num_key_value_heads=6, eos_token_id=256, pad_token_id=257, bos_token_id=None,
            )  # fmt: skip
            Qwen2ForCausalLM(config).save_pretrained(directory)  # type: ignore[no-untyped-call]
            make_tokenizer(directory)
        else:
            make_model(directory, dtype="bfloat16")
        make_batch(work / f"{directory.name}-batch", directory)
    return directory, work / f"{directory.name}-batch"


PARTS = {"numbers": numbers, "resume": resume, "stdin": stdin, "kills": kills}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all by default")
    parser.add_argument("--runs", type=int, default=20, help="pipelines, or kills")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="primecli-scale-") as directory:
        for part in options.parts or PARTS:
            PARTS[part](Path(directory), options)


if __name__ == "__main__":
    main()
