from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from primecli.core.after_head import AfterHead
from primecli.errors import PrimecliError
from primecli.models import loading, scoring
from primecli.models.device import Placement
from primecli.models.head import Head, head_of
from primecli.shards.rollouts import Sequences

CPU = Placement(torch.device("cpu"), torch.float32, "off")
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
SMALL = {**WIDE, "num_hidden_layers": 1, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
HEADS: list[tuple[str, dict[str, Any], Head]] = [
    ("Qwen2", WIDE, Head()),
    ("Gemma2", {**SMALL, "head_dim": 8, "final_logit_softcapping": 30.0}, Head(after=AfterHead(cap=30.0))),
    ("Gemma3Text", {**SMALL, "head_dim": 8, "final_logit_softcapping": 1.5}, Head(after=AfterHead(cap=1.5))),
    ("Gemma2", {**SMALL, "head_dim": 8, "final_logit_softcapping": None}, Head()),
    ("NanoChat", SMALL, Head(after=AfterHead(cap=15.0))),
    ("Cohere", {**SMALL, "logit_scale": 0.3}, Head(after=AfterHead(scale=0.3))),
    ("Granite", {**SMALL, "logits_scaling": 8.0}, Head(after=AfterHead(scale=0.125))),
    ("Granite", {**SMALL, "logits_scaling": 7.0}, Head(after=AfterHead(scale=1 / 7))),
    ("HyperCLOVAX", {**SMALL, "logits_scaling": 0.3}, Head(after=AfterHead(scale=0.3))),
    (
        "MiniCPM3",
        {**WIDE, **MLA, "num_key_value_heads": 4, "num_hidden_layers": 1, "dim_model_base": 8},
        Head(before=0.25),
    ),
    (
        "Llama4Text",  # names another module as its base than it has
        {**WIDE, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "pad_token_id": 0},
        Head(),
    ),
]


def make(name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model.to(dtype)


def named(case: tuple[str, dict[str, Any], Head]) -> str:
    return f"{case[0]}-{case[2].before}-{case[2].after.scale:.3g}-{case[2].after.cap}"


@pytest.mark.parametrize("case", HEADS, ids=named)
def test_log_probabilities_and_gradients_are_those_of_the_models_own_logits(
    case: tuple[str, dict[str, Any], Head],
) -> None:
    name, settings, expected = case
    model = make(name, settings)
    loading.check_head(model, Path("model"))
    assert head_of(model) == expected
    random = np.random.default_rng(0)
    tokens = [random.integers(3, 40, size).astype(np.int32) for size in (5, 9, 8, 3)]
    temperature = np.array([0.7, 1.4], dtype=np.float32)
    given = Sequences(tokens[:2], tokens[2:], temperature)
    weights = torch.from_numpy(random.normal(size=11)).double()
    found = scoring.sequence_logprobs(model, CPU, given, scoring.Batch([0, 1]), with_entropy=True)
    loss = (weights * found.logprobs).mean() + 0.1 * found.entropy.mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    exact = model.double()
    logprobs, entropy = plain(exact, given)
    torch.testing.assert_close(found.logprobs.double(), logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=0)
    exact_loss = (weights * logprobs).mean() + 0.1 * entropy.mean()
    theirs = torch.autograd.grad(exact_loss, list(exact.parameters()), allow_unused=True)
    largest = max(float(part.abs().max()) for part in theirs if part is not None)
    assert largest > 1e-3
    for ours, their in zip(gradients, theirs, strict=True):
        assert (ours is None) == (their is None)
        if ours is not None:
            torch.testing.assert_close(ours.double(), their, atol=1e-6 * max(1.0, largest), rtol=0)


def plain(model: Any, given: Sequences) -> tuple[Tensor, Tensor]:
    """(N,) log-probability and entropy of each response token, by log_softmax of the model's own logits."""
    found = []
    assert given.temperature is not None
    for prompt, response, temperature in zip(given.prompt_ids, given.response_ids, given.temperature, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        log_p = (model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] / float(temperature)).log_softmax(-1)
        found.append((log_p.gather(-1, ids[len(prompt) :, None])[:, 0], -(log_p.exp() * log_p).sum(-1)))
    return torch.cat([each[0] for each in found]), torch.cat([each[1] for each in found])


@pytest.mark.parametrize("case", HEADS[:2] + HEADS[7:8] + HEADS[9:10], ids=named)
def test_numbers_are_exact_in_a_model_of_16_bits(case: tuple[str, dict[str, Any], Head]) -> None:
    name, settings, expected = case
    model = make(name, settings, torch.bfloat16)
    loading.check_head(model, Path("model"))
    assert head_of(model) == expected


def test_a_cap_shows_where_all_logits_are_near_0() -> None:
    model = make("Gemma2", HEADS[1][1])
    with torch.no_grad():
        model.model.norm.weight.fill_(-1.0)  # Gemma multiplies by 1 + weight
    assert not model(torch.arange(3, 9)[None]).logits.any()
    assert head_of(model).after.cap == 30.0


def changed(after: Callable[[Any, Tensor], Tensor], before: Callable[[Any, Tensor], Tensor] | None = None) -> Any:
    """A small model whose logits go through `after`, and its hidden states through `before`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class ChangedForCausalLM(Qwen2ForCausalLM):  # type: ignore[no-untyped-call]
        def forward(self, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            output.logits = after(self, output.logits)
            return output

    torch.manual_seed(0)
    model = ChangedForCausalLM(Qwen2Config(**SMALL)).eval()  # type: ignore[no-untyped-call, arg-type]
    model.register_parameter("temperature", torch.nn.Parameter(torch.tensor(1.5)))
    if before is not None:
        model.lm_head.forward = lambda hidden: torch.nn.functional.linear(before(model, hidden), model.lm_head.weight)
    return model


def add_to_one(logits: Tensor) -> Tensor:
    return logits + torch.nn.functional.one_hot(torch.tensor(17), 40) * 1e-3


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda model, logits: logits**3, "other than by a scale or a cap: token"),
        (lambda model, logits: -logits, "other than by a scale or a cap: token"),
        (lambda model, logits: logits.clamp(-30, 30), "other than by a scale or a cap: token"),
        (lambda model, logits: torch.cat([logits[..., :39], logits[..., 39:] - 1e9], -1), "token 39 gets -1e+09"),
        (lambda model, logits: add_to_one(logits), "token 17 gets"),
        (lambda model, logits: logits[..., :32], "has 32 logits where its head has 40 outputs"),
        (lambda model, logits: logits * model.temperature, "by parameters that are trained"),
    ],
)
def test_a_model_that_does_something_else_is_refused_in_one_line(
    after: Callable[[Any, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(PrimecliError) as caught:
        loading.check_head(changed(after), Path("some/model"))
    assert str(caught.value).startswith("some/model: ChangedForCausalLM ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_head_of_another_kind_computes_is_refused() -> None:
    """Its output is not what its weights and the hidden states make."""

    class Rotated(torch.nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden.roll(1, -1))

    model = changed(lambda model, logits: logits)
    head = Rotated(32, 40, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    with pytest.raises(PrimecliError, match="some/model: ChangedForCausalLM"):
        loading.check_head(model, Path("some/model"))


def test_a_model_whose_states_depend_on_later_tokens_is_refused() -> None:
    """So they would depend on the padding of a row, too."""
    from transformers import DogeConfig, DogeForCausalLM

    torch.manual_seed(0)
    model = DogeForCausalLM(DogeConfig(**SMALL)).eval()  # type: ignore[no-untyped-call, arg-type]
    with pytest.raises(PrimecliError, match="some/model: DogeForCausalLM is not causal"):
        loading.check_head(model, Path("some/model"))


def test_the_model_is_left_as_it_was() -> None:
    model = make("Gemma2", HEADS[1][1])
    ids = torch.arange(3, 9)[None]
    before = model(ids).logits
    head_of(model)
    assert "forward" not in vars(model.base_model)
    assert torch.equal(model(ids).logits, before)


MORE = [{}, {"past_key_values": None}, {"unknown": False}, {"position_ids": torch.arange(3, 11)[None]}]


@pytest.mark.parametrize(("more", "calls"), list(zip(MORE, (1, 1, 2, 2), strict=True)))
def test_the_body_is_computed_once_unless_the_model_gives_it_more_than_tokens(more: dict[str, Any], calls: int) -> None:
    """What the model gets from its body is what the body alone says, as long as it asks for nothing else."""
    model, counted = make("Qwen2", WIDE), []
    model.model.register_forward_pre_hook(lambda body, ids, given: (ids, {**given, **more}), with_kwargs=True)
    model.model.layers[0].register_forward_hook(lambda *_: counted.append(1))
    loading.check_head(model, Path("model"))
    assert len(counted) == calls
