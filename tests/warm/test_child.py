from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from primecli.warm.child import take_environment
from tests.builders import rollouts, write_shards
from tests.conftest import summary
from tests.warm_processes import REFUSAL, Warm

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


def test_the_child_takes_on_what_the_front_was_started_with(
    waiting: subprocess.Popen[str], warm: Warm, tmp_path: Path
) -> None:
    child, front = Path(f"/proc/{warm.child()}"), Path(f"/proc/{waiting.pid}")
    assert os.readlink(child / "cwd") == str(tmp_path)
    assert (child / "comm").read_text() == "score-prm\n"
    assert os.getpgid(int(child.name)) == waiting.pid
    assert os.getsid(int(child.name)) == os.getsid(waiting.pid)
    ends = [os.readlink(child / "fd" / number) for number in "012"]
    assert all(end.startswith("pipe:") for end in ends)
    held = {os.readlink(entry) for entry in (front / "fd").iterdir()} & set(ends)
    assert held == {ends[2]}  # the front has closed stdin and stdout
    status = [(process / "status").read_text() for process in (child, front)]
    for field in ("Umask", "SigIgn", "SigBlk"):
        values = [line for text in status for line in text.splitlines() if line.startswith(field)]
        assert values[0] == values[1]


def test_umask_open_files_and_environment_are_the_fronts(warm: Warm, tiny: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", rollouts(1, 2))
    script = f"""
    umask 077
    export COLUMNS=63
    p generate --help > help
    ls in/*.parquet > list
    exec 9< list
    p score-prm --prm {tiny} --ref {tiny} - < /dev/fd/9
    p score-prm --prm {tiny} --ref {tiny} --out closed in <&- >&-
    trap '' HUP
    p score-prm --prm {tiny} --ref {tiny} --out again in 2>&1 >/dev/null | cat
    """
    done = warm.bash(script, tmp_path)
    assert (done.returncode, REFUSAL in done.stderr) == (0, False), done.stderr
    assert done.stdout.splitlines()[0] == "score-prm/rollouts-00000-of-00001.parquet"
    assert "\n  Each shard holds whole groups: the N responses to a prompt,\n" in (tmp_path / "help").read_text()
    shard = tmp_path / "score-prm" / "rollouts-00000-of-00001.parquet"
    assert stat.S_IMODE(shard.stat().st_mode) == 0o600
    assert summary(tmp_path / "closed")["status"] == "complete"


def test_the_number_of_threads_follows_the_environment() -> None:
    import torch

    environment = dict(os.environ)
    try:
        take_environment({**environment, "OMP_NUM_THREADS": "2"}, environment)
        assert torch.get_num_threads() == 2
    finally:
        take_environment(environment, {**environment, "OMP_NUM_THREADS": "2"})
    assert torch.get_num_threads() == 1
