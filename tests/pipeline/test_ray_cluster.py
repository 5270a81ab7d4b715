from __future__ import annotations

import os
from pathlib import Path

import pytest

from primecli.errors import PrimecliError, UsageError
from primecli.pipeline.ray_cluster import check_listening, plan, temporary_directory

TWO_GPU_NODES = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


def test_a_directory_lasts_as_long_as_its_process_uses_it_and_those_of_killed_ones_go(tmp_path: Path) -> None:
    dead, young = tmp_path / "primecli-ray-dead", tmp_path / "primecli-ray-young"
    dead.mkdir()
    young.mkdir()
    os.utime(dead, (0, 0))
    with temporary_directory(tmp_path) as first:
        assert (dead.exists(), young.exists()) == (False, True)
        os.utime(first, (0, 0))
        with temporary_directory(tmp_path) as second:
            assert first.is_dir()
            assert second != first
    assert sorted(tmp_path.iterdir()) == [young]


def test_what_is_given_counts_and_the_rest_follows_from_the_nodes() -> None:
    assert plan(TWO_GPU_NODES, None, {"num_gpus": 2}, gpus=True) == (4, {"num_gpus": 2, "num_cpus": 1})
    assert plan(TWO_GPU_NODES, 3, {}, gpus=True) == (3, {"num_gpus": 1, "num_cpus": 1})
    assert plan(TWO_GPU_NODES, None, {"num_gpus": 0}, gpus=True) == (2, {"num_gpus": 0, "num_cpus": 8})
    assert plan(TWO_GPU_NODES, None, {}, gpus=False, cpus=3) == (2, {"num_cpus": 3})
    assert plan([{"memory": 1.0}, {"CPU": 4.0}], 3, {}, gpus=True) == (3, {"num_cpus": 1})  # a head without CPUs


@pytest.mark.parametrize("address", ["nowhere", ":1", "host:port", "host:99999", "ray://"])
def test_what_is_no_address_is_wrong_usage(address: str) -> None:
    with pytest.raises(UsageError, match=f"^--ray {address}: is neither local nor auto, nor an address"):
        check_listening(address)


def test_where_nothing_listens_nobody_waits() -> None:
    with pytest.raises(PrimecliError, match=r"^--ray 127.0.0.1:1: nothing answers there: Connection refused"):
        check_listening("127.0.0.1:1")
