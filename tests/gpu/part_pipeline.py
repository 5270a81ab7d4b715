"""The pipeline: every stage in one pipe on one device, its checkpoint resumed, one rank, memory that runs out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.gpu import pipe
from tests.gpu.context import Context
from tests.gpu.models import make_config, make_rollouts

SUMMARIES = ("runs/{}/generate", "runs/{}/verify", "runs/{}/filter", "ckpt/prm/{}", "runs/{}/score-prm",
             "runs/{}/compute-advantages", "ckpt/policy/{}")  # fmt: skip


def run(context: Context) -> None:
    """Iteration 1 with the GPU's memory watched, iteration 2 under `primecli warm`, then too much at once."""
    report, directory = context.report, context.in_memory
    if context.gpu and str(directory).startswith("/dev/shm"):
        report.note("files were in memory: the disk's speed is load_save's")
    start = time.perf_counter()
    pipe.make_policy(context, directory / "sft")
    report.figure("making the model", time.perf_counter() - start, "s")
    start = time.perf_counter()
    pipe.watched_iteration(context, directory)
    report.figure("iteration 1", time.perf_counter() - start, "s")
    look_at(context, directory, 1)
    resume(context, directory)
    compare_ranks(context, directory)
    run_out_of_memory(context, directory)


def compare_ranks(context: Context, directory: Path) -> None:
    """score-prm and update-policy on one rank (NCCL on a GPU) against the same without ranks, and the latter twice."""
    report = context.report
    device = f"--device {'auto --dtype bfloat16' if context.gpu else 'cpu'} --quiet"
    update = f"update-policy --policy sft --lr 1e-4 --mini-batch 16 {device} runs/1/compute-advantages"
    score = f"score-prm --prm ckpt/prm/1 --ref sft {device} runs/1/filter"
    lines = ["set -euo pipefail"]
    for name, ranks in (("plain", ""), ("again", ""), ("rank", "--nproc 1")):
        lines.append(f"{pipe.PRIMECLI} {score} --out ranks/score-{name} {ranks} > /dev/null")
        lines.append(f"{pipe.PRIMECLI} {update} --checkpoint ranks/policy-{name} {ranks} > /dev/null")
    done = pipe.run_script("\n".join(lines) + "\n", directory, pipe.WARM if context.tiny else "")
    report.holds("score-prm and update-policy on one rank", done.returncode == 0, done.stderr[-700:] or "done", "done")
    if done.returncode:
        return
    gaps = {name: gaps_to_plain(directory / "ranks", name) for name in ("again", "rank")}
    for number, what in enumerate(("log-probabilities of score-prm, nats", "master weights of update-policy")):
        text = f"one rank - none, {what}, largest"
        # a GPU need not add up in the same order twice
        report.at_most(text, gaps["rank"][number], 2 * gaps["again"][number] + (1e-6 if context.gpu else 0.0))


def gaps_to_plain(directory: Path, name: str) -> tuple[float, float]:
    """How far the log-probabilities and the master weights of a run are from the plain one's, at most."""
    import numpy as np
    import pyarrow.parquet as pq
    from safetensors.torch import load_file

    from primecli.shards import schema
    from primecli.shards.columns import flat_column

    def logprobs(side: str) -> np.ndarray:
        table = pq.ParquetDataset(directory / f"score-{side}").read([schema.PRM_LOGPROBS])
        return np.asarray(flat_column(table, schema.PRM_LOGPROBS)[0])

    def weights(side: str) -> dict[str, Any]:
        checkpoint = directory / f"policy-{side}"
        master = checkpoint / "trainer" / "master.safetensors"
        return load_file(master if master.exists() else checkpoint / "model.safetensors")

    one, plain = weights(name), weights("plain")
    return (
        float(np.abs(logprobs(name) - logprobs("plain")).max()),
        max(float((one[key] - plain[key]).abs().max()) for key in plain),
    )


def look_at(context: Context, directory: Path, number: int) -> None:
    """Checks what an iteration left, and takes its figures."""
    report = context.report
    summaries = [json.loads((directory / path.format(number) / "_summary.json").read_text()) for path in SUMMARIES]
    states = sorted({summary["status"] for summary in summaries})
    report.holds(f"iteration {number}: stages", states == ["complete"], ", ".join(states), "complete")
    for summary in summaries:
        report.figure(f"iteration {number}: {summary['stage']}", summary["seconds"], "s, without waiting")
        metrics = summary["metrics"]
        if "peak_memory_gib" in metrics:
            report.figure(f"iteration {number}: memory of {summary['stage']}", metrics["peak_memory_gib"], "GiB")
    metrics = summaries[-1]["metrics"]
    for name in ("logprob_gap_mean", "logprob_gap_max"):
        if name in metrics:
            report.figure(f"iteration {number}: {name}", metrics[name], "nats", "the sampler's log-probabilities")
    rewards = summaries[4]["metrics"].get("process_reward_per_token", 0.0)
    report.holds(f"iteration {number}: the PRM has moved", rewards != 0.0, f"{rewards:.3g} per token", "not 0")


def resume(context: Context, directory: Path) -> None:
    """Iteration 2, from the checkpoints of iteration 1; forked by `primecli warm`, or without where that fails."""
    report = context.report
    start = time.perf_counter()
    try:
        said = pipe.run_iteration(2, context, directory, pipe.WARM)
        plain = [line for line in said.splitlines() if "warm" in line]
        report.holds(
            "stages are forked under warm", not plain, "; ".join(plain)[:500] or "no complaint", "no complaint"
        )
    except RuntimeError as error:
        report.holds("an iteration under warm", False, str(error)[-1500:], "code 0")
        pipe.run_iteration(2, context, directory)
    report.figure("iteration 2, under warm", time.perf_counter() - start, "s", "iteration 1, without")
    look_at(context, directory, 2)
    for role in ("prm", "policy"):
        first, second = (trainer_record(directory / "ckpt" / role / str(number)) for number in (1, 2))
        went_on = second["step"] > first["step"] and second["lineage"][:-1] == first["lineage"]
        text = f"step {first['step']}, then {second['step']}"
        report.holds(f"{role}: the checkpoint is resumed", went_on, text, "further steps of the same lineage")


def trainer_record(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its training."""
    return dict(json.loads((checkpoint / "trainer" / "primecli.json").read_text()))


def run_out_of_memory(context: Context, directory: Path) -> None:
    """An update whose micro-batch fits no GPU: one line that says what to lower, and code 1."""
    if not context.gpu:
        context.report.skip("running out of memory", "there is no GPU, and a CPU's processes are killed for it")
        return
    shard = make_rollouts(
        directory / "large", 128, (1800, 2200), 100, make_config("0.5B").vocab_size, model=directory / "sft"
    )
    command = f"{pipe.PRIMECLI} update-policy --policy sft --checkpoint ckpt/none --device cuda {shard} "
    command += "--micro-batch-tokens 10000000 --mini-batch 128 --old-logprobs rollout"
    start = time.perf_counter()
    done = pipe.run_script(f"exec {command}\n", directory)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    text = "\n".join(lines)
    wanted = "out of memory on the largest micro-batch (128 rows" in text and "lower --micro-batch-tokens" in text
    context.report.holds("running out of memory is one line", wanted and len(lines) == 1, text[-700:], "one line")
    context.report.holds("its exit code", done.returncode == 1, str(done.returncode), "1")
    context.report.figure("until memory ran out", time.perf_counter() - start, "s")
