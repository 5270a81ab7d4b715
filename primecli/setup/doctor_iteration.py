"""The last check of `primecli doctor`: a whole iteration with a tiny random model, in a temporary directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from primecli.setup.doctor_checks import Check, installed_distribution, one_line, package_directory
from primecli.warm.protocol import VARIABLE

PIPELINE_SECONDS = 600.0

STAGES = (
    "generate --model model --prompts prompts.jsonl --n 4 --max-tokens 8 --out run/generate",
    "verify --workers 1",
    "filter --accuracy 0 1 --allow-truncated",
    "update-prm --prm model --ref model --checkpoint prm --lr 1e-3",
    "score-prm --prm prm --ref model",
    "compute-advantages",
    "update-policy --policy model --checkpoint policy --lr 1e-3",
)
"""The iteration: each stage is a process that reads what the one before it writes to stdout."""


def iteration() -> Iterator[Check]:
    """Makes a tiny random model and runs the stages of an iteration on four prompts."""
    name = "iteration"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="primecli-doctor-") as temporary:
        directory = Path(temporary)
        try:
            from primecli.setup.tiny_model import make_model

            make_model(directory / "model")
        except Exception as error:  # whatever is broken is the result of the check
            yield Check(name, "failed", f"cannot make a tiny model: {type(error).__name__}: {one_line(str(error))}")
            return
        rows = [{"prompt": f"{number}+{number}=", "answer": str(2 * number)} for number in range(4)]
        (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        problem = run_pipeline([stage.split() for stage in STAGES], directory, PIPELINE_SECONDS)
        missing = [model for model in ("prm", "policy") if not (directory / model / "model.safetensors").exists()]
    if problem is None and missing:
        problem = f"no checkpoint in {missing[0]}, although every stage succeeded"
    if problem is not None:
        yield Check(name, "failed", problem)
    else:
        seconds = time.monotonic() - started
        yield Check(name, "ok", f"{len(STAGES)} stages on 4 prompts with a random model in {seconds:.0f} s")


def run_pipeline(stages: Sequence[Sequence[str]], directory: Path, seconds: float) -> str | None:
    """Runs stages as a pipeline of processes; returns the first failure with its last line, None if all succeed.

    stages: the arguments of each. directory: where they run. seconds: after which they are stopped. They see neither
    the user's own PRIMECLI_ variables nor the network.
    """
    deadline = time.monotonic() + seconds
    processes: list[subprocess.Popen[bytes]] = []
    logs = [directory / f"{number}-{stage[0]}.log" for number, stage in enumerate(stages)]
    try:
        for stage, log in zip(stages, logs, strict=True):
            processes.append(_start(stage, directory, processes[-1].stdout if processes else None, log))
            if len(processes) > 1 and processes[-2].stdout is not None:
                processes[-2].stdout.close()  # so that a stage notices when its reader has exited
        processes[-1].communicate(timeout=seconds)
        for process, stage, log in zip(processes, stages, logs, strict=True):
            if process.wait(max(0.1, deadline - time.monotonic())):
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
                return f"{stage[0]} exited with code {process.returncode}: {one_line(lines[-1])}"
    except subprocess.TimeoutExpired:
        running = [stage[0] for stage, process in zip(stages, processes, strict=False) if process.poll() is None]
        return f"{running[0] if running else stages[-1][0]} had not finished after {seconds:.0f} s"
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
    return None


def _start(stage: Sequence[str], directory: Path, stdin: IO[bytes] | None, log: Path) -> subprocess.Popen[bytes]:
    """Starts a stage of the pipeline. stdin: the stdout of the stage before it; None for the first."""
    with open(log, "wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "primecli", *stage],
            cwd=directory,
            env=_environment(),
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )


def _environment() -> dict[str, str]:
    def is_kept(name: str) -> bool:  # options of the user's would change the iteration; a helper only speeds it up
        return name == VARIABLE or not name.startswith("PRIMECLI_")

    environment = {name: value for name, value in os.environ.items() if is_kept(name)}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if installed_distribution() is None:  # the stages run elsewhere, and have to import the same primecli
        paths = [str(package_directory().resolve().parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment
