"""The examples for clusters, as far as one machine can test them: their syntax, and what launch.sh starts where."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
MAKEFILE = ROOT / "primecli" / "setup" / "starter" / "Makefile"

# ssh runs its last word here. torchrun and srun say what they were asked for and, as one rank would, run the command.
STAND_INS = {
    "ssh": 'echo "ssh $4" >> log; exec bash -c "${@: -1}"',
    "torchrun": """
        echo "torchrun $*" >> log
        while [ "$1" != --no-python ]; do [ "$1" != --node-rank ] || export RANK=$2; shift; done
        exec "${@:2}" """,
    "srun": 'echo "srun $MASTER_PORT $*" >> log',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which the stand-ins are found."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HF_HOME": "/a b/$c"}


def launch(directory: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(CLUSTER / "launch.sh"), *words],
        cwd=directory,
        env=environment,
        input="first\nsecond\n",
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_first_host_has_rank_0_and_stdin_and_stdout(tmp_path: Path, environment: dict[str, str]) -> None:
    command = 'echo "rank $RANK, HF_HOME $HF_HOME, $1, $PWD"; cat'
    done = launch(tmp_path, environment, "here,there,beyond", "8", "bash", "-c", command, "x", "it's $5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"rank 0, HF_HOME /a b/$c, it's $5, {tmp_path}\nfirst\nsecond\n"
    log = sorted((tmp_path / "log").read_text().splitlines())
    assert log[:2] == ["ssh beyond", "ssh there"]
    options = r"torchrun --nnodes 3 --nproc-per-node 8 --master-addr here --master-port (\d+) --node-rank (\d)"
    found = [re.match(options, line) for line in log[2:]]
    assert [match and match[2] for match in found] == ["0", "1", "2"]
    assert len({match and match[1] for match in found}) == 1


def test_every_rank_has_the_same_command_and_environment(tmp_path: Path, environment: dict[str, str]) -> None:
    command = 'echo "$HF_HOME, $1, $PWD" > "rank $RANK"'
    assert launch(tmp_path, environment, "here,there", "8", "bash", "-c", command, "x", "it's $5").returncode == 0
    assert (tmp_path / "rank 1").read_text() == (tmp_path / "rank 0").read_text() == f"/a b/$c, it's $5, {tmp_path}\n"


def test_what_fails_on_one_machine_ends_on_all(tmp_path: Path, environment: dict[str, str]) -> None:
    command = '[ "$RANK" = 0 ] || exit 3; echo $$ > pid; exec sleep 50'
    done = launch(tmp_path, environment, "here,there", "1", "bash", "-c", command)
    assert done.returncode == 3
    if (tmp_path / "pid").exists():  # it may have ended before it wrote that
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_on_slurm_each_update_has_a_port_of_its_own(tmp_path: Path, environment: dict[str, str]) -> None:
    environment |= {"SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "4"}
    for _ in range(2):
        assert launch(tmp_path, environment, "slurm", "8", "primecli", "update-prm").returncode == 0
    lines = [line.split(" ", 2) for line in (tmp_path / "log").read_text().splitlines()]
    assert lines[0][1] != lines[1][1]
    assert lines[0][2] == (
        "--overlap --nodes=2 --ntasks=16 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=4 primecli update-prm"
    )


def test_the_files_are_sound_and_set_variables_of_the_loop() -> None:
    task = yaml.safe_load((CLUSTER / "sky.yaml").read_text(encoding="utf-8"))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H100:8")
    scripts = [(CLUSTER / name).read_text(encoding="utf-8") for name in ("launch.sh", "train.sbatch")]
    scripts += [task["setup"], task["run"]]
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    variables = set()
    for script in (scripts[1], scripts[3]):
        (command,) = re.findall(r"^ *make -C (.*(?:\\\n.*)*)", script, flags=re.MULTILINE)
        variables |= set(re.findall(r"\b([A-Z]+)=", command))
    assert variables == {"ITERATIONS", "RAY", "WORKERS", "LAUNCH"}
    for name in variables:
        assert re.search(rf"^{name} +\?=", MAKEFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
