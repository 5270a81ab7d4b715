"""Whole pipelines of real processes: streaming, stopping early, being killed, and continuing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from primecli.models.identity import model_fingerprint
from primecli.setup.tiny_model import make_model
from primecli.shards import schema
from tests.builders import rollouts, write_shards
from tests.conftest import DATA, read_rows, shell, summary
from tests.warm_processes import REFUSAL

ITERATION = """
primecli generate --model model --prompts prompts.jsonl --out runs/1/generate --n 4 --batch-prompts 6 \
    --prompts-per-shard 2 --max-tokens 24 \
  | primecli verify --workers 1 \
  | primecli filter --accuracy 0 1 --allow-truncated \
  | primecli update-prm --prm model --ref model --checkpoint prm/1 --mini-batch 8 --lr 1e-3 \
  | primecli score-prm --prm prm/1 --ref model \
  | primecli compute-advantages \
  | primecli update-policy --policy model --checkpoint policy/1 --mini-batch 8 --lr 1e-3
"""
STAGES = ("generate", "verify", "filter", "score-prm", "compute-advantages")
RESULTS = [
    f"{name}/1/{file}" for name in ("prm", "policy") for file in ("model.safetensors", "trainer/optimizer.safetensors")
]


def start(directory: Path, model: Path) -> Path:
    """A working directory with the model and prompts that `ITERATION` names."""
    directory.mkdir()
    (directory / "model").symlink_to(model)
    rows = [{"prompt": "1+" * (number % 5) + f"{number}=", "answer": str(number)} for number in range(12)]
    (directory / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def results(directory: Path) -> list[bytes]:
    return [(directory / name).read_bytes() for name in RESULTS]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """One undisturbed iteration."""
    directory = start(tmp_path_factory.mktemp("pipeline") / "unbroken", tiny)
    done = shell(ITERATION, directory)
    assert done.returncode == 0, done.stderr
    return directory


def test_an_iteration_ends_with_checkpoints_and_whole_shards(unbroken: Path) -> None:
    for stage in STAGES:
        found = summary(unbroken / "runs/1" / stage)
        assert (found["status"], found["rows"], found["groups"]) == ("complete", 24, 6)
    columns = set(read_rows(unbroken / "runs/1/compute-advantages")[0])
    not_made = {schema.VALUES, schema.STEP_ENDS, schema.FIRST_WRONG_STEP}  # a critic's, and those of import
    assert columns == {column.name for column in schema.COLUMNS} - not_made
    for name, stage in (("prm", "update-prm"), ("policy", "update-policy")):
        assert summary(unbroken / name / "1")["stage"] == stage
    record = json.loads((unbroken / "policy/1/trainer/primecli.json").read_text())
    assert record["lineage"][0] == read_rows(unbroken / "runs/1/generate")[0][schema.POLICY_FINGERPRINT]


def test_a_warm_iteration_ends_with_the_same_weights(
    unbroken: Path, tiny: Path, forked: Mapping[str, str], tmp_path: Path
) -> None:
    directory = start(tmp_path / "warm", tiny)
    done = shell(ITERATION, directory, environment=forked)
    assert done.returncode == 0, done.stderr
    assert REFUSAL not in done.stderr
    assert results(directory) == results(unbroken)


def test_a_second_run_skips_everything(unbroken: Path, forked: Mapping[str, str]) -> None:
    files = [*unbroken.glob("runs/1/*/*.parquet"), *(unbroken / name for name in RESULTS)]
    stamps = {path: path.stat().st_mtime_ns for path in files}
    done = shell(ITERATION, unbroken, environment=forked)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in files} == stamps


def process_of(stage: str, directory: Path) -> int | None:
    """The process of a stage whose working directory is `directory`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if os.readlink(entry / "cwd") == str(directory) and stage.encode() in words and b"bash" not in words[0]:
                    return int(entry.name)
            except OSError:
                continue
    return None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes through /proc")
@pytest.mark.parametrize(
    ("stage", "after"),
    [
        ("generate", "runs/1/generate/rollouts-00000-of-00003.parquet"),
        ("update-prm", "runs/1/filter/rollouts-00002-of-00003.parquet"),
        ("score-prm", "runs/1/score-prm/rollouts-00000-of-00003.parquet"),
        ("update-policy", "runs/1/compute-advantages/rollouts-00000-of-00003.parquet"),
    ],
)
def test_a_killed_stage_stops_the_rest_and_the_rerun_ends_with_the_same_weights(
    stage: str, after: str, unbroken: Path, tiny: Path, forked: Mapping[str, str], tmp_path: Path
) -> None:
    directory = start(tmp_path / "killed", tiny)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    script = f"set -euo pipefail\n{ITERATION}"
    running = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (directory / after).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = process_of(stage, directory)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    _, errors = running.communicate(timeout=120)
    assert running.returncode != 0, errors
    assert not (directory / "policy/1").exists(), errors
    if stage in STAGES:
        assert re.search(rf"{stage} was killed after [1-3] shard|no shards came through the pipe", errors), errors
    done = shell(ITERATION, directory, environment=forked)
    assert done.returncode == 0, done.stderr
    assert results(directory) == results(unbroken)
    assert not list(directory.rglob(".tmp-*"))


def test_filter_stops_generate_early_and_all_see_success(tiny: Path, forked: Mapping[str, str], tmp_path: Path) -> None:
    directory = start(tmp_path / "w", tiny)
    done = shell(
        """
        primecli generate --model model --prompts prompts.jsonl --out runs/1/generate --n 2 --batch-prompts 600 \
            --prompts-per-shard 1 --max-tokens 200 | primecli verify --workers 1 \
          | primecli filter --accuracy 0 1 --allow-truncated --groups 4 | primecli update-prm --prm model --ref model \
            --checkpoint prm/1
        """,
        directory,
        environment=forked,
    )
    assert done.returncode == 0, done.stderr
    assert summary(directory / "runs/1/filter")["groups"] == 4
    assert summary(directory / "prm/1")["groups"] == 4
    found = summary(directory / "runs/1/generate")
    assert found["status"] == "stopped-by-reader"
    assert 4 <= len(found["shards"]) < 100
    assert sorted(found["shards"]) == sorted(path.name for path in (directory / "runs/1/generate").glob("*.parquet"))
    assert "primecli generate: stopped early because the reader closed the pipe" in done.stderr
    assert "Traceback" not in done.stderr


def test_head_can_close_the_pipe(tmp_path: Path) -> None:
    write_shards(tmp_path / "generate", rollouts(40, 2), per_shard=2)
    done = shell("primecli verify generate | head -n 1", tmp_path)
    assert (done.returncode, done.stdout) == (0, "verify/rollouts-00000-of-00040.parquet\n")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_stages_overlap(tmp_path: Path) -> None:
    """verify passes a shard on before its input ends."""
    write_shards(tmp_path / "generate", rollouts(2, 2), per_shard=2)
    script = """
    mkfifo pipe
    primecli verify - < pipe > out &
    exec 3> pipe
    echo generate/rollouts-00000-of-00002.parquet >&3
    for i in $(seq 300); do [ -s out ] && break; sleep 0.1; done
    cat out
    echo generate/rollouts-00001-of-00002.parquet >&3
    exec 3>&-
    wait %1
    """
    done = shell(script, tmp_path)
    assert (done.returncode, done.stdout) == (0, "verify/rollouts-00000-of-00002.parquet\n"), done.stderr


def test_part_of_a_directory_through_the_pipe_needs_partial(tmp_path: Path) -> None:
    write_shards(tmp_path / "generate", rollouts(3, 2), per_shard=2)
    assert shell("primecli verify generate", tmp_path).returncode == 0
    part = "ls verify/*.parquet | head -n 2 | primecli filter --accuracy 0 1"
    done = shell(part, tmp_path)
    assert done.returncode == 3
    assert "1 of the 3 shards of verify did not come through the pipe" in done.stderr
    assert shell(f"{part} --partial", tmp_path).returncode == 0


def test_an_empty_pipe_is_no_input(tmp_path: Path) -> None:
    done = shell("true | primecli verify", tmp_path)
    assert (done.returncode, "no shards came through the pipe" in done.stderr) == (3, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_is_one_line_and_a_failed_summary(number: signal.Signals, tmp_path: Path) -> None:
    write_shards(tmp_path / "generate", rollouts(1, 2))
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "primecli", "verify", "-"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdin.write("generate/rollouts-00000-of-00001.parquet\n")
        running.stdin.flush()
        assert running.stdout.readline()
        running.send_signal(number)
        assert running.wait(timeout=60) == 130
        assert running.stderr.read().splitlines() == [
            f"primecli verify: interrupted by {number.name} (run the same command again to continue)"
        ]
    assert summary(tmp_path / "verify")["status"] == "failed"


@pytest.mark.skipif(not (DATA / "gsm8k_test.jsonl").exists(), reason=f"no {DATA}/gsm8k_test.jsonl")
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("gsm8k_test.jsonl", r"--prompt-column question --answer-regex '#### (.*)'"),
        ("math500.jsonl", r"--prompt-column problem --suffix ' Put the answer in \boxed{}.'"),
    ],
)
def test_real_problems_pass_through_the_whole_pipeline(
    file: str, options: str, forked: Mapping[str, str], tmp_path: Path
) -> None:
    make_model(tmp_path / "model")
    done = shell(
        f"""
        primecli generate --model model --prompts {DATA / file} {options} --out runs/1/generate --n 2 \
            --batch-prompts 12 --prompts-per-shard 4 --max-tokens 16 --max-prompt-tokens 2000 \
          | primecli verify | primecli filter --accuracy 0 1 --allow-truncated \
          | primecli update-prm --prm model --ref model --checkpoint prm/1 \
          | primecli score-prm --prm prm/1 --ref model | primecli compute-advantages \
          | primecli update-policy --policy model --checkpoint policy/1
        """,
        tmp_path,
        environment=forked,
    )
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "policy/1")["rows"] == 24
    assert summary(tmp_path / "runs/1/verify")["metrics"]["error"] == 0


@pytest.mark.parametrize("stage", ["update-prm", "update-policy"])
def test_one_process_per_step_equals_one_process_of_all_steps(
    stage: str, forked: Mapping[str, str], tmp_path: Path
) -> None:
    """As in tests/commands/test_updates.py, but with a real process for each step."""
    make_model(tmp_path / "model", dtype="bfloat16")
    rows = rollouts(3, 4, policy_fingerprint=model_fingerprint(tmp_path / "model"))
    for row in rows:
        row[schema.ADVANTAGES] = [0.5 - (index % 3) / 2 for index in range(len(row[schema.RESPONSE_IDS]))]
    write_shards(tmp_path / "in", rows, per_shard=4)
    own = "--ref model --prm" if stage == "update-prm" else "--old-logprobs rollout --max-staleness 3 --policy"
    update = f"primecli {stage} --mini-batch 4 --no-shuffle --lr 1e-6 --quiet"
    done = shell(
        f"""
        {update} {own} model --checkpoint whole in
        {update} {own} model --checkpoint 1 in/rollouts-00000-of-00003.parquet
        {update} {own} 1 --checkpoint 2 in/rollouts-00001-of-00003.parquet
        {update} {own} 2 --checkpoint 3 in/rollouts-00002-of-00003.parquet
        """,
        tmp_path,
        environment=forked,
    )
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "trainer/master.safetensors", "trainer/optimizer.safetensors"):
        assert (tmp_path / "3" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_why_nothing_comes_is_said_once_in_a_pipeline(tmp_path: Path) -> None:
    rows = [{**row, schema.OUTCOME_REWARD: 0.0} for row in rollouts(2, 2)]
    write_shards(tmp_path / "verify", rows)
    rest = "primecli verify --out b | primecli filter --out c | primecli verify --out d"
    done = shell(f"primecli filter verify --out a --quiet | {rest}", tmp_path)
    assert done.returncode == 3
    assert [line for line in done.stderr.splitlines() if line] == [
        line for line in done.stderr.splitlines() if line.startswith("primecli filter: no group has passed")
    ]
    done = shell(f"primecli filter nowhere --out a | {rest}", tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines() == ["primecli filter: nowhere: no such file or directory"]
    done = shell(f"true | {rest}", tmp_path)  # no stage of ours has said anything
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["primecli verify"]
