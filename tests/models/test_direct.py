"""Models made from their files, against what transformers loads, and saved, against what transformers saves."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from primecli.errors import InputError, PrimecliError
from primecli.files import directory_atomically
from primecli.models import direct, loading, saving
from primecli.models.device import resolve_placement
from primecli.models.identity import model_fingerprint, weights_fingerprint
from primecli.models.mapped import ALIGNMENT
from tests.models.architectures import save

CPU = resolve_placement("cpu", "float32")
IDS = torch.arange(1, 12)[None]
# tied; buffers that are stored; a layer that is used twice
DIRECT = ["GPT-2", "Gemma 4", "Zamba2"]


def halved(name: str, directory: Path) -> Path:
    """A model of an architecture in bfloat16."""
    save(name, directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    for buffer in direct.stored_buffers(model).values():
        buffer.add_(0.5)
    model.save_pretrained(directory)
    return directory


def from_pretrained(directory: Path) -> Any:
    """The model as transformers loads it, in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def trained(model: Any) -> Any:
    """The model with other numbers, which bfloat16 cannot tell from those before."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 2**-12)
    return model


def checkpoint(directory: Path, model: Any, source: Path, moments: dict[str, torch.Tensor] | None = None) -> Path:
    with directory_atomically(directory) as made:
        record: dict[str, Any] = {"step": 1, "stage": "update-policy"}
        saving.save(made, model, moments or {}, source=source, same_base=False, record=record, lineage=["0"], steps=[])
    return directory


def state(model: Any) -> dict[str, torch.Tensor]:
    """All that a model computes with, also what it does not store; tied parameters under each of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def assert_same(model: Any, expected: Any) -> None:
    found, wanted = state(model), state(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (name, found[name].dtype) == (name, value.dtype)
        assert torch.equal(found[name], value), name
    assert len(list(model.parameters())) == len(list(expected.parameters()))  # what is tied stays so
    assert [each.requires_grad for each in model.parameters()] == [each.requires_grad for each in expected.parameters()]
    with torch.no_grad():
        assert torch.equal(model(IDS, use_cache=False).logits, expected(IDS, use_cache=False).logits)


@pytest.mark.parametrize("name", DIRECT)
def test_a_model_is_loaded_saved_and_resumed_as_transformers_would(name: str, tmp_path: Path) -> None:
    start = halved(name, tmp_path / "start")
    plain = from_pretrained(start)
    model = direct.from_exported(start, CPU.device)
    assert_same(model, plain)
    checkpoint(tmp_path / "1", trained(model), start)
    expected = trained(plain)
    resumed = direct.from_masters(tmp_path / "1")
    assert_same(resumed, expected)
    assert_same(loading.load_model(tmp_path / "1", CPU, to_train=True), expected)
    expected.to(torch.bfloat16).save_pretrained(tmp_path / "expected")
    assert_same(loading.load_model(tmp_path / "1", CPU), from_pretrained(tmp_path / "expected"))
    for each in (tmp_path / "1", checkpoint(tmp_path / "2", resumed, tmp_path / "1")):
        for file in ("model.safetensors", "config.json"):
            assert (each / file).read_bytes() == (tmp_path / "expected" / file).read_bytes()
        assert model_fingerprint(each) == weights_fingerprint(each)


@pytest.mark.parametrize("name", DIRECT)
def test_a_model_that_is_too_large_for_one_file_is_saved_by_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = halved(name, tmp_path / "start")
    first = checkpoint(tmp_path / "1", loading.load_model(start, CPU, to_train=True), start)
    monkeypatch.setattr(saving, "LARGEST_FILE", 0)
    for source in (start, first):
        made = checkpoint(tmp_path / f"of-{source.name}", loading.load_model(source, CPU, to_train=True), source)
        assert (made / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()
        assert model_fingerprint(made) == model_fingerprint(first) == weights_fingerprint(made)


def test_a_mixture_of_experts_is_left_to_transformers(tmp_path: Path) -> None:
    start = halved("Mixtral", tmp_path / "start")
    assert direct.from_exported(start, CPU.device) is None
    model = loading.load_model(start, CPU, to_train=True)
    expected = trained(from_pretrained(start))
    checkpoint(tmp_path / "1", trained(model), start)
    assert direct.from_masters(tmp_path / "1") is None
    assert_same(loading.load_model(tmp_path / "1", CPU, to_train=True), expected)
    expected.to(torch.bfloat16).save_pretrained(tmp_path / "expected")
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "expected/model.safetensors").read_bytes()


@pytest.mark.parametrize("largest", [0, saving.LARGEST_FILE])
def test_experts_that_are_stored_in_one_tensor_stay_so(
    largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would store them one by one, had it not seen the file."""
    start = halved("Mixtral", tmp_path / "start")
    stored = AutoModelForCausalLM.from_pretrained(start, dtype=torch.bfloat16)
    stored.save_pretrained(start, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(start / "model.safetensors")
    model = direct.from_exported(start, CPU.device)
    assert_same(model, from_pretrained(start))
    monkeypatch.setattr(saving, "LARGEST_FILE", largest)
    made = checkpoint(tmp_path / "1", model, start)
    assert (made / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()


def test_a_critic_that_starts_from_a_policy_is_trained_from_its_float32_parameters(tmp_path: Path) -> None:
    start = halved("Llama", tmp_path / "start")
    policy = trained(loading.load_model(start, CPU))
    kept = {name: value.clone() for name, value in policy.model.state_dict().items()}
    critic = loading.load_critic(checkpoint(tmp_path / "1", policy, start), CPU, to_train=True)
    assert all(torch.equal(value, kept[name]) for name, value in critic.model.state_dict().items())
    assert not critic.score.weight.any()
    assert direct.from_masters(tmp_path / "1", critic=True) is not None
    with torch.no_grad():
        critic.score.weight.fill_(0.1)  # which bfloat16 rounds
    kept = {name: value.clone() for name, value in critic.state_dict().items()}
    again = loading.load_critic(checkpoint(tmp_path / "2", critic, tmp_path / "1"), CPU, to_train=True)
    assert all(torch.equal(value, kept[name]) for name, value in again.state_dict().items())
    made = checkpoint(tmp_path / "3", again, tmp_path / "2")
    assert weights_fingerprint(made) == weights_fingerprint(tmp_path / "2")


def test_a_float32_model_has_its_parameters_once(tiny: Path, tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "1", trained(loading.load_model(tiny, CPU, to_train=True)), tiny)
    assert not (made / "trainer/master.safetensors").exists()
    expected = trained(from_pretrained(tiny))
    assert_same(loading.load_model(made, CPU, to_train=True), expected)


def test_training_changes_no_file_that_it_started_from(tmp_path: Path) -> None:
    start = halved("Llama", tmp_path / "start")
    first = checkpoint(tmp_path / "1", trained(loading.load_model(start, CPU)), start)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    for directory in (start, first):
        trained(loading.load_model(directory, CPU, to_train=True))
    assert {path: path.read_bytes() for path in before} == before


def test_parameters_are_aligned_as_torch_aligns_its_own_also_those_of_older_checkpoints(tmp_path: Path) -> None:
    """A product of matrices may round otherwise at other addresses."""
    start = halved("Llama", tmp_path / "start")
    made = checkpoint(tmp_path / "1", trained(loading.load_model(start, CPU)), start)
    master = made / "trainer/master.safetensors"
    header = 8 + int.from_bytes(master.read_bytes()[:8], "little")
    assert header % ALIGNMENT == 0
    expected = loading.load_model(made, CPU, to_train=True)
    for padding in (0, 8, 24):
        save_file(load_file(master), master, {"padding": "x" * padding})
        model = loading.load_model(made, CPU, to_train=True)
        assert all(parameter.data_ptr() % ALIGNMENT == 0 for parameter in model.parameters())
        assert_same(model, expected)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    start = halved("Llama", tmp_path / "start")
    made = checkpoint(tmp_path / "1", trained(loading.load_model(start, CPU)), start)
    master = made / "trainer/master.safetensors"
    tensors = load_file(master)
    for change in ({"model.norm.weight": torch.ones(3)}, {"model.norm.weight": None}):
        changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(changed, master)
        with pytest.raises(InputError, match=r"does not fit the model at model.norm.weight"):
            loading.load_model(made, CPU, to_train=True)
    master.write_bytes(b"")
    with pytest.raises(InputError, match=r"master.safetensors: cannot be read"):
        loading.load_model(made, CPU, to_train=True)


def test_a_checkpoint_that_cannot_be_written_is_absent(tmp_path: Path) -> None:
    """The moments are written by a thread; a limit on the size of files meets them alone."""
    start = halved("Llama", tmp_path / "start")
    model = loading.load_model(start, CPU)
    size = sum(path.stat().st_size for path in start.glob("*.safetensors"))
    handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * size, limit[1]))
    try:
        with pytest.raises(PrimecliError, match=r"cannot write .*/1: File too large"):
            checkpoint(tmp_path / "1", model, start, {"large": torch.zeros(4 * size)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["start"]
