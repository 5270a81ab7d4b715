"""Workers on this machine: what they make, and what is left when they, or the stage, or its reader, come to an end.

python -m tests.scale.workers                 # everything, some minutes on two cores
python -m tests.scale.workers killed_worker   # one check
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks.measuring import environment
from tests.scale.stages import Stage, check, interrupt, run, run_checks, same, score, within

TWO = ("--workers", "2")


def scores(work: Path) -> None:
    """score-prm: two workers make what one process makes, and the paths come in order."""
    out, _ = run(score(work, "two", *TWO), work)
    check(out.splitlines() == [str(path) for path in sorted((work / "two").glob("*.parquet"))], f"the paths: {out}")
    same(work / "one", work / "two")


def samples(work: Path) -> None:
    """generate, then check-logprobs and score-values: the same from two workers."""
    from primecli.setup.tiny_model import make_model

    make_model(work / "tiny")
    rows = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(40)]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["generate", "--model", "tiny", "--prompts", "prompts.jsonl", "--engine", "hf", "--max-tokens", "40"]
    tables = []
    for name, options in (("alone", ()), ("both", TWO)):
        run([*base, "--prompts-per-shard", "5", "--out", f"{name}/generate", *options], work)
        run(["score-values", "--critic", "tiny", f"{name}/generate", *options], work)
        tables.append(run(["check-logprobs", "--model", "tiny", f"{name}/generate", *options], work)[0])
    for stage in ("generate", "score-values"):
        same(work / "alone" / stage, work / "both" / stage)
    check(tables[0] == tables[1], f"check-logprobs:\n{tables[0]}\n{tables[1]}")


def killed_worker(work: Path) -> None:
    """A worker killed in the middle of a shard: one line, and the same result."""
    stage = Stage(score(work, "killed", *TWO), work)
    stage.first_line()
    os.kill(random.choice(stage.workers()), signal.SIGKILL)
    code, _, err = stage.end()
    lines = [line for line in err.splitlines() if "was killed by SIGKILL while it made rollouts-" in line]
    check(code == 0 and len(lines) == 1, f"exit code {code}\n{err}")
    same(work / "one", work / "killed")


def killed_stage(work: Path) -> None:
    """The stage killed: no worker is left, and the same command again ends with the same result."""
    stage = Stage(score(work, "again", *TWO), work)
    stage.first_line()
    interrupt(stage, signal.SIGKILL)
    stage.end()
    _, err = run(score(work, "again", *TWO), work)
    check("existed already" in err, err)
    same(work / "one", work / "again")
    left = [path.name for path in (work / "again").iterdir() if path.name.startswith(".tmp")]
    check(not left, f"left behind: {left}")


def interrupted(work: Path) -> None:
    """Ctrl-C, while the workers start and while they work: exit code 130, one line, and nothing left."""
    for ready in (Stage.others, Stage.first_line):
        stage = Stage(score(work, "interrupted", *TWO, "--force", "--quiet"), work)
        within(partial(ready, stage), "no worker has started", 60)
        interrupt(stage)
        code, _, err = stage.end()
        check(code == 130 and len(err.splitlines()) == 1, f"exit code {code}\n{err}")


def closed_pipe(work: Path) -> None:
    """`| head -1` is a normal end, and nothing is left running."""
    stage = Stage(score(work, "head", *TWO), work)
    stage.first_line()
    assert stage.process.stdout is not None
    stage.process.stdout.close()
    stage.process.wait(60)
    within(lambda: not stage.others(), "processes are left running")
    assert stage.process.stderr is not None
    err = stage.process.stderr.read()
    check(stage.process.returncode == 0 and "the reader closed the pipe" in err, f"{stage.process.returncode}\n{err}")


def error(work: Path) -> None:
    """A shard that cannot be scored: its line, exit code 3, and what came before it is there."""
    import shutil

    directory = work / "damaged"
    shutil.copytree(work / "filter", directory)
    victim = sorted(directory.glob("*.parquet"))[3]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(bytes(data))
    words = score(work, "stopped", *TWO, "--quiet")
    words[words.index(str(work / "filter"))] = str(directory)
    out, err = run(words, work, 3)
    check(len(out.splitlines()) == 3 and len(err.splitlines()) == 1 and victim.name in err, f"{out}\n{err}")


def pipeline(work: Path) -> None:
    """Behind another stage, whose paths come one by one: none is lost and the order is kept."""
    from primecli.setup.tiny_model import make_model
    from tests.builders import rollouts, write_shards

    make_model(work / "small")
    write_shards(work / "p" / "generate", rollouts(20, 2), per_shard=2)
    primecli = f"{sys.executable} -m primecli"
    line = f"{primecli} verify p/generate --force | {primecli} score-prm --prm small --ref rollout --workers 2 --force"
    for _ in range(3):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"],
            cwd=work,
            env=environment(1),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        names = [Path(path).name for path in done.stdout.splitlines()]
        check(done.returncode == 0 and len(names) == 20 and names == sorted(names), f"{names}\n{done.stderr}")


CHECKS = {
    function.__name__: function
    for function in (scores, samples, killed_worker, killed_stage, interrupted, closed_pipe, error, pipeline)
}

if __name__ == "__main__":
    run_checks(__doc__, CHECKS)
