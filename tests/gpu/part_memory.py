"""The GPU's memory between stages: nothing is left when the next one begins, and one that finds it taken waits."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.gpu import pipe
from tests.gpu.context import ROOT, Context
from tests.gpu.models import make_config, make_rollouts
from tests.gpu.timing import reset_memory

LEFT_OVER = 1.5  # GiB: contexts of CUDA, that of a stage that waits included; a model of 0.5B and its moments are 8
ENOUGH = 1 << 30  # bytes: for the context of another process, and not for its model too
TOO_LITTLE = 100 << 20  # bytes: not even a context fits
PATIENCE = 30.0  # seconds for a stage to say that it waits: its imports, and a model's loading

HOLDER = """
import sys, torch
leave = int(sys.argv[1])
held = [torch.empty(1, device="cuda")]
for size in (1 << 30, 1 << 26, 1 << 22):
    while torch.cuda.mem_get_info()[0] > leave + size:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
print("held", flush=True)
sys.stdin.read()
"""


def run(context: Context) -> None:
    """What a watched iteration has seen; then a stage that finds no room for its model, and one for nothing at all."""
    if not context.gpu:
        context.report.skip("everything", "there is no GPU whose memory could be taken")
        return
    directory = context.in_memory
    policy = pipe.make_policy(context, directory / "sft")
    look_between_stages(context, directory)
    reset_memory(context.device)
    shard = make_rollouts(directory / "made", 8, (20, 40), 20, make_config("0.5B").vocab_size, model=policy)
    for name, leave, line in (
        ("its model", ENOUGH, "are needed on cuda"),
        ("a context", TOO_LITTLE, "is full; waiting"),
    ):
        make_wait(context, policy, shard, name, leave, line)


def look_between_stages(context: Context, directory: Path) -> None:
    """What stages still held when the next one began, from the pipeline part's timeline or from one of our own."""
    if not (context.shared / pipe.TIMELINE).exists():
        pipe.watched_iteration(context, directory)
    timeline = json.loads((context.shared / pipe.TIMELINE).read_text())
    for stage, (most, least) in pipe.between_stages(timeline).items():
        context.report.figure(f"most that was held until {stage} ended", most, "GiB")
        context.report.at_most(f"GiB that are held as {stage} hands over", least, LEFT_OVER)
    after = (timeline["after"] - timeline["before"]) / 2**30
    context.report.at_most("GiB that are held after the last stage", after, 0.1)


@contextlib.contextmanager
def holding(leave: int) -> Iterator[subprocess.Popen[str]]:
    """A process that holds all of the GPU's memory but so many bytes, until its stdin is closed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(leave)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "held\n":
            raise RuntimeError(f"the process that was to hold memory ended with code {holder.wait()}")
        yield holder
    finally:
        holder.kill()
        holder.wait()


def make_wait(context: Context, policy: Path, shard: Path, name: str, leave: int, line: str) -> None:
    """Runs score-prm while another process holds the GPU, which ends once the stage says that it waits."""
    report = context.report
    out = context.in_memory / f"scored-{leave}"
    command = [*shlex.split(pipe.PRIMECLI), "score-prm", "--prm", str(policy), "--ref", str(policy), "--device", "cuda"]
    with holding(leave) as holder:
        said = context.work / f"said-{leave}"
        start = time.perf_counter()
        with said.open("w") as stderr:
            stage = subprocess.Popen(
                [*command, "--out", str(out), str(shard)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT,
            )  # fmt: skip
        while line not in said.read_text() and stage.poll() is None and time.perf_counter() - start < PATIENCE:
            time.sleep(0.1)
        waiting = line in said.read_text()
        report.holds(f"no room for {name}: the stage says that it waits", waiting, said.read_text()[-300:], line)
        time.sleep(1.0)
        report.holds(f"no room for {name}: it is still there", stage.poll() is None, str(stage.poll()), "None")
        holder.communicate()  # ends it
        start = time.perf_counter()
    try:
        code: int | None = stage.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        stage.kill()
        code = None
    report.figure(f"no room for {name}: from its release to the end", time.perf_counter() - start, "s")
    report.holds(f"no room for {name}: it goes on", code == 0, f"{code}: {said.read_text()[-300:]}", "0")
