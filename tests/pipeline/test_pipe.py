"""A stdout that cannot be written to, for every command that prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from primecli.catalog import NAMES
from tests.command_lines import SHARDS, command_lines, make_shards
from tests.conftest import shell
from tests.made_runs import make_run

PRINTING = [name for name in NAMES if name != "warm"]  # warm's stdout is that of the command it runs


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with shards of two stages and a run."""
    directory = tmp_path_factory.mktemp("made")
    make_shards(directory / "generate", tiny)
    assert shell("primecli verify generate --quiet", directory).returncode == 0
    make_run(directory / "run", iterations=1)
    return directory


def words(name: str, tiny: Path, made: Path, target: Path) -> list[object]:
    """A command line of the command that prints something."""
    (target / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (target / "labelled.jsonl").write_text('{"prompt": "1+1=", "response": "2", "label": 1}\n')
    others: dict[str, list[object]] = {
        "generate": [
            *["--model", tiny, "--prompts", target / "prompts.jsonl", "--n", 1, "--max-tokens", 2],
            *["--out", target / "out", "--device", "cpu"],
        ],
        "import": [target / "labelled.jsonl", "--model", tiny, "--out", target / "out"],
        "prepare": [target / "prompts.jsonl", "--out", target / "prepared.parquet"],
        "report": [made / "run", "--format", "md"],
        "watch": [made / "run", "--once"],
        "doctor": ["--no-iteration"],
        "init": [target / "new"],
    }
    line = others.get(name) or command_lines(tiny, target)[name]
    return [name, *(made / "verify" if word is SHARDS else word for word in line)]


@pytest.mark.parametrize("name", PRINTING)
def test_a_full_device_is_one_line_and_exit_code_1(
    name: str, tiny: Path, made: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words(name, tiny, made, tmp_path)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        result = primecli(*line, check=False)
    assert result.code == 1
    said = [text for text in result.err.splitlines() if "stdout" in text]
    assert said == [
        f"primecli {name}: cannot write to stdout: No space left on device (free some space, or redirect it elsewhere)"
    ]


@pytest.mark.parametrize("name", PRINTING)
def test_a_closed_pipe_ends_a_command_quietly(
    name: str, tiny: Path, made: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words(name, tiny, made, tmp_path)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        result = primecli(*line, check=False)
    assert result.code == 0, result.err
    assert "unexpected" not in result.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["audit", "verify", "--fail-on", "pair-accuracy<2"], 5), (["validate", "run/1/generate"], 3)],
)
def test_a_closed_pipe_hides_no_failure(
    arguments: list[str], code: int, made: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert primecli(*arguments, check=False).code == code
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert primecli(*arguments, check=False).code == 1


def test_in_a_shell(made: Path) -> None:
    """The interpreter's last flush, which a test inside the process cannot see; and a stdout closed from the start."""
    script = """
    set +e +o pipefail
    for what in "--help" "--version" "stats verify" "query verify 'SELECT prompt FROM rollouts, range(4000)'"; do
      eval "primecli $what" > /dev/full; echo $?
      eval "primecli $what" | head -c 1 > /dev/null; echo ${PIPESTATUS[0]}
      eval "primecli $what" >&-; echo $?
    done
    """
    done = shell(script.replace("query verify", "query verify --format csv"), made)
    assert done.stdout.split() == ["1", "0", "0"] * 4
    assert len(done.stderr.splitlines()) == 4
    assert all(line.endswith("elsewhere)") for line in done.stderr.splitlines()), done.stderr
