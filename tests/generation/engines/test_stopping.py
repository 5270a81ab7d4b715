"""Stop texts: where responses end, and that every engine ends them there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from primecli.generation.engines import Policy, Request, Sample, SamplingParams
from primecli.generation.engines.fake import FakeEngine
from primecli.generation.engines.hf import HfEngine
from primecli.generation.engines.stopping import StopTexts, stop_texts
from primecli.models.device import resolve_placement
from primecli.models.loading import load_model

WORDS = ["stop the stopper", "the answer is </answer>", "naïve café 你好 stop", "one\n\ntwo\n\n three"]

UNSEEN = "weiß, so 𝛼"  # of several tokens a character


def trained(kind: str) -> Any:
    """A tokenizer whose tokens are longer than a byte, with a special token."""
    special = ["<|end|>"]
    alphabet: list[str] = []
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # as of SentencePiece: a space belongs to the word after it, and the first one is dropped
        tokenizer = Tokenizer(models.BPE(byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always", split=False)]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # type: ignore[no-untyped-call]


def first_end(stops: Sequence[str], tokenizer: Any, ids: Sequence[int]) -> int:
    """How many tokens a response has, found in the plainest way; all, where no stop text is in it."""
    for length in range(1, len(ids)):
        text = tokenizer.decode(list(ids[:length]), skip_special_tokens=False)
        if any(stop in text for stop in stops):
            return length
    return len(ids)


STOPS = [
    ["stop"],
    ["p t", "e"],
    ["é"],
    ["好"],
    ["\n\n"],
    ["</answer>"],
    ["<|end|>"],
    ["stop the stopper", "ï"],
    ["  "],
    ["ß"],
    ["o 𝛼"],
]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_response_ends_with_the_token_that_completes_a_stop_text(kind: str) -> None:
    tokenizer = trained(kind)
    rng = np.random.default_rng(0)
    texts = [tokenizer(" ".join(rng.permutation([*WORDS, UNSEEN])))["input_ids"] for _ in range(6)]
    random = [rng.integers(0, len(tokenizer) + 5, size=60).tolist() for _ in range(6)]  # the last five are no tokens
    found = 0
    for stops in STOPS:
        ours = StopTexts(stops, tokenizer)
        for ids in [*texts, *random]:
            response = np.array(ids, dtype=np.int32)
            expected = first_end(stops, tokenizer, ids)
            one = ours.cut(Sample(response, -np.arange(len(ids), dtype=np.float32), "length"))
            assert one.token_ids.tolist() == ids[:expected]
            assert one.logprobs.tolist() == [-number for number in range(expected)]
            ended = any(stop in tokenizer.decode(ids[:expected]) for stop in stops)
            assert one.finish_reason == ("stop" if ended else "length")
            ends = (length for length in range(1, len(ids) + 1) if ours.completed(response[:length]))
            assert next(ends, len(ids)) == expected
            found += ended
    assert found > 40


def test_a_stop_text_may_begin_and_end_inside_tokens() -> None:
    tokenizer = trained("bytes")
    ids = tokenizer("the stopper\n\n")["input_ids"]
    assert tokenizer.decode(ids[1]).endswith("stopper"), (
        "the end of the stop text is inside a token, and so is its start"
    )
    cut = StopTexts(["he sto"], tokenizer).cut(Sample(np.array(ids), np.zeros(len(ids)), "length"))
    assert tokenizer.decode(cut.token_ids) == "the stopper"


def test_tokens_without_a_text_do_not_hide_a_stop_text() -> None:
    tokenizer = trained("bytes")
    nothing = [len(tokenizer) + 3] * 40
    first, *last = tokenizer("ab")["input_ids"]
    ours = StopTexts(["ab"], tokenizer)
    assert ours.completed(np.array([first, *nothing, *last]))
    assert not ours.completed(np.array([first, *nothing]))


def test_without_stop_texts_nothing_is_looked_for(tiny: Path) -> None:
    none = stop_texts(Policy(tiny, "f", (256,), 258, 100))
    sample = Sample(np.array([1, 2]), np.zeros(2), "length")
    assert none.cut(sample) is sample
    assert not none.completed(sample.token_ids)


REQUESTS = [Request("a", [10, 20, 30]), Request("b", [40]), Request("c", [50, 60, 70, 80, 90])]
TWO_LETTERS = ("a", "b", "c", "d", "e", "f", "g", "h", "<eos>")


@pytest.mark.parametrize("name", ["hf", "hf, kept rows", "fake"])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.7, "top_k": 30}])
def test_an_engine_ends_its_samples_where_they_would_be_cut(tiny: Path, name: str, params: dict[str, Any]) -> None:
    """And what it samples until then is what it samples without stop texts."""
    stops = stop_texts(Policy(tiny, "f", (), 258, 100, stop_texts=TWO_LETTERS))
    model = load_model(tiny, resolve_placement("cpu", "float32"))

    def sampled(stops: StopTexts) -> list[Sample]:
        engine: Any = FakeEngine(stop_texts=stops)
        if name != "fake":
            engine = HfEngine(
                model,
                resolve_placement("cpu", "float32"),
                stop_ids=[],
                micro_batch_tokens=10**6,
                compact_at=0.0 if "kept" in name else 0.75,
                stop_texts=stops,
            )
        settings = SamplingParams(n=8, max_tokens=30, **params)
        groups = dict(engine.sample(REQUESTS, settings, tick=lambda: None))
        return [one for number in range(len(REQUESTS)) for one in groups[number]]

    free = sampled(StopTexts())
    cut = 0
    for whole, ended in zip(free, sampled(stops), strict=True):
        expected = stops.cut(whole)
        assert ended.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(ended.logprobs, expected.logprobs, atol=2e-6)
        assert ended.finish_reason == expected.finish_reason
        cut += len(expected.token_ids) < len(whole.token_ids)
    assert 3 < cut < len(free)


def test_a_stop_text_with_the_last_token_allowed_is_an_end(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    engine = FakeEngine()
    ((_, (whole,)),) = engine.sample(REQUESTS[:1], SamplingParams(n=1, max_tokens=1), tick=lambda: None)
    assert whole.finish_reason == "length"
    text = str(tokenizer.decode(whole.token_ids))
    assert text.isascii(), "a whole character"
    assert StopTexts([text], tokenizer).cut(whole).finish_reason == "stop"
