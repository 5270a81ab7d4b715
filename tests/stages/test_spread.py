from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from primecli.errors import UsageError
from primecli.models.options import Dtype
from primecli.stages.generate import GenerateOptions
from primecli.stages.score_values import ScoreValuesOptions
from primecli.stages.spread import Places, for_workers, is_spread, places

OPTIONS = ScoreValuesOptions(critic="ckpt")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primecli.models.device.count_gpus", lambda device: 0 if device == "cpu" else 4)
    monkeypatch.setattr("primecli.models.options.resolve_dtype", lambda device, dtype: "bfloat16")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def visible(found: Places) -> list[str]:
    return [variables["CUDA_VISIBLE_DEVICES"] for variables in found.variables]


def test_cores_are_shared_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primecli.setup.doctor_checks.usable_cores", lambda: 8)
    options = replace(OPTIONS, device="cpu", workers=3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert (places(options).threads, places(replace(options, workers=20)).threads) == (2, 1)
    assert places(replace(options, threads=5)).threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    found = places(options)
    assert (found.device, found.threads, len(found.variables)) == ("cpu", 4, 3)
    assert found.variables[0]["OMP_NUM_THREADS"] == "4"


def test_each_worker_sees_one_gpu(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = places(replace(OPTIONS, workers=2))
    assert (visible(found), found.device) == (["0", "1"], "cuda")
    assert visible(places(replace(OPTIONS, devices="3,1,1"))) == ["3", "1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-aa,7")  # as Slurm and containers set it
    assert visible(places(replace(OPTIONS, devices="0,2"))) == ["4", "GPU-aa"]


def test_the_options_of_a_worker_are_settled_and_spread_nothing_again(four_gpus: None) -> None:
    options = for_workers(replace(OPTIONS, devices="0,1"))
    assert (options.device, options.dtype, options.workers, options.devices) == ("cuda", Dtype.bfloat16, None, None)
    there = for_workers(replace(OPTIONS, ray="auto", ray_workers=2))
    assert (there.device, there.dtype, there.ray, there.ray_workers) == ("auto", Dtype.bfloat16, None, None)


def test_one_worker_is_this_process_unless_it_has_a_device_of_its_own() -> None:
    assert not is_spread(replace(OPTIONS, workers=1))
    assert all(is_spread(replace(OPTIONS, **given)) for given in ({"workers": 2}, {"devices": "1"}, {"ray": "auto"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"workers": 5},
            "--workers 5: there are 4 GPUs (if several are to share one, say so with --devices 0,0,1,2,3)",
        ),
        ({"devices": "0,4"}, "--devices 0,4: there is no GPU 4 (there are 4 GPUs)"),
        ({"device": "cuda:1", "workers": 2}, "--device cuda:1 is a single GPU, and there are 2 workers"),
        ({"device": "cpu", "devices": "0,1"}, "--devices names GPUs, and --device is cpu"),
    ],
)
def test_devices_that_are_not_there(given: dict[str, Any], message: str, four_gpus: None) -> None:
    with pytest.raises(UsageError) as raised:
        places(replace(OPTIONS, **given))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(OPTIONS, workers=2, ray="auto"), "--workers and --ray do not go together"),
        (replace(OPTIONS, devices="0", ray="auto"), "--devices and --ray do not go together"),
        (replace(OPTIONS, workers=2, devices="0,1,2"), "--workers 2, but --devices names 3"),
        (replace(OPTIONS, ray_workers=2), "--ray-workers needs --ray"),
        (replace(OPTIONS, ray_resources="{}"), "--ray-resources needs --ray"),
    ],
)
def test_options_that_contradict_each_other(options: ScoreValuesOptions, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        options.check()
    assert message in str(raised.value)


def test_engines_that_share_the_prompts_themselves_take_no_workers(tmp_path: Any) -> None:
    options = GenerateOptions(model="m", prompts=(tmp_path / "p",), out=tmp_path, workers=2)
    for engine, message in (
        (replace(options, engine="vllm-server", url=("http://a",)), "vllm-server has no workers"),
        (replace(options, engine="vllm", tensor_parallel=2), "--tensor-parallel 2 takes several GPUs"),
    ):
        with pytest.raises(UsageError) as raised:
            engine.check()
        assert message in str(raised.value)
