"""Options from a file and from environment variables."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from primecli import cli
from primecli.setup import config
from primecli.shards.parquet import read_footer
from tests.builders import rollouts, write_shards
from tests.conftest import summary


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a file of options and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def graded(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "verify", rollouts(4, 4))


def resolved(primecli: Any, shards: Path, *arguments: object, before: tuple[object, ...] = ()) -> dict[str, Any]:
    """The options that `filter` ran with, according to its summary."""
    primecli(*before, "filter", shards, "--force", *arguments)
    return dict(summary(shards.parent / "filter")["config"])


def test_the_command_line_precedes_the_environment_and_that_precedes_the_file(
    primecli: Any, graded: Path, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolved(primecli, graded)["accuracy"] == [0.2, 0.8]
    file = written("[filter]\naccuracy = [0, 1]\ngroups = 3\nallow-truncated = true")
    taken = resolved(primecli, graded, "--config", file)
    assert taken == {"accuracy": [0.0, 1.0], "groups": 3, "allow_truncated": True}
    monkeypatch.setenv("PRIMECLI_FILTER_ACCURACY", "0.1 0.9")
    assert resolved(primecli, graded, "--config", file)["accuracy"] == [0.1, 0.9]
    assert resolved(primecli, graded, "--config", file, "--accuracy", 0.3, 0.7)["accuracy"] == [0.3, 0.7]
    monkeypatch.setenv("PRIMECLI_FILTER_ACCURACY", "")  # the same as unset
    assert resolved(primecli, graded, "--config", file)["accuracy"] == [0, 1]


def test_the_file_is_named_before_or_after_the_command_or_in_the_environment(
    primecli: Any, graded: Path, written: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = written("[filter]\ngroups = 3")
    assert resolved(primecli, graded, "--config", file)["groups"] == 3
    assert resolved(primecli, graded, before=("--config", file))["groups"] == 3
    monkeypatch.setenv("PRIMECLI_CONFIG", str(file))
    assert resolved(primecli, graded)["groups"] == 3
    other = tmp_path / "other.toml"
    other.write_text("[filter]\ngroups = 2")
    assert resolved(primecli, graded, before=("--config", other))["groups"] == 2
    monkeypatch.setenv("PRIMECLI_CONFIG", str(tmp_path / "none.toml"))
    assert resolved(primecli, graded, "--config", other)["groups"] == 2
    result = primecli("filter", graded, check=False)
    assert (result.code, "none.toml: no such file" in result.line()) == (2, True)


def test_the_same_values_from_another_source_are_the_same_recipe(
    primecli: Any, graded: Path, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["filter", str(graded), "--accuracy", "0", "1", "--groups", "3"]
    monkeypatch.setattr(sys, "argv", ["primecli", *arguments])
    (first,) = primecli(*arguments).paths
    before = (first.stat().st_mtime_ns, read_footer(first))
    for place in ("[filter]\naccuracy = [0, 1]\ngroups = 3", None):
        if place is None:
            monkeypatch.setenv("PRIMECLI_FILTER_ACCURACY", "0 1")
            monkeypatch.setenv("PRIMECLI_FILTER_GROUPS", "3")
            again = primecli("filter", graded)
        else:
            again = primecli("filter", graded, "--config", written(place))
        assert again.paths == [first]
        assert first.stat().st_mtime_ns == before[0]
    forced = ["filter", str(graded), "--force"]
    monkeypatch.setattr(sys, "argv", ["primecli", *forced])
    primecli(*forced)
    made = read_footer(first)
    assert made.fingerprint == before[1].fingerprint
    (old,), (new,) = before[1].provenance, made.provenance
    assert new["config"] == old["config"]
    assert new["config"].items() >= {"accuracy": [0.0, 1.0], "groups": 3, "allow_truncated": False}.items()
    assert old["command"].endswith("--accuracy 0 1 --groups 3")
    assert new["command"] == f"primecli filter {graded} --force"  # what was typed


def test_flags_lists_choices_and_underscores(primecli: Any, tmp_path: Path, written: Any, capfd: Any) -> None:
    """Each kind of value reaches the command as the same type as from the command line."""
    seen: list[dict[str, Any]] = []
    group: Any = get_command(cli.app)
    for name in ("update-policy", "verify", "compute-advantages"):
        group.commands[name].callback = lambda **values: seen.append(values)

    def parsed(*arguments: object) -> dict[str, Any]:
        group.main([str(argument) for argument in arguments], prog_name="primecli", standalone_mode=False)
        return seen[-1]

    file = written(
        "seed = 7\n[update_policy]\nshuffle = false\nclip_low = 0.1\nquiet = true\n"
        '[verify]\nverifier = ["a=math", "code"]\n'
        '[compute-advantages]\nestimator = "dr-grpo"\ntokenizer = "x"'
    )
    wanted = ["update-policy", "--policy", "p", "--checkpoint", "c"]
    typed = ["--no-shuffle", "--clip-low", "0.1", "--quiet", "--seed", "7"]
    assert parsed(*wanted, "--config", file) == parsed(*wanted, *typed)
    assert parsed(*wanted, "--config", file, "--shuffle")["shuffle"] is True
    assert parsed("verify", "--config", file) == parsed("verify", "--verifier", "a=math", "--verifier", "code")
    assert parsed("verify", "--config", written('[verify]\nverifier = "code"')) == parsed(
        "verify", "--verifier", "code"
    )
    file = written('[compute-advantages]\nestimator = "dr-grpo"')
    assert parsed("compute-advantages", "--config", file) == parsed("compute-advantages", "--estimator", "dr-grpo")


def test_shared_options_and_those_of_one_command(
    primecli: Any, tiny: Path, prompts: Path, tmp_path: Path, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(
        f'seed = 3\nquiet = true\n[generate]\nmodel = "{tiny}"\nprompts = ["{prompts}"]\nn = 1\nmax-tokens = 2\n'
    )
    out = tmp_path / "generate"

    def seed(*arguments: object) -> tuple[int, str]:
        result = primecli("generate", "--config", file, "--out", out, "--force", *arguments)
        return summary(out)["config"]["seed"], result.err

    assert seed() == (3, "")
    monkeypatch.setenv("PRIMECLI_SEED", "4")
    assert seed()[0] == 4
    monkeypatch.setenv("PRIMECLI_GENERATE_SEED", "5")
    assert seed()[0] == 5
    assert seed("--seed", 6)[0] == 6
    file.write_text(file.read_text() + "seed = 8")
    monkeypatch.delenv("PRIMECLI_SEED")
    monkeypatch.delenv("PRIMECLI_GENERATE_SEED")
    assert seed()[0] == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[filtre]\n", ["[filtre]", "no such command", "did you mean filter?"]),
        ("[update-policy]\nlrr = 1", ["[update-policy] lrr", "no such option", "did you mean lr?"]),
        ("[update-policy]\nno-shuffle = true", ["[update-policy] no-shuffle", "write shuffle = false"]),
        ("[filter]\nconfig = 'x'", ["[filter] config", "no such option"]),
        ("[filter]\nshards = ['x']", ["[filter] shards", "no such option"]),
        ("[filter]\ngroups = 3.0", ["[filter] groups", "must be a whole number, not 3.0"]),
        ("[filter]\ngroups = true", ["[filter] groups", "must be a whole number, not True"]),
        ("[filter]\ngroups = '3'", ["[filter] groups", "must be a whole number, not '3'"]),
        ("[update-policy]\nlr = 'fast'", ["[update-policy] lr", "must be a number"]),
        ("[update-policy]\nlr = false", ["[update-policy] lr", "must be a number"]),
        ("[update-policy]\nref = 3", ["[update-policy] ref", "must be text in quotes"]),
        ("[filter]\nforce = 'yes'", ["[filter] force", "must be true or false"]),
        ("[filter]\naccuracy = 0.5", ["[filter] accuracy", "must be an array of 2"]),
        ("[filter]\naccuracy = [0.1, 0.5, 1]", ["[filter] accuracy", "must be an array of 2"]),
        ("[filter]\naccuracy = [0.1, 'x']", ["[filter] accuracy", "must be a number, not 'x'"]),
        ("[verify]\nverifier = [1]", ["[verify] verifier", "must be text in quotes"]),
        ("[verify]\nlast-number = true\nlast_number = false", ["[verify] last_number", "twice"]),
        ("lr = 1e-3", ["lr", "only beta, device, dtype", "below [update-prm]"]),
        ("sede = 1", ["sede", "did you mean seed?"]),
        ("seed = 'x'", ["seed", "must be a whole number"]),
        ("seed = ", ["is not TOML"]),
        ("seed = " + "1" * 5000, ["is not TOML: a number has too many digits"]),
        ("seed = " + "[" * 100_000, ["is nested too deeply"]),
        ("[filter]\ngroups = 0", ["[filter] groups", "0 is not in the range x>=1", "--groups"]),
    ],
)
def test_a_mistake_in_a_file_is_one_line(
    primecli: Any, graded: Path, written: Any, text: str, words: list[str]
) -> None:
    file = written(text)
    result = primecli("filter", graded, "--config", file, check=False)
    assert result.code == 2
    line = result.line()
    assert line.startswith(f"primecli filter: {file}: ")
    for word in words:
        assert word in line


def test_a_mistake_in_the_environment_names_the_variable(
    primecli: Any, graded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIMECLI_FILTER_GROUPS", "many")
    line = primecli("filter", graded, check=False).line()
    assert line.startswith("primecli filter: PRIMECLI_FILTER_GROUPS: Invalid value for '--groups': 'many'")
    monkeypatch.setenv("PRIMECLI_FILTER_GROUPS", "2")
    monkeypatch.setenv("PRIMECLI_FILTER_ACURACY", "0 1")
    result = primecli("filter", graded, check=False)
    assert result.code == 2
    assert (
        "PRIMECLI_FILTER_ACURACY: filter has no such option (did you mean PRIMECLI_FILTER_ACCURACY?)" in result.line()
    )
    assert primecli("stats", graded).code == 0  # it does not concern other commands


def test_a_choice_in_the_file_is_checked_as_on_the_command_line(primecli: Any, graded: Path, written: Any) -> None:
    file = written("[compute-advantages]\nestimator = 'rlo'")
    line = primecli("compute-advantages", graded, "--config", file, check=False).line()
    assert (
        f"{file}: [compute-advantages] estimator: Invalid value for '--estimator': 'rlo' is not one of rloo, " in line
    )
    typed = primecli("compute-advantages", graded, "--estimator", "rlo", check=False).line()
    assert typed.startswith("primecli compute-advantages: Invalid value for '--estimator'")


def test_errors_name_the_command_after_config(primecli: Any, written: Any) -> None:
    file = written("")
    assert primecli("--config", file, "generate", check=False).line().startswith("primecli generate: Missing option")
    assert primecli("--config", file, "nonsense", check=False).line().startswith("primecli: No such command")


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = get_command(cli.app)
    yield from group.commands.items()


def test_every_option_has_its_own_variable_and_key() -> None:
    own = [config.variables(name, option)[0] for name, command in commands() for option in config.options(command)]
    assert len(own) == len(set(own)) > 100
    assert all(re.fullmatch(r"PRIMECLI(_[A-Z0-9]+)+", variable) for variable in own)


def test_shared_options_have_one_meaning() -> None:
    """An option that may be set for all commands at once has the same type in all of them."""
    for shared in config.SHARED:
        kinds = {
            (option.type.name, option.is_flag, tuple(getattr(option.type, "choices", ())))
            for _, command in commands()
            for name, option in config.options(command).items()
            if name == shared
        }
        assert len(kinds) == 1
