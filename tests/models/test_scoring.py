from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from primecli.errors import PrimecliError, UsageError
from primecli.models import loading, scoring
from primecli.models.body import body_of
from primecli.models.device import Placement
from primecli.parallel import sharding
from primecli.setup.tiny_model import make_model
from primecli.shards.rollouts import Sequences
from tests.models.architectures import build

PADDED = Placement(torch.device("cpu"), torch.float32, "off")
PACKED = replace(PADDED, packing="on")
AUTO = replace(PADDED, packing="auto")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return loading.load_model(tiny, PADDED)


def sequences(*, prompts: int, responses: int, prompt_tokens: int = 12, seed: int = 0) -> Sequences:
    """Groups of responses to prompts of about that many tokens, and one response of a single token."""
    random = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray:
        return random.integers(1, 20, count).astype(np.int32)

    first = [tokens(int(random.integers(1, 2 * prompt_tokens))) for _ in range(prompts)]
    answers = [tokens(1 if index == 0 else int(random.integers(1, 30))) for index in range(prompts * responses)]
    temperature = random.uniform(0.5, 2, prompts * responses).astype(np.float32)
    return Sequences([first[index % prompts] for index in range(len(answers))], answers, temperature)


def alone(model: Any, given: Sequences) -> np.ndarray:
    """(N,) log-probabilities of each sequence by itself, from all logits in float64."""
    found = []
    assert given.temperature is not None
    for prompt, response, temperature in zip(given.prompt_ids, given.response_ids, given.temperature, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].double() / float(temperature)
        found.append(torch.log_softmax(logits, -1).gather(-1, ids[len(prompt) :, None])[:, 0].numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("placement", [PADDED, PACKED, AUTO], ids=lambda placement: placement.packing)
@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_logprobs_are_those_of_each_sequence_alone(model: Any, placement: Placement, budget: int) -> None:
    given = sequences(prompts=5, responses=4)
    found = scoring.score(model, placement, given, micro_batch_tokens=budget)
    np.testing.assert_allclose(found, alone(model, given), atol=2e-5)


def gradient(model: Any, placement: Placement, given: Sequences, budget: int) -> list[torch.Tensor]:
    model.zero_grad()
    for batch in scoring.plan(model, placement, given, range(len(given.prompt_ids)), budget):
        found = scoring.sequence_logprobs(model, placement, given, batch, with_entropy=True)
        (found.logprobs.sum() + 0.1 * found.entropy.sum()).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_the_gradient_does_not_depend_on_packing(model: Any) -> None:
    given = sequences(prompts=3, responses=4)
    padded, packed = gradient(model, PADDED, given, 64), gradient(model, PACKED, given, 64)
    scale = max(float(part.abs().max()) for part in padded)
    assert scale > 1e-3
    for one, other in zip(padded, packed, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5 * scale, rtol=1e-4)


def tokens_computed(model: Any, placement: Placement, given: Sequences, budget: int = 10**6) -> int:
    """The number of tokens that go through the model, padding included."""
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.append(output[..., 0].numel()))
    try:
        scoring.plan(model, placement, given, range(len(given.prompt_ids)), budget)  # it may run a test input
        seen.clear()
        scoring.score(model, placement, given, micro_batch_tokens=budget)
    finally:
        hook.remove()
    return sum(seen)


def test_a_shared_prompt_is_computed_once(model: Any) -> None:
    prompt = np.arange(1, 16, dtype=np.int32)
    given = Sequences([prompt] * 3, [np.arange(1, size, dtype=np.int32) for size in (4, 6, 11)])
    assert tokens_computed(model, PADDED, given) == 3 * (15 + 10)
    assert tokens_computed(model, PACKED, given) == 15 + 2 + 4 + 9  # the last token of each predicts nothing
    assert tokens_computed(model, AUTO, given) == 15 + 2 + 4 + 9


def test_auto_pads_where_packing_saves_little(model: Any) -> None:
    given = Sequences([np.array([1 + row], np.int32) for row in range(4)], [np.arange(1, 20, dtype=np.int32)] * 4)
    assert tokens_computed(model, AUTO, given) == 4 * 20
    assert tokens_computed(model, PACKED, given) == 4 * 19


@pytest.mark.parametrize("name", ["LFM2", "Qwen3.5", "Falcon-H1", "Jamba", "MiniMax", "Granite 4 hybrid", "Mamba 2"])
def test_sequences_with_a_recurrent_state_are_not_packed_and_padding_is_none_of_it(name: str) -> None:
    hybrid = build(name)
    given = sequences(prompts=5, responses=4)
    first, second = (np.concatenate([given.prompt_ids[row], given.response_ids[row]]) for row in (1, 2))
    with torch.no_grad():
        by_itself, after_another = (
            body_of(hybrid)(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False).last_hidden_state
            for ids in (second, np.concatenate([first, second]))
        )
    change = (after_another[:, len(first) :] - by_itself).abs().mean(-1) / by_itself.abs().mean(-1)
    assert float(change.min()) > 1e-3  # so packing them would show
    found = scoring.score(hybrid, AUTO, given, micro_batch_tokens=200)
    np.testing.assert_allclose(found, alone(hybrid, given), atol=1e-4)
    np.testing.assert_array_equal(found, scoring.score(hybrid, PADDED, given, micro_batch_tokens=200))
    with pytest.raises(UsageError, match=f"{type(hybrid).__name__} cannot be packed: "):
        scoring.plan(hybrid, PACKED, given, range(20), 200)


def test_a_model_that_sees_images_too_scores_text(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**sizes, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "sliding_window": 16}
    config = Gemma3Config(
        text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = loading.load_model(tmp_path, AUTO)
    given = sequences(prompts=2, responses=4)
    np.testing.assert_allclose(
        scoring.score(model, AUTO, given, micro_batch_tokens=100), alone(model, given), atol=2e-5
    )


def test_rank_0_counts_the_rows_of_all_ranks(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = sequences(prompts=5, responses=1)

    def by_rank(rank: int, world: int) -> list[int]:
        alone_here = SimpleNamespace(rank=rank, world=world, total=lambda values: values)
        monkeypatch.setattr(sharding, "sharded", lambda model: SimpleNamespace(ranks=alone_here))
        counted: list[int] = []
        scoring.score(
            model, PADDED, given, micro_batch_tokens=1, done=counted.append,
            per_token=lambda model, placement, sequences, batch: torch.zeros(
                sum(len(sequences.response_ids[row]) for row in batch.rows)
            ),
        )  # fmt: skip
        return counted

    assert by_rank(0, 2) == [2, 2, 1]
    assert by_rank(1, 2) == [2, 2]
    assert by_rank(0, 1) == [1, 1, 1, 1, 1]


def test_a_number_that_is_not_finite_is_an_error_that_names_the_row(tmp_path: Path) -> None:
    """Token 7 has an embedding of NaN, which a short test of the model need not meet."""
    spoiled = loading.load_model(make_model(tmp_path / "m", tied=False), PADDED)
    with torch.no_grad():
        spoiled.get_input_embeddings().weight[7] = torch.nan
    rows = [np.array(ids, dtype=np.int32) for ids in ([3, 4], [3, 7, 5], [6])]
    given = Sequences([np.array([1], dtype=np.int32)] * 3, rows)
    for row in (0, 2):  # by themselves
        scoring.score(
            spoiled, PADDED, Sequences(given.prompt_ids[row : row + 1], rows[row : row + 1]), micro_batch_tokens=99
        )
    with pytest.raises(PrimecliError, match=r"shard: row 1: Qwen2ForCausalLM in float32 gives nan for a response"):
        scoring.score(spoiled, PADDED, given, micro_batch_tokens=99, name_row="shard: row {}".format)
