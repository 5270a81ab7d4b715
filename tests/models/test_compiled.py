"""Compiled layers compute what the model computes, packed or padded, and are compiled once for rows of any length."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from primecli.errors import PrimecliError, UsageError
from primecli.models import loading, lora, scoring
from primecli.models.compiled import compile_layers
from primecli.models.device import Placement
from primecli.models.lora import LoraOptions
from primecli.training import memory
from tests.models.test_scoring import PACKED, PADDED, gradient, sequences


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return loading.load_model(tiny, PADDED)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def compiled(model: Any, placement: Placement) -> Any:
    """A copy of the model, compiled."""
    twin = copy.deepcopy(model)
    compile_layers(twin, replace(placement, compiled=True))
    return twin


def graphs() -> int:
    """How many pieces have been compiled."""
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("placement", [PADDED, PACKED], ids=lambda placement: placement.packing)
def test_log_probabilities_are_the_same_and_no_row_is_compiled_for(model: Any, placement: Placement) -> None:
    fused = compiled(model, placement)
    for budget in (1, 1000):  # a row, and several
        scoring.score(fused, placement, sequences(prompts=2, responses=2), micro_batch_tokens=budget)
    pieces = graphs()
    assert pieces > 0
    for seed, (prompts, responses) in enumerate([(3, 4), (4, 3), (7, 2), (2, 5)]):
        given = sequences(prompts=prompts, responses=responses, seed=seed)
        found = scoring.score(fused, placement, given, micro_batch_tokens=150)
        expected = scoring.score(model, placement, given, micro_batch_tokens=150)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert graphs() == pieces, "rows of other lengths were compiled again"


@pytest.mark.parametrize("placement", [PADDED, PACKED], ids=lambda placement: placement.packing)
def test_gradients_are_the_same_with_all_that_saves_memory(model: Any, placement: Placement) -> None:
    given = sequences(prompts=3, responses=4)
    plain = copy.deepcopy(model)
    memory.accumulate_embedding_gradient(plain)
    expected = gradient(plain, placement, given, 100)
    fused = compiled(plain, placement)
    memory.recompute_activations(fused)
    scale = max(float(part.abs().max()) for part in expected)
    for one, other in zip(gradient(fused, placement, given, 100), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=1e-3)


def test_adapters_are_compiled_with_their_layers(model: Any) -> None:
    given = sequences(prompts=2, responses=2)
    adapted = copy.deepcopy(model)
    lora.attach(adapted, LoraOptions(rank=2, alpha=4.0), seed=0)
    for name, parameter in lora.trained(adapted).items():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = scoring.score(adapted, PADDED, given, micro_batch_tokens=100)
    assert np.abs(before - scoring.score(model, PADDED, given, micro_batch_tokens=100)).max() > 1e-3
    found = scoring.score(compiled(adapted, PADDED), PADDED, given, micro_batch_tokens=100)
    np.testing.assert_allclose(found, before, atol=1e-5)


def test_nothing_is_compiled_unasked(model: Any) -> None:
    twin = copy.deepcopy(model)
    compile_layers(twin, PADDED)
    scoring.score(twin, PADDED, sequences(prompts=1, responses=2), micro_batch_tokens=100)
    assert graphs() == 0


def test_a_model_without_layers_that_it_names(model: Any) -> None:
    twin = copy.deepcopy(model)
    twin._no_split_modules = None
    with pytest.raises(UsageError, match="does not say what its layers are"):
        compile_layers(twin, replace(PADDED, compiled=True))


def test_a_machine_without_a_compiler(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # torch's own way: monkeypatch ends by deleting the setting, for every test after this one
    with (
        inductor.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}),
        pytest.raises(PrimecliError, match=r"torch\.compile does not work here") as caught,
    ):
        compiled(model, PADDED)
    assert "\n" not in caught.value.message
    assert "g++" in str(caught.value.hint)
