from __future__ import annotations

from typing import Any

import pytest
import torch

from primecli.errors import PrimecliError
from primecli.generation.engines import Request, Sample, SamplingParams
from primecli.generation.engines.hf import HfEngine
from primecli.generation.engines.probe import plan_decoding
from primecli.models.device import resolve_placement
from tests.generation.engines.toy_models import BLOCK, Blocks, Careless, Foresighted, OneForAll
from tests.models.architectures import ARCHITECTURES, build
from tests.models.configs.common import RECURRENT

FLOAT32 = resolve_placement("cpu", "float32")
PROMPTS = [[10, 20, 30], [40], [50, 60, 70, 80, 90, 11, 12, 13, 14, 15, 16], [12, 13], [14, 15]]
STOPS = range(3, 14)
WAYS = {
    "Llama 4": ("apart", True, True),  # its temperature follows the length of the cache, padding included
    "MiniMax": ("apart", True, True),  # it masks by a layer that has no keys
    "Nemotron-H": ("padded", True, False),  # its steps have another bound than its sequences
    "Zamba2": ("padded", True, False),
    "RecurrentGemma": ("joined", True, True),
    "xLSTM": ("joined", True, True),
    "RWKV 4": ("alone", False, True),  # its step mixes the rows of a batch
}
NAMES = [each.name for each in ARCHITECTURES if (RECURRENT in each.kinds and each.core) or each.name in WAYS]


def sample(model: Any, prompts: list[list[int]], *, stops: Any, budget: int = 10**6, **params: Any) -> Any:
    engine = HfEngine(model, FLOAT32, stop_ids=stops, micro_batch_tokens=budget)
    requests = [Request(str(number), prompt) for number, prompt in enumerate(prompts)]
    groups = dict(engine.sample(requests, SamplingParams(**params), tick=lambda: None))
    return [groups[number] for number in range(len(prompts))]


def largest_gap(model: Any, prompts: list[list[int]], groups: list[list[Sample]]) -> float:
    """Between the log-probabilities of samples and those of a forward pass of each whole sequence, nats."""
    gaps = []
    for prompt, group in zip(prompts, groups, strict=True):
        for one in group:
            tokens = torch.from_numpy(one.token_ids).long()
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *tokens.tolist()]]), use_cache=False).logits[0]
            exact = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
            gaps.append((exact - torch.from_numpy(one.logprobs)).abs().max())
    return float(max(gaps))


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_those_of_whole_sequences(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = build(name)
    plan = plan_decoding(model, FLOAT32)
    assert (plan.prefill, plan.drops_rows, plan.cached) == WAYS.get(name, ("padded", True, True))

    groups = sample(model, PROMPTS, stops=STOPS, n=3, max_tokens=14, seed=3)
    lengths = {len(one.token_ids) for group in groups for one in group}
    assert len(lengths) > 2  # rows end at different times
    assert largest_gap(model, PROMPTS, groups) < 3e-4  # rounding, which some of these weights multiply

    greedy = sample(model, PROMPTS[1:4], stops=[2], n=2, max_tokens=8, temperature=0.0, budget=3 * 19)
    for prompt, group in zip(PROMPTS[1:4], greedy, strict=True):
        with torch.no_grad():  # RecurrentGemma keeps the state of an earlier sequence, see `Layout.held`
            model(input_ids=torch.tensor([[1, 2]]), use_cache=False)
        theirs = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=2, use_cache=plan.cached
        )
        assert [one.token_ids.tolist() for one in group] == [theirs[0, len(prompt) :].tolist()] * 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == (2 if plan.slower() else 0)  # once for each engine, and nothing of transformers' own
    assert all(line.startswith("primecli: ") and " is slower to sample from: " in line for line in said)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("Qwen3.5", ("padded", True)),
        ("Mamba", ("padded", False)),
        ("RecurrentGemma", ("joined", True)),
        ("Zamba2", ("padded", True)),  # what its cache changes is less than rounding
    ],
)
def test_rounding_in_16_bits_is_not_taken_for_another_state(name: str, way: tuple[str, bool]) -> None:
    plan = plan_decoding(build(name).bfloat16(), resolve_placement("cpu", "bfloat16"))
    assert (plan.prefill, plan.masks_steps, plan.cached) == (*way, True)


@pytest.mark.parametrize(
    ("kind", "way"), [(OneForAll, ("padded", False)), (Blocks, ("apart", True)), (Careless, ("joined", True))]
)
def test_what_a_state_allows_is_found_out(kind: Any, way: tuple[str, bool]) -> None:
    model = kind().eval()
    plan = plan_decoding(model, FLOAT32)
    assert (plan.prefill, plan.drops_rows, plan.cached) == (*way, True)
    prompts = [[5, 6, 7], [8], [9] * (BLOCK + 3), [4, 3, 2], [1, 2, 3, 4, 5, 6]]
    groups = sample(model, prompts, stops=[0, 1, 2], n=3, max_tokens=2 * BLOCK, seed=1)
    assert len({len(one.token_ids) for group in groups for one in group}) > 3
    assert largest_gap(model, prompts, groups) < 1e-5


def test_rows_that_cannot_leave_are_kept_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    sample(OneForAll().eval(), [[5, 6, 7]], stops=[], n=1, max_tokens=2)
    assert capsys.readouterr().err == (
        "primecli: OneForAll is slower to sample from: responses that have ended stay in the batch, since its cache "
        "cannot drop rows\n"
    )


def test_a_model_that_looks_ahead_is_refused() -> None:
    refusal = r"Foresighted .* cannot decode with: later tokens change a token's log-probabilities"
    with pytest.raises(PrimecliError, match=refusal):
        plan_decoding(Foresighted().eval(), FLOAT32)


def test_a_model_that_fails_is_refused_with_its_reason() -> None:
    model = OneForAll().eval()
    model.head = torch.nn.Linear(3, 4)
    with pytest.raises(PrimecliError, match=r"OneForAll keeps a state .*: mat1 and mat2 shapes cannot be multiplied"):
        plan_decoding(model, FLOAT32)


def test_what_decoding_is_held_against_is_not_made_of_special_tokens() -> None:
    """Nobody trained their embeddings, so rounding alone can look like another state."""
    model = build("Llama")
    seen: set[int] = set()

    def look(module: Any, given: Any, named: dict[str, Any]) -> None:
        if not named["use_cache"]:
            seen.update(named["input_ids"].flatten().tolist())

    model.register_forward_pre_hook(look, with_kwargs=True)
    plan_decoding(model, FLOAT32)
    vocabulary = model.get_input_embeddings().num_embeddings
    assert len(seen) > 10
    assert max(seen) > 0.8 * vocabulary
    assert sum(number < 17 for number in seen) <= len(seen) * 17 / vocabulary + 1
