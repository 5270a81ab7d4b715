"""Every command reads shards however they are named: files, directories, quoted globs, or paths on stdin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from primecli.errors import InputError, UsageError
from primecli.pipeline import pipe
from primecli.pipeline.inputs import Inputs, expand_path
from tests.builders import rollouts, write_shards
from tests.command_lines import LIGHT, SHARDS, command_lines, make_shards
from tests.conftest import shell
from tests.made_runs import write_summary


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rollouts-made: the output of a stage, two shards; its name is one that a glob of directories matches."""
    directory = tmp_path_factory.mktemp("runs") / "1"
    make_shards(directory / "generate", tiny)
    done = shell("primecli verify generate --quiet --out rollouts-made", directory)
    assert done.returncode == 0, done.stderr
    return directory / "rollouts-made"


KINDS = {
    "shards": (["1/rollouts-made/rollouts-00000-of-00002.parquet", "1/rollouts-made/rollouts-00001-of-00002.parquet"]),
    "directory": ["1/rollouts-made"],
    "glob of shards": ["*/rollouts-made/rollouts*"],
    "glob of all files": ["*/rollouts-made/*"],
    "glob of directories": ["*/rollouts*"],
    "shards on stdin": [],
    "directory on stdin": ["-"],
}
HEAVY_KINDS = ("glob of directories", "directory on stdin")


def cases() -> list[tuple[str, str]]:
    names = command_lines(Path(), Path())
    return [(name, kind) for name in names for kind in (KINDS if name in LIGHT else HEAVY_KINDS)]


@pytest.mark.parametrize(("name", "kind"), cases())
def test_every_command_reads_every_kind_of_input(
    name: str, kind: str, tiny: Path, made: Path, tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made.parents[1]
    given = [str(root / text) for text in KINDS[kind]] if "stdin" not in kind else KINDS[kind]
    monkeypatch.chdir(root)
    line = [word for item in command_lines(tiny, tmp_path)[name] for word in (given if item is SHARDS else [item])]
    piped = KINDS["shards"] if kind == "shards on stdin" else KINDS["directory"]
    (tmp_path / "stdin").write_text("".join(f"{text}\n" for text in piped))
    with open(tmp_path / "stdin") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        monkeypatch.setattr(pipe, "stdin_is_terminal", lambda: False)
        result = primecli(name, *line)
    found = [str(path) for path in result.paths]
    assert found
    if name in ("verify", "filter", "compute-advantages", "score-prm", "score-values"):
        assert [Path(path).name for path in found] == [path.name for path in sorted(made.glob("*.parquet"))]
    if name == "stats":
        assert found[0].startswith("16 rollouts in 4 groups")
    if name == "query":
        assert "16" in found[-1].split()


def test_expand_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/1", "a/2", "b[1]"):
        write_shards(tmp_path / name, rollouts(1, 2))
    (tmp_path / "a" / "_summary.json").touch()
    assert expand_path("a/*") == [Path("a/1"), Path("a/2")]
    assert expand_path("b[1]") == [Path("b[1]")]
    assert expand_path("b*/*.parquet") == [Path("b[1]/rollouts-00000-of-00001.parquet")]
    with pytest.raises(InputError, match="no file matches"):
        expand_path("c*")
    with pytest.raises(InputError, match="no such file or directory"):
        expand_path("c")


def test_shards_with_the_same_name_are_read_together_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "2"):
        write_shards(tmp_path / name, rollouts(1, 2))
    glob = str(tmp_path / "?")
    assert len(list(Inputs([glob], together=True))) == 2
    with pytest.raises(InputError, match=r"two input shards are named.*run the stage once"):
        list(Inputs([glob]))
    monkeypatch.setattr(pipe, "stdin_is_terminal", lambda: True)
    with pytest.raises(UsageError, match="no shards given"):
        Inputs([])


def test_shards_that_were_removed_are_said_to_be(tmp_path: Path) -> None:
    """As KEEP=last removes those of all stages but the last."""
    directory = write_shards(tmp_path / "1" / "verify", rollouts(2, 2))
    write_summary(directory, "verify", shards=[path.name for path in directory.glob("*.parquet")])
    for shard in directory.glob("*.parquet"):
        shard.unlink()
    with pytest.raises(InputError, match="1 of its 1 shards have been removed, rollouts-0") as info:
        list(Inputs([str(directory)]))
    assert "KEEP=last" in str(info.value)
