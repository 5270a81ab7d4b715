"""Stages forked from a helper: real processes, compared with stages started in the plain way."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest

from primecli.catalog import COMMANDS
from primecli.models.identity import model_fingerprint
from primecli.shards import parquet
from primecli.warm import child, helper
from primecli.warm.protocol import VARIABLE, same_user
from tests.builders import rollouts, write_shards
from tests.conftest import summary
from tests.warm_processes import PLAIN, PRIMECLI, Warm, eventually, state, wait_for_first_shard

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm needs Linux")


@pytest.fixture(scope="module")
def warm(one_thread: None) -> Iterator[Warm]:
    """A helper for all tests of this file."""
    helper = Warm()
    yield helper
    helper.end()


def score(tiny: Path) -> list[object]:
    """A stage that reads stdin."""
    return ["score-prm", "--prm", tiny, "--ref", tiny, "--quiet"]


@pytest.fixture
def waiting(warm: Warm, tiny: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A warm stage, leader of a group, that has scored a shard and waits for the next."""
    write_shards(tmp_path / "in", rollouts(2, 2), per_shard=2)
    with warm.start(*score(tiny), "-", cwd=tmp_path, process_group=0) as front:
        wait_for_first_shard(front)
        yield front
        if front.poll() is None:
            front.kill()


def test_the_stages_are_declared_with_what_they_import() -> None:
    graph = grimp.build_graph("primecli", include_external_packages=True)
    modules = {command.name: f"primecli.stages.{command.module}" for command in COMMANDS}
    forked = {command.name for command in COMMANDS if command.forked}
    assert forked == {name for name, module in modules.items() if module in graph.modules}
    needing = {name for name in forked if graph.chain_exists(importer=modules[name], imported="torch")}
    assert needing == {command.name for command in COMMANDS if command.torch}


# What a front starts with


def test_the_front_imports_no_third_party() -> None:
    script = "import sys; before = set(sys.modules); import primecli.__main__, primecli.warm.front\n"
    script += "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["primecli"]


def kinds_of_files(process: Path) -> list[str]:
    """Of the open files beside the standard streams; of those that are still open when they are looked at."""
    kinds = []
    for entry in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kinds += [os.readlink(entry).partition(":")[0]] if int(entry.name) > 2 else []
    return kinds


def test_the_helper_keeps_nothing_of_what_it_was_given(warm: Warm) -> None:
    process = Path(f"/proc/{warm.process()}")
    assert len(list((process / "task").iterdir())) == 1
    # COMMAND's pidfd, epoll, the listener; the connection that asked for its process it closes a moment later
    eventually(lambda: sorted(kinds_of_files(process)) == ["anon_inode", "anon_inode", "socket"])
    links = {int(entry.name): os.readlink(entry) for entry in (process / "fd").iterdir()}
    assert (links[0], links[1]) == ("/dev/null", "/dev/null")
    assert os.readlink(process / "cwd") == "/"
    directory = Path(warm.socket).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_helper_that_has_computed_forks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    assert helper.unfit() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert helper.unfit() == "the helper has initialised CUDA"
    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    assert helper.unfit() == "the helper has 2 threads"


def test_a_socket_of_another_user_is_not_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert same_user(ours)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert not same_user(ours)


def test_stages_without_torch_do_not_wait_for_its_import(tmp_path: Path) -> None:
    helper = socket.socket(socket.AF_UNIX)  # that still imports: it says nothing
    with helper:
        helper.bind(str(tmp_path / "socket"))
        helper.listen()
        done = subprocess.run(
            [*PRIMECLI, "verify", "nowhere"],
            env={**os.environ, VARIABLE: str(tmp_path / "socket")},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (3, "primecli verify: nowhere: no such file or directory\n")


# The same results


def without_times(path: Path) -> tuple[Any, Any]:
    """A shard's rows, and its footer without when and how long."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        table, footer = file.read(), json.loads(file.metadata.metadata[b"primecli"])
    for record in footer["provenance"]:
        del record["started"], record["seconds"]
    return table, footer


STEPS = (
    "generate --model model --prompts prompts.jsonl --out runs/generate --n 2 --max-tokens 12 --prompts-per-shard 8",
    "score-prm --prm model --ref model rollouts",
    "update-prm --prm model --ref model --checkpoint prm --mini-batch 4 --lr 1e-3 rollouts",
    "compute-advantages score-prm",
    "update-policy --policy model --checkpoint policy --mini-batch 4 --lr 1e-3 --seed 3 compute-advantages",
)


def test_every_stage_gives_the_same_bytes_as_in_the_plain_way(
    warm: Warm, tiny: Path, prompts: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rollouts(3, 4, policy_fingerprint=model_fingerprint(tiny))
    for name in ("plain", "warm"):
        place = tmp_path / name
        write_shards(place / "rollouts", rows, per_shard=4)
        shutil.copy(prompts, place / "prompts.jsonl")
        (place / "model").symlink_to(tiny)
        monkeypatch.chdir(place)
        for step in STEPS:
            if name == "warm":
                assert warm.run(*step.split()).returncode == 0
            else:
                monkeypatch.setattr(sys, "argv", ["primecli", *step.split()])
                primecli(*step.split())
    made = [path for stage in ("runs/generate", "score-prm", "compute-advantages") for path in Path(stage).iterdir()]
    found = [path for path in made if path.suffix == ".parquet"]
    assert len(found) == 2 + 3 + 3
    for path in found:
        assert without_times(tmp_path / "plain" / path) == without_times(tmp_path / "warm" / path)
    for name in ("model.safetensors", "trainer/master.safetensors", "trainer/optimizer.safetensors"):
        for checkpoint in ("prm", "policy"):
            path = Path(checkpoint, name)
            assert (tmp_path / "plain" / path).read_bytes() == (tmp_path / "warm" / path).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "--help"], 0),
        (["score-prm", "--nonsense"], 2),
        (["compute-advantages", "nowhere"], 3),
        (["--debug", "--config", os.devnull, "compute-advantages", "nowhere"], 3),
    ],
)
def test_exit_codes_and_words_are_those_of_the_plain_way(arguments: list[str], code: int, warm: Warm) -> None:
    done = warm.run(*arguments)
    assert done.returncode == code
    plain = subprocess.run(
        [*PRIMECLI, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.stdout == plain.stdout
    assert done.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]


def test_the_child_is_what_the_front_would_have_been(
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
    assert held == {ends[2]}  # the front has let go of stdin and stdout
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
    assert (done.returncode, PLAIN in done.stderr) == (0, False), done.stderr
    assert done.stdout.splitlines()[0] == "score-prm/rollouts-00000-of-00001.parquet"
    assert "\n  Each shard holds whole groups: the N samples of a prompt,\n" in (tmp_path / "help").read_text()
    shard = tmp_path / "score-prm" / "rollouts-00000-of-00001.parquet"
    assert stat.S_IMODE(shard.stat().st_mode) == 0o600
    assert summary(tmp_path / "closed")["status"] == "complete"


def test_the_number_of_threads_follows_the_environment() -> None:
    import torch

    environment = dict(os.environ)
    try:
        child.take_environment({**environment, "OMP_NUM_THREADS": "2"}, environment)
        assert torch.get_num_threads() == 2
    finally:
        child.take_environment(environment, {**environment, "OMP_NUM_THREADS": "2"})
    assert torch.get_num_threads() == 1


# Pipes


def test_stages_of_a_pipeline_are_forked_side_by_side(warm: Warm, tiny: Path, tmp_path: Path) -> None:
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
    assert (done.returncode, PLAIN in done.stderr) == (0, False), done.stderr
    for directory in ("head", "runs/generate"):
        found = summary(tmp_path / directory)
        assert found["status"] == "stopped-by-reader"
        assert 0 < found["groups"] < 100


def test_the_end_of_the_child_is_the_end_of_the_pipe(waiting: subprocess.Popen[str], warm: Warm) -> None:
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    child = warm.child()
    os.kill(child, signal.SIGKILL)
    assert waiting.stdout.read() == ""
    assert waiting.wait(timeout=10) == -signal.SIGKILL  # the front ends as the child did
    with pytest.raises(BrokenPipeError):
        os.write(waiting.stdin.fileno(), b"x")


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_group", [False, True])
def test_an_interrupt_is_one_line_and_a_failed_summary(
    number: signal.Signals, to_group: bool, waiting: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(waiting.pid, number) if to_group else os.kill(waiting.pid, number)
    assert waiting.wait(timeout=20) == 130
    assert waiting.stderr is not None
    line = f"primecli score-prm: interrupted by {number.name} (run the same command again to go on)"
    assert waiting.stderr.read().splitlines() == [line]
    assert summary(tmp_path / "score-prm")["status"] == "failed"


def test_the_front_stops_and_goes_on_with_the_child(waiting: subprocess.Popen[str], warm: Warm) -> None:
    child = warm.child()
    os.kill(waiting.pid, signal.SIGTSTP)
    _, status = os.waitpid(waiting.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    eventually(lambda: state(child) == "T")
    os.kill(waiting.pid, signal.SIGCONT)
    eventually(lambda: state(child) == "S")
    waiting.communicate("in/rollouts-00001-of-00002.parquet\n", timeout=20)
    assert waiting.returncode == 0


def test_a_killed_front_takes_the_child_with_it(waiting: subprocess.Popen[str], warm: Warm) -> None:
    child = warm.child()
    waiting.kill()
    eventually(lambda: not state(child))
    assert waiting.wait() == -signal.SIGKILL


def test_a_killed_group_takes_the_child_with_it(waiting: subprocess.Popen[str], warm: Warm) -> None:
    child = warm.child()
    os.kill(warm.process(), signal.SIGSTOP)  # so that it is the kernel alone
    try:
        os.killpg(waiting.pid, signal.SIGKILL)
        eventually(lambda: not state(child))
    finally:
        os.kill(warm.process(), signal.SIGCONT)


def test_a_front_that_waits_for_the_helper_can_be_interrupted(warm: Warm) -> None:
    os.kill(warm.process(), signal.SIGSTOP)
    try:
        front = warm.start("compute-advantages", "nowhere", stdin=subprocess.DEVNULL)
        eventually(lambda: "poll" in Path(f"/proc/{front.pid}/wchan").read_text() or state(front.pid) == "S")
        eventually(lambda: signal_is_caught(front.pid, signal.SIGINT))
        front.send_signal(signal.SIGINT)
        _, errors = front.communicate(timeout=10)
        assert front.returncode == 130
        assert "interrupted by SIGINT" in errors
    finally:
        os.kill(warm.process(), signal.SIGCONT)


def signal_is_caught(process: int, number: int) -> bool:
    (line,) = [line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigCgt")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1) and bool(
        int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1
    )


# Where a child would not be the same


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("HF_HUB_OFFLINE=0 p score-prm", "HF_HUB_OFFLINE is 0 here and 1 in the helper"),
        ("LC_ALL=C p score-prm", "LC_ALL is C here and unset in the helper"),
        ("env -u OMP_NUM_THREADS $primecli score-prm", "OMP_NUM_THREADS is unset here"),
        ("ulimit -n 500; p score-prm", "a resource limit (ulimit) is not that of the helper"),
        ("setsid --wait $primecli score-prm", "the session is not that of the helper"),
        ("nice $primecli score-prm", "the niceness is not that of the helper"),
        (f"{VARIABLE}=/nonexistent p score-prm", "does not answer (No such file or directory)"),
    ],
)
def test_what_differs_is_said_and_the_stage_starts_in_the_plain_way(
    script: str, reason: str, warm: Warm, tmp_path: Path
) -> None:
    done = warm.bash(f"primecli='{' '.join(PRIMECLI)}'\n{script}", tmp_path)
    assert done.returncode == 2  # the command line lacks --prm
    first, second = done.stderr.splitlines()
    assert first.startswith(f"primecli score-prm: {PLAIN}")
    assert reason in first
    assert "Missing option" in second


def test_variables_that_no_import_reads_may_differ(warm: Warm, tmp_path: Path) -> None:
    done = warm.bash("SEED=7 CUDA_VISIBLE_DEVICES= MAKELEVEL=1 PYTHON=python OMP_NUM_THREADS=2 p score-prm", tmp_path)
    assert (done.returncode, PLAIN in done.stderr) == (2, False), done.stderr


def test_changed_code_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "warm").mkdir()
    for name in ("warm/helper.py", "core/losses.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(helper, "__file__", str(tmp_path / "warm" / "helper.py"))
    before = helper.files_on_disk()
    assert helper.files_on_disk() == before
    assert any("torch" in path for path, *_ in before)
    (tmp_path / "core/losses.py").write_text("22")
    assert helper.files_on_disk() != before
