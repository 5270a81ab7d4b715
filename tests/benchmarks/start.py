"""How long stages take to start, without and under `primecli warm`, and what `primecli --help` costs.

Ready: from exec to the moment when the stage opens its first shard, which is a named pipe that tells. Whole: from exec
to exit of a stage with next to nothing to do (four rollouts of a few tokens, a model of two layers), which is what a
loop pays beside the work: start, model, first forward pass, commit, end.

    python tests/benchmarks/start.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from primecli.warm.protocol import VARIABLE, ready_file  # noqa: E402
from tests.benchmarks.measuring import Figure, environment, in_turn, ratio, show  # noqa: E402

PRIMECLI = [sys.executable, "-m", "primecli"]
SHARD = "rollouts-00000-of-00001.parquet"
READY_SECONDS = 0.3
HELP_SECONDS = 0.15
PATIENCE = 120.0  # seconds in which any of this ends, also on a slow machine

READY = {
    "verify": ["verify", "--out", "out", SHARD],
    "score-prm": ["score-prm", "--prm", "model", "--ref", "model", "--out", "out", SHARD],
    "compute-advantages": ["compute-advantages", "--out", "out", SHARD],
    "update-prm": ["update-prm", "--prm", "model", "--ref", "model", "--checkpoint", "out", SHARD],
    "update-policy": ["update-policy", "--policy", "model", "--checkpoint", "out", SHARD],
}
WHOLE = {
    "generate": ["generate", "--model", "model", "--prompts", "prompts.jsonl", "--max-tokens", "2", "--out", "out"],
    "score-prm": ["score-prm", "--prm", "model", "--ref", "model", "--out", "out", "rollouts"],
    "update-policy": ["update-policy", "--policy", "model", "--checkpoint", "out", "rollouts"],
}


def make(directory: Path) -> None:
    """A model, prompts and rollouts, and a named pipe where a shard should be."""
    from primecli.models.identity import model_fingerprint
    from primecli.setup.tiny_model import make_model
    from tests.builders import rollouts, write_shards

    model = make_model(directory / "model")
    (directory / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    rows = rollouts(1, 4, policy_fingerprint=model_fingerprint(model), advantages=[])
    for row in rows:
        row["advantages"] = [0.5] * len(row["response_ids"])
    write_shards(directory / "rollouts", rows)
    os.mkfifo(directory / SHARD)


@contextlib.contextmanager
def warmed(threads: int) -> Iterator[dict[str, str]]:
    """The environment of stages under a helper that is ready."""
    command = [*PRIMECLI, "warm", "--", "sh", "-c", f"echo ${VARIABLE}; exec cat"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(threads), cwd=ROOT
    ) as process:
        assert process.stdout is not None
        path = process.stdout.readline().strip()
        deadline = time.monotonic() + PATIENCE
        while not os.path.exists(ready_file(path)):
            if time.monotonic() > deadline:
                raise SystemExit(f"the helper was not ready after {PATIENCE:.0f} seconds")
            time.sleep(0.05)
        yield {**environment(threads), VARIABLE: path}
        process.communicate()


def start(arguments: Sequence[str], directory: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A stage, in a directory where nothing of it is left."""
    shutil.rmtree(directory / "out", ignore_errors=True)
    return subprocess.Popen(
        [*PRIMECLI, *arguments, "--quiet"],
        cwd=directory,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def seconds_to_first_shard(arguments: Sequence[str], directory: Path, env: Mapping[str, str]) -> float:
    """From exec to when it looks at its shard, which is a pipe: it refuses that at once."""
    begun = time.perf_counter()
    with start(arguments, directory, env) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        seconds = time.perf_counter() - begun
        error = line + process.communicate()[1]
    if "is a pipe" not in line:
        raise SystemExit(f"{' '.join(arguments)} looked at no shard, or not as it should:\n{error[-3000:]}")
    return seconds


def seconds_to_end(arguments: Sequence[str], directory: Path, env: Mapping[str, str]) -> float:
    """From exec to exit."""
    begun = time.perf_counter()
    with start(arguments, directory, env) as process:
        _, error = process.communicate()
        seconds = time.perf_counter() - begun
    if process.returncode or error:
        raise SystemExit(f"{' '.join(arguments)} ended with code {process.returncode}:\n{error[-3000:]}")
    return seconds


def cpu_seconds(command: Sequence[str], env: Mapping[str, str]) -> float:
    """User and system time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(list(command), env=dict(env), cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


Measure = Callable[[Sequence[str], Path, Mapping[str, str]], float]


def compared(
    stages: Mapping[str, Sequence[str]],
    measure: Measure,
    directory: Path,
    sides: Mapping[str, Mapping[str, str]],
    n: int,
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each stage on both sides, measured in turn, in n rounds."""
    return {
        stage: in_turn({side: partial(measure, arguments, directory, env) for side, env in sides.items()}, n)
        for stage, arguments in stages.items()
    }


def figure(name: str, found: Mapping[str, Sequence[float]], goal: str | None) -> Figure:
    """Warm against plain."""
    warm, plain = found["warm"], found["plain"]
    median = statistics.median(warm)
    text = f"{median:.3f} s ({min(warm):.3f}–{max(warm):.3f}), {ratio(warm, plain)}"
    return Figure(name, median, text, f"without, {statistics.median(plain):.2f} s", goal)


def help_figure(env: Mapping[str, str], rounds: int) -> Figure:
    """`primecli --help` against the import that it cannot do without."""
    sides = {"help": [*PRIMECLI, "--help"], "typer": [sys.executable, "-c", "import typer"]}
    found = in_turn({name: partial(cpu_seconds, command, env) for name, command in sides.items()}, rounds)
    median = statistics.median(found["help"])
    baseline = f"`import typer`, {statistics.median(found['typer']):.3f} s of CPU"
    text = f"{median:.3f} s of CPU, {ratio(found['help'], found['typer'])}"
    return Figure("primecli --help", median, text, baseline, f"<= {HELP_SECONDS}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed primecli has its bytecode
    plain = environment(options.threads)
    with tempfile.TemporaryDirectory() as name, warmed(options.threads) as warm:
        directory, sides = Path(name), {"plain": plain, "warm": warm}
        make(directory)
        ready = compared(READY, seconds_to_first_shard, directory, sides, options.rounds)
        whole = compared(WHOLE, seconds_to_end, directory, sides, options.rounds)
    figures = [figure(f"{stage}, ready", found, f"<= {READY_SECONDS}") for stage, found in ready.items()]
    figures += [figure(f"{stage}, whole", found, None) for stage, found in whole.items()]
    figures.append(help_figure(plain, options.rounds))
    title = f"start of a stage, under warm against without; medians of {options.rounds} rounds"
    show(title, figures, options.json, ready=ready, whole=whole)


if __name__ == "__main__":
    main()
