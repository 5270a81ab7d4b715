"""A helper of `primecli warm` for all tests of this directory, and stages that it has forked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import rollouts, write_shards
from tests.warm_processes import Warm, wait_for_first_shard


@pytest.fixture(scope="session")
def warm(one_thread: None) -> Iterator[Warm]:
    """A helper."""
    helper = Warm()
    yield helper
    helper.end()


@pytest.fixture
def waiting(warm: Warm, tiny: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The front of a warm stage, leader of its process group; the stage has scored a shard and waits for the next."""
    write_shards(tmp_path / "in", rollouts(2, 2), per_shard=2)
    command = ["score-prm", "--prm", tiny, "--ref", tiny, "--quiet", "-"]
    with warm.start(*command, cwd=tmp_path, process_group=0) as front:
        wait_for_first_shard(front)
        yield front
        if front.poll() is None:
            front.kill()
