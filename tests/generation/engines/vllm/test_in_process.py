"""The vLLM engine in this process, beside transformers on the same checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from primecli.errors import PrimecliError
from primecli.generation.engines import EngineOptions, Policy, Request, Sample, SamplingParams
from primecli.generation.engines.hf import HfEngine, sampling_logprobs
from primecli.generation.engines.vllm import VllmEngine, open_engine
from primecli.models.device import resolve_placement
from primecli.models.loading import load_model
from primecli.models.scoring import score
from primecli.shards.rollouts import Sequences
from tests.conftest import read_rows, shell, summary
from tests.generation.engines.vllm.conftest import SMALL_ENGINE

# vLLM's own warnings are not ours to fix
pytestmark = pytest.mark.filterwarnings("default")

OPTIONS = EngineOptions(engine_args=SMALL_ENGINE)
STOP = 256


def make_requests(count: int) -> list[Request]:
    rng = np.random.default_rng(5)
    return [Request(f"p{number}", rng.integers(0, 256, size=3 + number % 40).tolist()) for number in range(count)]


@pytest.fixture(scope="module")
def engine(models: dict[str, Path]) -> Iterator[VllmEngine]:
    engine = open_engine(Policy(models["tied-0"], "", (STOP,), 258, 128), OPTIONS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Any:
    return load_model(models["tied-0"], resolve_placement("cpu", "float32"))


def sample(engine: VllmEngine | HfEngine, requests: list[Request], **params: Any) -> list[list[Sample]]:
    found = dict(engine.sample(requests, SamplingParams(**params), tick=lambda: None))
    return [found[number] for number in range(len(requests))]


def ids(groups: list[list[Sample]]) -> list[list[list[int]]]:
    return [[one.token_ids.tolist() for one in group] for group in groups]


def test_greedy_is_that_of_transformers(engine: VllmEngine, model: Any) -> None:
    requests = make_requests(64)
    hf = HfEngine(model, resolve_placement("cpu", "float32"), stop_ids=[STOP], micro_batch_tokens=10**6)
    ours, theirs = (sample(one, requests, n=2, temperature=0.0, max_tokens=24) for one in (engine, hf))
    assert ids(ours) == ids(theirs)
    reasons = [[one.finish_reason for one in group] for group in theirs]
    assert [[one.finish_reason for one in group] for group in ours] == reasons
    assert {"stop", "length"} == {one for group in reasons for one in group}
    assert not any(one.logprobs.any() for group in ours for one in group)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_logprobs_are_the_trainers(engine: VllmEngine, model: Any, temperature: float) -> None:
    requests = make_requests(32)
    groups = sample(engine, requests, n=4, temperature=temperature, max_tokens=24)
    rows = [(request, one) for request, group in zip(requests, groups, strict=True) for one in group]
    sequences = Sequences(
        [np.array(request.prompt_ids, dtype=np.int32) for request, _ in rows],
        [one.token_ids for _, one in rows],
        np.full(len(rows), temperature, dtype=np.float32),
    )
    exact = score(model, resolve_placement("cpu", "float32"), sequences, micro_batch_tokens=4096)
    gap = np.abs(np.concatenate([one.logprobs for _, one in rows]) - exact)
    assert gap.mean() < 1e-5
    assert gap.max() < 1e-3


@pytest.mark.parametrize("params", [{"top_k": 5}, {"temperature": 1.3, "top_p": 0.6}])
def test_logprobs_are_those_after_truncation(engine: VllmEngine, model: Any, params: dict[str, Any]) -> None:
    requests = make_requests(8)
    settings = SamplingParams(n=3, max_tokens=8, **params)
    for request, group in zip(requests, sample(engine, requests, n=3, max_tokens=8, **params), strict=True):
        for one in group:
            sequence = torch.tensor([[*request.prompt_ids, *one.token_ids.tolist()]])
            with torch.no_grad():
                logits = model(sequence).logits[0, len(request.prompt_ids) - 1 : -1]
            exact = sampling_logprobs(logits, settings).gather(-1, torch.tensor(one.token_ids)[:, None].long())
            np.testing.assert_allclose(one.logprobs, exact.squeeze(-1), atol=1e-4)


def test_what_is_sampled_depends_on_seed_group_and_sample(engine: VllmEngine) -> None:
    requests = make_requests(6)
    together = ids(sample(engine, requests, n=2, max_tokens=12))
    assert ids(sample(engine, requests[::-1], n=2, max_tokens=12))[::-1] == together
    assert ids(sample(engine, requests[2:3], n=2, max_tokens=12)) == together[2:3]
    assert together[2][0] != together[2][1]
    assert ids(sample(engine, requests, n=2, max_tokens=12, seed=1)) != together
    twin = [Request("a", [10, 20]), Request("b", [10, 20])]
    first, second = ids(sample(engine, twin, n=1, max_tokens=12))
    assert first != second


def test_groups_are_handed_over_while_others_run(engine: VllmEngine) -> None:
    groups = engine.sample(make_requests(8), SamplingParams(n=2, max_tokens=60), tick=lambda: None)
    next(groups)
    assert engine.engine.has_unfinished_requests()
    groups.close()
    assert not engine.engine.has_unfinished_requests()


def test_what_tick_raises_aborts_what_is_in_flight(engine: VllmEngine) -> None:
    calls = 0

    def tick() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(engine.sample(make_requests(8), SamplingParams(max_tokens=60), tick=tick))
    assert not engine.engine.has_unfinished_requests()
    assert len(sample(engine, make_requests(2), n=2, max_tokens=4)) == 2


def test_what_vllm_would_change_in_silence_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(PrimecliError, match=r"temperature 0\.005"):
        sample(engine, make_requests(1), temperature=0.005)


def test_an_unknown_argument_is_named(models: dict[str, Path]) -> None:
    with pytest.raises(PrimecliError, match="--engine-arg nonsense"):
        open_engine(Policy(models["tied-0"], "", (STOP,), 258, 128), EngineOptions(engine_args={"nonsense": 1}))


def test_on_the_command_line_only_paths_come_out_and_a_closed_pipe_ends_it(
    models: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    command = (
        f"primecli generate --engine vllm --engine-arg enforce_eager=true --model {models['tied-0']} "
        f"--engine-arg kv-cache-memory-bytes={SMALL_ENGINE['kv_cache_memory_bytes']} --prompts {prompts} --n 2 "
        "--prompts-per-shard 2 --max-tokens 300 --out g"
    )
    done = shell(f"{command} | head -n 1", tmp_path)
    assert done.stdout == "g/rollouts-00000-of-00006.parquet\n"
    # on a busy machine it takes so long that progress is reported
    note, *progress, line = done.stderr.splitlines()
    assert "each becomes a user message in the model's chat template" in note
    assert all(re.fullmatch(r"primecli generate: \d+ of 24 rollouts, .*", each) for each in progress), progress
    assert "stopped early because the reader closed the pipe" in line
    found = summary(tmp_path / "g")
    assert found["status"] == "stopped-by-reader"
    assert len(read_rows(tmp_path / "g" / "rollouts-00000-of-00006.parquet")) == 4
