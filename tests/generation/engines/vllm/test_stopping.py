"""Stop texts with the vLLM engine in this process, beside transformers on the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from primecli.generation.engines import EngineOptions, Policy, Request, Sample, SamplingParams
from primecli.generation.engines.hf import HfEngine
from primecli.generation.engines.stopping import stop_texts
from primecli.generation.engines.vllm import VllmEngine, open_engine
from primecli.models.device import resolve_placement
from primecli.models.loading import load_model
from tests.generation.engines.vllm.conftest import SMALL_ENGINE

# vLLM's own warnings are not ours to fix
pytestmark = pytest.mark.filterwarnings("default")

TEXTS = ("<pad>", "<eos>", "\u00e9", "L", "7")  # two are special tokens, and one is of two bytes


@pytest.fixture(scope="module")
def policy(models: dict[str, Path]) -> Policy:
    return Policy(models["tied-0"], "", (), 258, 128, stop_texts=TEXTS)


@pytest.fixture(scope="module")
def engine(policy: Policy) -> Iterator[VllmEngine]:
    engine = open_engine(policy, EngineOptions(engine_args=SMALL_ENGINE))
    yield engine
    engine.close()


def sample(engine: VllmEngine | HfEngine, **params: Any) -> list[Sample]:
    rng = np.random.default_rng(5)
    # prompts of whole characters: vLLM takes broken ones at their end for text of the response
    requests = [Request(f"p{number}", rng.integers(0, 94, size=3 + number).tolist()) for number in range(32)]
    groups = dict(engine.sample(requests, SamplingParams(n=2, max_tokens=40, **params), tick=lambda: None))
    return [one for number in range(len(requests)) for one in groups[number]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_responses_end_with_the_token_that_completes_a_stop_text(
    engine: VllmEngine, policy: Policy, temperature: float
) -> None:
    stops = stop_texts(policy)
    free = sample(VllmEngine(engine.engine, []), temperature=temperature)
    cut = 0
    for whole, ended in zip(free, sample(engine, temperature=temperature), strict=True):
        expected = stops.cut(whole)
        assert ended.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(ended.logprobs, expected.logprobs, atol=2e-5)
        assert ended.finish_reason == expected.finish_reason
        cut += len(expected.token_ids) < len(whole.token_ids)
    assert 10 < cut < len(free)


def test_greedy_responses_are_those_of_transformers(engine: VllmEngine, policy: Policy) -> None:
    place = resolve_placement("cpu", "float32")
    model = load_model(policy.directory, place)
    hf = HfEngine(model, place, stop_ids=[], micro_batch_tokens=10**6, stop_texts=stop_texts(policy))
    for ours, theirs in zip(sample(engine, temperature=0.0), sample(hf, temperature=0.0), strict=True):
        assert ours.token_ids.tolist() == theirs.token_ids.tolist()
        assert ours.finish_reason == theirs.finish_reason
