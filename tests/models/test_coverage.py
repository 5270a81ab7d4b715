"""docs/models.md is what the architectures show: those of the quick part here, all of them with `make models`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import coverage
from tests.models.architectures import ARCHITECTURES, BY_NAME
from tests.models.configs.common import Architecture

# those of which somebody asked whether they work, and at least one of each kind
ASKED_FOR = {"Qwen3.5", "Qwen3-Next", "LFM2", "Bamba", "Jamba", "Falcon-H1", "Mamba", "Mamba 2", "MiniMax", "Llama 4"}
ASKED_FOR |= {"Gemma 2", "Gemma 3", "Cohere", "Cohere 2", "Granite"}


@pytest.fixture(autouse=True)
def no_pipe() -> Iterator[None]:
    with coverage.no_pipe():
        yield


def on_page() -> dict[str, list[str]]:
    return coverage.cells_on_page(coverage.PAGE.read_text(encoding="utf-8"))


def test_the_page_has_a_row_for_every_architecture() -> None:
    assert list(on_page()) == [one.name for one in ARCHITECTURES]
    assert len(ARCHITECTURES) >= 45
    assert {one.name for one in ARCHITECTURES if one.core} >= ASKED_FOR


@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one.core], ids=str)
def test_an_architecture_does_what_the_page_says(architecture: Architecture, tmp_path: Path) -> None:
    row = coverage.cover(architecture, tmp_path)
    cells = [part.strip() for part in row.line().strip("|").split("|")]
    assert [*cells[1:3], *cells[4:]] == on_page()[architecture.name], row.reasons
    assert row.cells["generate"] == coverage.NO or row.gap < coverage.GAP


def test_a_row_says_what_went_wrong(tmp_path: Path) -> None:
    """Logits that are not finite: the sampler names the prompt, and nothing after it is tried."""
    broken = Architecture("Broken", "llama", {**BY_NAME["Llama"].settings, "rms_norm_eps": float("nan")})
    row = coverage.cover(broken, tmp_path)
    assert row.cells["generate"] == coverage.NO
    assert "not finite" in row.reasons["generate"]
    assert str(tmp_path) not in row.reasons["generate"]
    assert row.bound() == ""
    assert "| generate | Broken |" in coverage.table([row])
