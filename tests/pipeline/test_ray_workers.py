"""Workers on a Ray cluster: one of two nodes on this machine, for all tests of this file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.errors import GateError, PrimecliError, UsageError
from primecli.pipeline.ray_workers import RayWorkers
from tests.builders import rollouts, write_shards
from tests.conftest import read_rows
from tests.pipeline.small_workers import open_small

pytestmark = [
    # a machine that tests everything has it
    pytest.mark.skipif(find_spec("ray") is None and not os.environ.get("CI"), reason="ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def delivered(workers: RayWorkers, *items: tuple[str, Any]) -> list[Any]:
    found: list[Any] = []
    with workers:
        for number, item in enumerate(items):
            workers.submit(f"job {number}", item, found.append)
        workers.finish()
    return found


def test_order_places_deaths_and_noise(cluster: Any, tmp_path: Path, capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[int] = []
    warnings: list[str] = []
    handler = signal.getsignal(signal.SIGTERM)
    workers = RayWorkers(
        partial(open_small, "mine"), cluster.address, advance=rows.append, warn=warnings.append, cpus=1
    )
    items = [("sleep", 1.0), ("say", 1), ("die", Path("died")), ("print", "hello"), ("say", 4)]
    found = delivered(workers, *items)
    assert [found[0][0], found[1][0], found[2][0], found[4][0]] == [1.0, 1, Path("died"), 4]
    assert (tmp_path / "died").exists()  # a relative path means the same there
    assert len({pid for _, _, pid in (found[0], found[1], found[2], found[4])}) > 1
    assert workers.count == 2
    assert sum(rows) == 15
    assert len(warnings) == 1
    assert "while it made job 2: making it again (1 of 3 times)" in warnings[0]
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGTERM) is handler


def test_errors_of_jobs_are_not_retried(cluster: Any) -> None:
    started = time.monotonic()
    with pytest.raises(GateError, match="too far off"):
        delivered(RayWorkers(open_small, cluster.address), ("say", 0), ("gate", None), ("sleep", 60))
    assert time.monotonic() - started < 30


def test_what_cannot_be_reached_is_said_at_once() -> None:
    for address, kind in (("nowhere", UsageError), ("127.0.0.1:1", PrimecliError)):
        with pytest.raises(kind, match=f"^--ray {address}: "):
            delivered(RayWorkers(open_small, address), ("say", 0))


def test_verify_grades_the_same_there(cluster: Any, tmp_path: Path, capfd: Any) -> None:
    directory = write_shards(tmp_path / "generate", rollouts(6, 2), per_shard=2)
    for out, options in (("here", []), ("there", ["--ray", cluster.address, "--workers", "1"])):
        assert cli.run(["verify", str(directory), "--out", str(tmp_path / out), "--quiet", *options]) == 0
        printed = capfd.readouterr()
        assert printed.out.splitlines() == [str(path) for path in sorted((tmp_path / out).glob("*.parquet"))]
        assert printed.err == ""
    assert read_rows(tmp_path / "there") == read_rows(tmp_path / "here")
