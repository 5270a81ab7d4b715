"""Stages forked from the helper: real processes, compared with stages started without it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from primecli.models.identity import model_fingerprint
from primecli.shards import parquet
from primecli.warm.protocol import LENGTH_BYTES
from tests.builders import rollouts, write_shards
from tests.conftest import summary
from tests.warm_processes import REFUSAL, Warm, eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


def kinds_of_files(process: Path) -> list[str]:
    """The kinds of a process's open files without the standard streams, such as socket; closed ones are skipped."""
    kinds = []
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kinds += [os.readlink(entry).partition(":")[0]] if int(entry.name) > 2 else []
    return kinds


def test_the_helper_keeps_nothing_that_it_was_started_with(warm: Warm) -> None:
    process = Path(f"/proc/{warm.process()}")
    assert len(list((process / "task").iterdir())) == 1
    # COMMAND's pidfd, epoll, the listener; the connection that Warm.process made is closed a moment later
    eventually(lambda: sorted(kinds_of_files(process)) == ["anon_inode", "anon_inode", "socket"])
    links = {int(entry.name): os.readlink(entry) for entry in (process / "fd").iterdir()}
    assert (links[0], links[1]) == ("/dev/null", "/dev/null")
    assert os.readlink(process / "cwd") == "/"
    directory = Path(warm.socket).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"{}", b"[]", b'{"stage": 1}', b"\xff"])
def test_a_request_of_another_shape_is_refused_and_the_helper_goes_on(warm: Warm, body: bytes) -> None:
    process = warm.process()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(warm.socket)
        assert connection.recv(100) == b"ready\n"
        connection.sendall(len(body).to_bytes(LENGTH_BYTES) + body)
        assert connection.recv(1000).startswith(b"refused the helper cannot start it: the request: ")
    assert warm.process() == process
    assert Path(f"/proc/{process}").exists()


def without_times(path: Path) -> tuple[Any, Any]:
    """A shard's rows, and its footer without times and without where the commands were run."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        table, footer = file.read(), json.loads(file.metadata.metadata[b"primecli"])
    for record in footer["provenance"]:
        del record["started"], record["seconds"], record["directory"]
    return table, footer


STEPS = (
    "generate --model model --prompts prompts.jsonl --out runs/generate --n 2 --max-tokens 12 --prompts-per-shard 8",
    "score-prm --prm model --ref model rollouts",
    "update-prm --prm model --ref model --checkpoint prm --mini-batch 4 --lr 1e-3 rollouts",
    "compute-advantages score-prm",
    "update-policy --policy model --checkpoint policy --mini-batch 4 --lr 1e-3 --seed 3 compute-advantages",
)


def test_a_warm_stage_writes_the_same_bytes_as_a_plain_one(
    warm: Warm, tiny: Path, prompts: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rollouts(3, 4, policy_fingerprint=model_fingerprint(tiny))
    for name in ("plain", "warm"):
        directory = tmp_path / name
        write_shards(directory / "rollouts", rows, per_shard=4)
        shutil.copy(prompts, directory / "prompts.jsonl")
        (directory / "model").symlink_to(tiny)
        monkeypatch.chdir(directory)
        for step in STEPS:
            if name == "warm":
                assert warm.run(*step.split()).returncode == 0
            else:
                monkeypatch.setattr(sys, "argv", ["primecli", *step.split()])
                primecli(*step.split())
    written = [path for stage in ("runs/generate", "score-prm", "compute-advantages") for path in Path(stage).iterdir()]
    shards = [path for path in written if path.suffix == ".parquet"]
    assert len(shards) == 2 + 3 + 3
    for path in shards:
        assert without_times(tmp_path / "plain" / path) == without_times(tmp_path / "warm" / path)
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        for checkpoint in ("prm", "policy"):
            path = Path(checkpoint, name)
            assert (tmp_path / "plain" / path).read_bytes() == (tmp_path / "warm" / path).read_bytes()


def test_the_stages_of_a_pipeline_are_all_forked(warm: Warm, tiny: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", rollouts(3, 2), per_shard=2)
    script = f"p score-prm --prm {tiny} --ref {tiny} --quiet in | p compute-advantages --quiet | cat"
    done = warm.bash(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"compute-advantages/{parquet.shard_name(number, 3)}" for number in range(3)]


def test_a_closed_pipe_stops_the_child(warm: Warm, tiny: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tiny)
    script = f"""
    p generate --model model --prompts {prompts} --out head --n 2 --prompts-per-shard 1 --max-tokens 200 \
      --batch-prompts 400 | head -n 1
    p generate --model model --prompts {prompts} --out runs/generate --n 2 --prompts-per-shard 1 --max-tokens 100 \
      --batch-prompts 400 | p verify --workers 1 | p filter --accuracy 0 1 --allow-truncated --groups 2
    """
    done = warm.bash(script, tmp_path)
    assert (done.returncode, REFUSAL in done.stderr) == (0, False), done.stderr
    for directory in ("head", "runs/generate"):
        stopped = summary(tmp_path / directory)
        assert stopped["status"] == "stopped-by-reader"
        assert 0 < stopped["groups"] < 100


def test_the_pipe_ends_when_the_child_does(waiting: subprocess.Popen[str], warm: Warm) -> None:
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    child = warm.child()
    os.kill(child, signal.SIGKILL)
    assert waiting.stdout.read() == ""
    assert waiting.wait(timeout=10) == -signal.SIGKILL  # the front exits as the child did
    with pytest.raises(BrokenPipeError):
        os.write(waiting.stdin.fileno(), b"x")
