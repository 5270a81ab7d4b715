from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.main import get_command

from primecli import cli
from primecli.setup.config import options
from tests.conftest import shell, summary

NAMES = ["Makefile", "primecli.toml", "README.md", "prompts.jsonl", "heldout.jsonl"]


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_it_lists_the_files_and_the_next_step(tmp_path: Path, primecli: Any) -> None:
    result = primecli("init", tmp_path / "a b", "--model", "some/model")
    *lines, last = map(str, result.paths)
    assert lines[:-1] == [f"wrote {tmp_path / 'a b' / name}" for name in NAMES]
    assert lines[-1].startswith("disk: an iteration writes 28 bytes for each parameter")  # its size is not known
    assert last.startswith(f"next: make -C '{tmp_path / 'a b'}' ITERATIONS=1")
    assert "MODEL      ?= some/model\n" in texts(tmp_path / "a b")["Makefile"]


def test_existing_files_are_overwritten_only_with_force(tmp_path: Path, primecli: Any) -> None:
    (tmp_path / "README.md").write_text("mine")
    result = primecli("init", tmp_path, check=False)
    assert (result.code, f"{tmp_path / 'README.md'} exists already" in result.line()) == (2, True)
    assert texts(tmp_path) == {"README.md": "mine"}
    primecli("init", tmp_path, "--force")
    assert sorted(texts(tmp_path)) == sorted(NAMES)
    assert texts(tmp_path)["README.md"] != "mine"


def test_your_own_prompts_replace_the_examples(tmp_path: Path, primecli: Any, monkeypatch: Any, prompts: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result_text = " ".join(map(str, primecli("init", "run", "--prompts", prompts.name).paths))
    files = texts(tmp_path / "run")
    assert sorted(files) == sorted(NAMES[:3])
    assert f"PROMPTS    ?= {prompts}\n" in files["Makefile"]
    assert "prompts.jsonl" not in files["README.md"]
    assert "heldout.jsonl" not in files["README.md"]
    assert "HELDOUT    ?=\n" in files["Makefile"]
    assert "nothing will be evaluated" in result_text
    result = primecli("init", "other", "--prompts", "nowhere.jsonl", check=False)
    assert (result.code, "nowhere.jsonl: no such file" in result.line()) == (2, True)
    assert not (tmp_path / "other").exists()


def test_held_out_prompts_are_wired_into_the_makefile(tmp_path: Path, primecli: Any, prompts: Path) -> None:
    primecli("init", tmp_path / "examples")
    assert "HELDOUT    ?= heldout.jsonl\n" in texts(tmp_path / "examples")["Makefile"]
    result = primecli("init", tmp_path / "own", "--prompts", prompts, "--heldout", prompts)
    files = texts(tmp_path / "own")
    assert f"HELDOUT    ?= {prompts}\n" in files["Makefile"]
    assert "heldout.jsonl" not in {*files, *files["README.md"].split("`")}
    assert not any("nothing will be evaluated" in str(line) for line in result.paths)
    result = primecli("init", tmp_path / "other", "--heldout", tmp_path, check=False)
    assert (result.code, f"--heldout {tmp_path}: not a file" in result.line()) == (2, True)


def test_an_init_that_was_killed_half_way_needs_no_force(tmp_path: Path, primecli: Any) -> None:
    primecli("init", tmp_path / "whole")
    primecli("init", tmp_path / "half")
    (tmp_path / "half/README.md").unlink()
    primecli("init", tmp_path / "half")
    assert texts(tmp_path / "half") == texts(tmp_path / "whole")


def test_without_a_model_make_asks_for_one(tmp_path: Path, primecli: Any) -> None:
    result = primecli("init", tmp_path)
    assert "MODEL=" in str(result.paths[-1])
    done = shell("make", tmp_path)
    assert (done.returncode, "no model: name one in the Makefile" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
    assert shell("make clean", tmp_path).returncode == 2
    assert "make watch" in shell("make help", tmp_path).stdout


@pytest.mark.parametrize(
    ("variables", "stages"),
    [
        ("", "generate verify filter update-prm score-prm compute-advantages update-policy"),
        ("PRM=none LOG=wandb", "generate verify filter compute-advantages update-policy"),
        (
            "ESTIMATOR=gae LOG='wandb tensorboard' ENGINE=vllm-server",
            "generate verify filter update-prm score-prm score-values compute-advantages update-critic update-policy",
        ),
    ],
)
def test_the_makefile_runs_the_stages_with_options_that_exist(
    variables: str, stages: str, tmp_path: Path, primecli: Any
) -> None:
    primecli("init", tmp_path, "--model", "some/model")
    done = shell(f"make -n ITERATIONS=4 HELDOUT=other.jsonl EVAL_EVERY=2 {variables}", tmp_path)
    assert done.returncode == 0, done.stderr
    commands = re.findall(r"primecli ([a-z-]+)([^|>]*)", done.stdout)
    evaluation, training = ["generate", "verify", "evaluate"], stages.split()
    plan = [*evaluation, *2 * training, *evaluation, *2 * training, *evaluation, "report"]
    assert [name for name, _ in commands] == plan
    for name, rest in commands:
        known = {f"--{option}" for option in options(get_command(cli.app).commands[name])}  # type: ignore[attr-defined]
        assert set(re.findall(r"--[a-z-]+", rest)) <= known
    assert re.findall(r"--step (\d)", done.stdout) == list("1234")
    wired = re.findall(r"update-policy --policy (\S+)", done.stdout)
    assert wired == ["some/model", "run/policy/1", "run/policy/2", "run/policy/3"]


@pytest.mark.parametrize(
    ("keep", "policies", "others", "shards"),
    [("all", "", "", ""), ("evaluated", "1", "12", ""), ("last", "12", "12", "1234")],
)
def test_what_stays_of_an_iteration(
    keep: str, policies: str, others: str, shards: str, tmp_path: Path, primecli: Any
) -> None:
    """The two newest checkpoints always, and metrics; policies of which the model is removed, and so on."""
    primecli("init", tmp_path, "--model", "some/model")
    done = shell(f"make -n ITERATIONS=4 HELDOUT=other.jsonl EVAL_EVERY=2 KEEP={keep}", tmp_path)
    assert re.findall(r"run/policy/(\d)/\*", done.stdout) == list(policies)
    assert re.findall(r"run/policy/(\d)/trainer/\*", done.stdout) == list(others)
    assert re.findall(r"run/prm/(\d)/\*", done.stdout) == list(others)
    assert re.findall(r"run/(\d)/score-prm/\*", done.stdout) == list(shards)


def test_a_loop_says_what_disk_it_needs_and_refuses_an_unknown_keep(tmp_path: Path, tiny: Path, primecli: Any) -> None:
    lines = primecli("init", tmp_path, "--model", tiny).paths
    (line,) = (str(line) for line in lines if str(line).startswith("disk: "))
    parameters = sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    assert f"(12 bytes for each of {parameters:,} parameters)" in line
    assert f"free in {tmp_path}" in line
    done = shell("make KEEP=some", tmp_path)
    assert (done.returncode, "KEEP=some: give evaluated, last or all" in done.stderr) == (2, True)


def test_a_killed_loop_continues_and_ends_with_a_policy_and_a_report(
    tmp_path: Path, tiny: Path, prompts: Path, primecli: Any, forked: Mapping[str, str]
) -> None:
    primecli("init", tmp_path / "it", "--model", tiny, "--prompts", prompts)
    file = tmp_path / "it/primecli.toml"
    text = file.read_text()
    for default, value in [
        ("max-tokens = 3072", "max-tokens = 4"),
        ("accuracy = [0.2, 0.8]", "accuracy = [0, 1]"),  # a random model knows nothing
        ("allow-truncated = false", "allow-truncated = true"),
        ("workers =", "workers = 1"),
    ]:
        assert f"# {default}\n" in text
        text = text.replace(f"# {default}\n", f"{value}\n")
    file.write_text(text)
    make = "make ITERATIONS=1 BATCH=2 SAMPLES=2 ENGINE=hf LOG=tensorboard"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    first = subprocess.Popen(
        ["bash", "-c", f"exec {make}"],
        cwd=file.parent,
        env={**forked, "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    run = file.parent / "run"
    end = time.monotonic() + 120
    while not list(run.glob("1/generate/*.parquet")):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (run / ".done/1").exists()
    done = shell(make, file.parent, environment=forked)
    assert done.returncode == 0, done.stderr
    assert summary(run / "policy/1")["config"]["lr"] == 5e-7
    assert summary(run / "1/filter")["rows"] == 4
    assert summary(run / "1/generate")["config"]["max_tokens"] == 4
    assert (run / "policy/1/model.safetensors").exists()
    assert "<html" in (run / "report.html").read_text()[:300]
    assert list(run.glob("log/tensorboard/prm/events*"))
    assert "Nothing to be done for 'all'" in shell(make, file.parent).stdout
