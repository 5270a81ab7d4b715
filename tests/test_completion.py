"""Completion as shells ask for it: through the protocol's variables, and through bash itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from primecli.catalog import NAMES
from primecli.core.registry import ESTIMATORS
from tests.conftest import shell


def ask(shell_name: str, typed: str) -> list[str]:
    """The lines that a shell receives for the text before the cursor."""
    words = typed.split(" ")
    variables = {
        "bash": {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": typed},
        "fish": {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell_name]
    done = subprocess.run(
        [sys.executable, "-m", "primecli"],
        env={**os.environ, **variables, "_PRIMECLI_COMPLETE": f"complete_{shell_name}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("primecli upd", ["update-prm", "update-critic", "update-policy"]),
        ("primecli --config run.toml fil", ["filter"]),
        ("primecli compute-advantages --estimator ", list(ESTIMATORS)),
        ("primecli compute-advantages --estimator g", ["grpo", "gdpo", "gae"]),
        ("primecli update-policy --no-", ["--no-clip", "--no-decay-norms", "--no-shuffle", "--no-preflight"]),
        ("primecli generate --conf", ["--config"]),
        ("primecli verify runs/1/gen", []),  # the shell completes files then
        ("primecli generate --out ", []),
    ],
)
def test_bash_gets_commands_options_and_values(typed: str, wanted: list[str]) -> None:
    assert [line for line in ask("bash", typed) if line] == wanted


def test_fish_gets_one_line_per_word_with_its_description() -> None:
    lines = ask("fish", "primecli generate --")
    words = [line.split("\t") for line in lines]
    assert all(len(pair) == 2 and pair[0].startswith("--") and pair[1] for pair in words)
    assert ["--answer-regex", "Take the first group of this regular expression as the answer, such as…"] in words
    assert [line.split("\t")[0] for line in ask("fish", "primecli ")] == list(NAMES)


def test_zsh_gets_an_expression_with_balanced_quotes() -> None:
    lines = ask("zsh", "primecli generate --")
    assert lines[0].startswith('_arguments \'*: :(("--model":"')
    assert lines[-1].endswith("\"))'")
    assert "".join(lines).count("'") == 2
    assert all(line.count('"') == 4 for line in lines)
    assert ask("zsh", "primecli verify runs/") == ["_files"]


def test_bash_completes_with_the_script_that_is_shown(tmp_path: Path) -> None:
    script = """
        eval "$(_PRIMECLI_COMPLETE=source_bash primecli)"
        COMP_WORDS=(primecli compute-advantages --estimator gr) COMP_CWORD=3
        $(complete -p primecli | sed 's/.*-F \\([^ ]*\\).*/\\1/') primecli
        echo "${COMPREPLY[@]}"
    """
    done = shell(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "grpo\n", "")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "primecli"],
        env={**os.environ, "_PRIMECLI_COMPLETE": f"source_{name}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_PRIMECLI_COMPLETE=complete_{name}" in done.stdout
