"""The loop that `init` writes, with ASYNC=1 and on many devices: which stages run, when, and from which weights."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from primecli import cli
from primecli.setup.config import options
from tests.conftest import shell, summary
from tests.paced_loop import PacedLoop

SAMPLING, UPDATING = ("generate", "verify", "filter"), ("update-prm", "score-prm", "update-policy")


@pytest.fixture
def loop(tmp_path: Path, primecli: Any) -> Path:
    """What `init` writes."""
    primecli("init", tmp_path, "--model", "some/model")
    return tmp_path


def stages(text: str) -> list[tuple[str, str, str]]:
    """The commands that make would run: what stands before primecli, the stage, and its options."""
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines if "primecli" in line for part in line.split("|")]
    found = [re.search(r"(.*)\bprimecli ([a-z-]+)(.*)", part) for part in parts]
    return [(match[1].strip(), match[2], match[3]) for match in found if match]


def check_options(name: str, given: str) -> None:
    known = {f"--{option}" for option in options(get_command(cli.app).commands[name])}  # type: ignore[attr-defined]
    assert set(re.findall(r"--[a-z-]+", given)) <= known


def test_an_asynchronous_loop_samples_with_the_policy_of_one_update_before(loop: Path) -> None:
    done = shell("make -n ITERATIONS=4 ASYNC=1 TIS_CAP=3", loop)
    assert done.returncode == 0, done.stderr
    for _, name, given in stages(done.stdout):
        check_options(name, given)
    sampled = re.findall(r"generate --model (\S+) .*--step (\d)", done.stdout)
    assert sampled == [("some/model", "1"), ("some/model", "2"), ("run/policy/1", "3"), ("run/policy/2", "4")]
    updates = [given for _, name, given in stages(done.stdout) if name == "update-policy"]
    assert [given.split()[1] for given in updates] == ["some/model", "run/policy/1", "run/policy/2", "run/policy/3"]
    assert all("--max-staleness 1 --tis-cap 3" in given for given in updates)
    assert re.findall(r"^echo (\S+)", done.stdout, flags=re.MULTILINE)[-1] == "run/4/filter"
    plain = shell("make -n ITERATIONS=4", loop).stdout
    assert not re.search("--max-staleness|--tis-cap|sampled", plain)


@pytest.mark.parametrize("jobs", ["", "-j4"])
def test_an_asynchronous_loop_samples_during_the_update(jobs: str, loop: Path) -> None:
    paced = PacedLoop(loop)
    (loop / "sft").mkdir()
    (loop / "sft/model.safetensors").touch()
    make = f"make {jobs} ASYNC=1 PRIMECLI={paced.stage} MODEL=sft EVAL_EVERY=1 KEEP=last ITERATIONS="
    done = shell(make + "4", loop, timeout=60)
    assert done.returncode == 0, done.stderr
    paced.check_order(iterations=4)
    assert "Nothing to be done for 'all'" in shell(make + "4", loop).stdout
    assert shell(make + "5", loop).returncode == 0  # the two newest policies are still there
    assert [path.parent.name for path in sorted(loop.glob("run/policy/*/model.safetensors"))] == ["4", "5"]


@pytest.mark.parametrize(("stamps", "variable"), [("1", "ASYNC=1"), ("1 sampled-1", "")])
def test_a_run_does_not_change_between_the_kinds_of_loop(stamps: str, variable: str, loop: Path) -> None:
    (loop / "run/.done").mkdir(parents=True)
    for name in stamps.split():
        (loop / "run/.done" / name).touch()
    done = shell(f"make -n ITERATIONS=2 {variable}", loop)
    assert done.returncode == 2
    assert re.search(r"run was begun with(out)? ASYNC", done.stderr)
    assert shell(f"make -n report {variable}", loop).returncode == 0


def test_processes_and_machines_are_passed_to_the_stages_that_have_them(loop: Path) -> None:
    def given(variables: str) -> dict[str, str]:
        done = shell(f"make -n ITERATIONS=1 ESTIMATOR=gae ENGINE=hf {variables}", loop)
        assert done.returncode == 0, done.stderr
        found = {}
        for before, name, rest in stages(done.stdout):
            check_options(name, rest)
            words = re.findall(r"--(?:nproc|workers|ray|ray-workers) \S+", rest)
            found[name] = " ".join([*filter(None, [before]), *words])
        return {name: text for name, text in found.items() if text}

    updates = ("update-prm", "update-critic", "update-policy")
    assert given("") == {}
    assert given("NPROC=2") == dict.fromkeys([*updates, "score-prm", "score-values"], "--nproc 2")
    assert given("NPROC=auto WORKERS=3") == {
        **dict.fromkeys(updates, "--nproc auto"),
        **dict.fromkeys(("generate", "score-prm", "score-values"), "--workers 3"),
    }
    on_ray = ("generate", "verify", "score-prm", "score-values")
    assert given("RAY=auto") == dict.fromkeys(on_ray, "--ray auto")
    assert given("RAY=h:6379 WORKERS=3 LAUNCH='srun -N2'") == {
        **dict.fromkeys(updates, "srun -N2"),
        **dict.fromkeys(on_ray, "--ray h:6379 --ray-workers 3"),
    }
    assert given("WORKERS=3 SAMPLE_WORKERS=") == dict.fromkeys(("score-prm", "score-values"), "--workers 3")
    assert given("RAY=auto WORKERS=3 SAMPLE_WORKERS=5") == {
        **dict.fromkeys(("generate", "verify"), "--ray auto --ray-workers 5"),
        **dict.fromkeys(("score-prm", "score-values"), "--ray auto --ray-workers 3"),
    }
    assert given("LAUNCH='srun -N2'") == dict.fromkeys([*updates, "score-prm", "score-values"], "srun -N2")
    done = shell("make -n NPROC=2 LAUNCH=srun", loop)
    assert (done.returncode, "NPROC and LAUNCH both start the ranks" in done.stderr) == (2, True)


def test_each_half_of_an_asynchronous_loop_has_its_gpus(loop: Path) -> None:
    stage = '#!/bin/bash\n[ -t 0 ] || cat > /dev/null\necho "$1 $CUDA_VISIBLE_DEVICES" >> log\n'
    (loop / "stage").write_text(stage)
    (loop / "stage").chmod(stat.S_IRWXU)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "6,7"}
    for number, (variables, sampling, updating) in enumerate(
        [("SAMPLE_GPUS=2,3 UPDATE_GPUS=0,1", "2,3", "0,1"), ("UPDATE_GPUS=0 HELDOUT=", "6,7", "0"), ("", "6,7", "6,7")]
    ):
        make = f"make ASYNC=1 PRIMECLI=./stage RUN={number} ITERATIONS=1 {variables} < /dev/null"
        done = shell(make, loop, environment=environment)
        assert done.returncode == 0, done.stderr
        log = dict(line.split() for line in (loop / "log").read_text().splitlines())
        assert {name: log[name] for name in SAMPLING} == dict.fromkeys(SAMPLING, sampling)
        assert {name: log[name] for name in UPDATING} == dict.fromkeys(UPDATING, updating)
        assert (log.get("evaluate", sampling), log["report"]) == (sampling, "6,7")
        (loop / "log").unlink()


def test_an_asynchronous_loop_learns_from_rollouts_of_the_policy_before(
    tmp_path: Path, tiny: Path, prompts: Path, primecli: Any
) -> None:
    primecli("init", tmp_path / "it", "--model", tiny, "--prompts", prompts)
    (tmp_path / "it/primecli.toml").write_text(
        "[generate]\nmax-tokens = 4\n[verify]\nworkers = 1\n[filter]\naccuracy = [0, 1]\nallow-truncated = true\n"
        "[update-policy]\nlr = 1e-3\n"
    )
    make = "primecli warm -- make ASYNC=1 ITERATIONS=2 BATCH=2 SAMPLES=2 ENGINE=hf KEEP=all"
    done = shell(make, tmp_path / "it")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "it/run"
    sampled_by = [json.loads((run / f"{number}/generate/_summary.json").read_text()) for number in (1, 2)]
    assert [Path(each["config"]["model"]).name for each in sampled_by] == [tiny.name] * 2
    metrics = [summary(run / f"policy/{number}")["metrics"] for number in (1, 2)]
    assert [each["staleness"] for each in metrics] == [0, 1]
    gaps = [abs(each["importance_weight"] - 1) for each in metrics]
    assert gaps[0] < 1e-4 < gaps[1]  # the trainer's probabilities have moved on from the sampler's
