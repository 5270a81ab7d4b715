"""A whole iteration in one shell pipe, with the GPU's memory watched meanwhile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.gpu.context import ROOT, Context
from tests.gpu.models import make_config, make_model, write_model, write_tokenizer
from tests.gpu.result import write_json
from tests.gpu.timing import GIB, MemoryPoller, reset_memory

TIMELINE = "timeline.json"  # in the shared directory
PRIMECLI = f"{shlex.quote(sys.executable)} -m primecli"
WARM = f"{PRIMECLI} warm --"
STAMPED = ("generate", "update-prm", "score-prm", "compute-advantages")


@dataclass(frozen=True)
class Size:
    """How much an iteration is.

    prompts, samples: an iteration's prompts, and the samples of each; max_tokens: of a response, which a random model
    always reaches. mini_batch, micro_batch_tokens: of the updates.
    """

    prompts: int
    samples: int
    max_tokens: int
    mini_batch: int
    micro_batch_tokens: int


REAL = Size(prompts=16, samples=4, max_tokens=256, mini_batch=32, micro_batch_tokens=16384)
TINY = Size(prompts=6, samples=4, max_tokens=6, mini_batch=8, micro_batch_tokens=256)


def make_policy(context: Context, directory: Path) -> Path:
    """A random model of 0.5B's shape in bfloat16 with its tokenizer, written to `directory`, and prompts beside it."""
    config = make_config("0.5B", tiny=context.tiny)
    model = make_model(config, context.device, torch.bfloat16)
    write_model(model, directory)
    del model
    reset_memory(context.device)
    write_tokenizer(directory, config.vocab_size)
    rows = [{"prompt": f"What is {number} + {number}?", "answer": str(2 * number)} for number in range(64)]
    directory.with_name("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return directory


def iteration(number: int, context: Context) -> str:
    """The script of an iteration, with a stamp behind the stages in STAMPED.

    Its learning rate is large enough to move weights that are stored in bfloat16.
    """
    size = TINY if context.tiny else REAL
    device = f"--device {context.kind} --dtype bfloat16" if context.gpu else "--device cpu"
    update = f"{device} --lr 1e-4 --mini-batch {size.mini_batch} --micro-batch-tokens {size.micro_batch_tokens}"
    before = {role: f"ckpt/{role}/{number - 1}" if number > 1 else "sft" for role in ("policy", "prm")}
    out = f"runs/{number}"
    stages = {
        "generate": f"generate --model {before['policy']} --prompts prompts.jsonl --n {size.samples} --step {number} "
        f"--batch-prompts {size.prompts} --max-tokens {size.max_tokens} --engine hf --out {out}/generate "
        f"--prompts-per-shard {size.prompts // 2} {device}",
        "verify": "verify --verifier tests.gpu.grader:parity --workers 2",
        "filter": "filter --accuracy 0.1 0.9 --allow-truncated",  # no random model ends a response
        "update-prm": f"update-prm --prm {before['prm']} --ref sft --checkpoint ckpt/prm/{number} {update}",
        "score-prm": f"score-prm --prm ckpt/prm/{number} --ref sft {device}",
        "compute-advantages": "compute-advantages",
        "update-policy": f"update-policy --policy {before['policy']} --checkpoint ckpt/policy/{number} {update}",
    }
    stamp = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(ROOT / 'tests' / 'gpu' / 'stamp.py'))}"
    parts = []
    for stage, command in stages.items():
        parts.append(f"{PRIMECLI} {command}")
        if stage in STAMPED:
            parts.append(f"{stamp} {out}/{stage}.times")
    return f"set -euo pipefail\nmkdir -p {out}\n" + " \\\n  | ".join(parts) + f" > {out}/paths\n"


def run_script(script: str, directory: Path, prefix: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a script of bash in `directory`. prefix: a command that gets it as its command."""
    path = directory / "script.sh"
    path.write_text(script, encoding="utf-8")
    return subprocess.run(
        [*shlex.split(prefix), "bash", str(path)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def run_iteration(number: int, context: Context, directory: Path, prefix: str = "") -> str:
    """Runs an iteration; what it wrote to stderr. Raises RuntimeError with the end of that where it fails."""
    done = run_script(iteration(number, context), directory, prefix)
    if done.returncode:
        raise RuntimeError(f"iteration {number} ended with code {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stderr


def watched_iteration(context: Context, directory: Path) -> None:
    """Runs the first iteration while it watches the GPU's memory, and leaves the timeline for `between_stages`."""
    reset_memory(context.device)
    before = taken(context)
    with MemoryPoller(context.device) as poller:
        # tiny shapes are there to be quick: six imports of torch on one core are not
        run_iteration(1, context, directory, WARM if context.tiny else "")
    stamps = {stage: read_stamps(directory / "runs" / "1" / f"{stage}.times") for stage in STAMPED}
    context.shared.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 5  # a driver may take a moment
    while (after := taken(context)) > before + 0.1 * GIB and time.monotonic() < until:
        time.sleep(0.1)
    timeline = {"before": before, "after": after, "stamps": stamps, "samples": poller.samples}
    write_json(context.shared / TIMELINE, timeline)


def taken(context: Context) -> int:
    """Bytes of the GPU that any process holds."""
    if not context.gpu:
        return 0
    free, total = torch.cuda.mem_get_info(context.device)
    return int(total - free)


def read_stamps(path: Path) -> dict[str, float]:
    """What stamp.py wrote."""
    return {name: float(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def between_stages(timeline: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """GiB that stages held beyond what was taken before them, by the moment between two: the most before it, the least
    around it.

    A stage may begin on the first path of the one before it: around that moment, the one before it has to let go.
    """
    samples = [(moment, (used - timeline["before"]) / GIB) for moment, used in timeline["samples"]]
    found = {}
    for stage, event in (("generate", "end"), ("update-prm", "first"), ("score-prm", "end")):
        moment = timeline["stamps"][stage][event]
        around = [used for when, used in samples if moment - 0.5 <= when <= moment + 0.5]
        earlier = [used for when, used in samples if when < moment]
        if around and earlier:
            found[stage] = (max(earlier), min(around))
    return found
