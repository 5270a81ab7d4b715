"""Which files a server is told to reload from; the servers themselves are in tests/generation/engines/vllm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from primecli.errors import PrimecliError
from primecli.generation.engines import EngineOptions, Policy
from primecli.generation.engines.reload import TiedHead, make_probe, reloadable
from primecli.models.device import resolve_placement
from primecli.models.loading import load_model
from primecli.models.scoring import score
from primecli.setup.tiny_model import make_model
from primecli.shards.rollouts import Sequences


def policy(directory: Path) -> Policy:
    return Policy(directory, "f", (256,), 258, 100)


def test_the_probe_is_what_the_checkpoint_answers(tiny: Path) -> None:
    probe, tied = make_probe(policy(tiny), EngineOptions())
    ids = np.array(probe.token_ids, dtype=np.int32)
    placement = resolve_placement("cpu", "float32")
    exact = score(load_model(tiny, placement), placement, Sequences([ids[:5]], [ids[5:]]), micro_batch_tokens=1000)
    np.testing.assert_allclose(probe.logprobs[4:], exact, atol=1e-5)
    assert tied == TiedHead("model.embed_tokens.weight", "lm_head.weight")
    assert probe.gap == 1e-3
    assert make_probe(policy(tiny), EngineOptions(probe_gap=0.5))[0].gap == 0.5


def test_a_tied_head_is_written_out_beside_links_to_the_rest(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    tensors = load_file(tiny / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, model / f"model-{number}-of-2.safetensors")
    (model / "model.safetensors.index.json").write_text("{}")
    (model / "config.json").write_text("{}")
    with reloadable(model, TiedHead("model.embed_tokens.weight", "lm_head.weight")) as links:
        assert links.parent == tmp_path
        found = {name: value for file in links.glob("*.safetensors") for name, value in load_file(file).items()}
        assert torch.equal(found.pop("lm_head.weight"), tensors["model.embed_tokens.weight"])
        assert found.keys() == tensors.keys()
        assert not (links / "model.safetensors.index.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_head_of_its_own_is_reloaded_from_the_checkpoint_itself(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", tied=False)
    _, tied = make_probe(policy(model), EngineOptions())
    assert tied is None
    with reloadable(model, tied) as links:
        assert links == model


def test_files_without_the_embeddings_are_named(tiny: Path) -> None:
    with (
        pytest.raises(PrimecliError, match="files have no other"),
        reloadable(tiny, TiedHead("other", "lm_head.weight")),
    ):
        pass
    assert not list(tiny.parent.glob(".tiny*"))
