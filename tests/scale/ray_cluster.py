"""A Ray cluster of several nodes on this machine: what it makes, and what is left when a node or the stage goes.

python -m tests.scale.ray_cluster                # everything, some minutes on two cores
python -m tests.scale.ray_cluster removed_node   # one check
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import environment
from tests.scale.stages import Stage, check, interrupt, run, run_checks, same, score, within


@contextlib.contextmanager
def cluster(*cpus: int) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head has no CPU, and its nodes, with so many CPUs each."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", **environment(1)}  # of the nodes, and so of their workers
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield made, [made.add_node(num_cpus=number) for number in cpus]
    finally:
        made.shutdown()


def same_columns(work: Path) -> None:
    """verify, score-prm and generate (hf): a cluster of two nodes makes what one process makes, paths in order."""
    from primecli.setup.tiny_model import make_model

    make_model(work / "tiny")
    rows = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(20)]
    (work / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate = ["generate", "--model", "tiny", "--prompts", "prompts.jsonl", "--engine", "hf", "--max-tokens", "20"]
    with cluster(1, 1) as (made, _):
        there = ["--ray", made.address]
        for name, options in (("alone", []), ("ray", there)):
            run([*generate, "--prompts-per-shard", "5", "--out", f"{name}/generate", *options], work)
            run(["verify", f"{name}/generate", "--workers", "1", *options], work)
        out, err = run(score(work, "cluster", "--quiet", *there), work)
    for stage in ("generate", "verify"):
        same(work / "alone" / stage, work / "ray" / stage)
    same(work / "one", work / "cluster")
    check(out.splitlines() == [str(path) for path in sorted((work / "cluster").glob("*.parquet"))], f"paths: {out}")
    check(err == "", f"Ray says something: {err}")


def removed_node(work: Path) -> None:
    """A node is removed while its worker scores a shard: the other makes it, and nothing is missing."""
    with cluster(1, 1) as (made, nodes):
        stage = Stage(score(work, "removed", "--ray", made.address), work)
        stage.first_line()
        made.remove_node(nodes[1], allow_graceful=False)
        code, _, err = stage.end()
    check(code == 0 and err.count("making it again") == 1, f"exit code {code}\n{err}")
    same(work / "one", work / "removed")


def killed_workers(work: Path) -> None:
    """Both workers killed, one after the other: Ray starts them again, and the result is the same."""
    stage = Stage(score(work, "killed", "--ray", "local", "--ray-workers", "2"), work)
    stage.first_line()
    for _ in range(2):
        os.kill(actors(stage)[0], signal.SIGKILL)
    code, _, err = stage.end()
    check(code == 0 and "making it again" in err, f"exit code {code}\n{err}")
    same(work / "one", work / "killed")


def actors(stage: Stage) -> list[int]:
    """The processes of a stage's actors that have loaded torch."""
    from tests.scale.stages import command, has_torch

    found: list[int] = []

    def any_there() -> bool:
        found[:] = [pid for pid in stage.others() if "ray::" in command(pid) and has_torch(pid)]
        return bool(found)

    within(any_there, "no actor runs", 60)
    return found


def ends(work: Path) -> None:
    """--ray local, then `| head -1`, Ctrl-C, or SIGKILL of the stage: nothing of the cluster is left running."""
    for how, expected in (("close", 0), ("interrupt", 130), ("kill", -signal.SIGKILL)):
        stage = Stage(score(work, f"ended-{how}", "--ray", "local", "--ray-workers", "2", "--quiet"), work)
        stage.first_line()
        if how == "close":
            assert stage.process.stdout is not None
            stage.process.stdout.close()
            stage.process.stdout = None
        else:
            interrupt(stage, signal.SIGINT if how == "interrupt" else signal.SIGKILL)
        code, _, err = stage.end()
        check(code == expected and len(err.splitlines()) == (how == "interrupt"), f"{how}: exit code {code}\n{err}")


CHECKS = {function.__name__: function for function in (same_columns, removed_node, killed_workers, ends)}

if __name__ == "__main__":
    run_checks(__doc__, CHECKS)
