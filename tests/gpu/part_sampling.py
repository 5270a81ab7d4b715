"""Sampling: tokens a second of the hf engine at several batch sizes, against model.generate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from primecli.generation.engines import Request, SamplingParams
from primecli.generation.engines.hf import HfEngine
from primecli.models.device import Placement
from tests.gpu.context import Context
from tests.gpu.models import PAD, make_config, make_model
from tests.gpu.timing import peak_gib, reset_memory, seconds_of

ROWS = (1, 64, 256)
PROMPT_TOKENS, NEW_TOKENS = 128, 64


def run(context: Context) -> None:
    """model.generate first: the engine then changes how the model attends."""
    report, device = context.report, context.device
    config = make_config("1.5B", tiny=context.tiny)
    dtype = torch.bfloat16 if context.gpu else torch.float32
    model = make_model(config, device, dtype)
    sizes, prompt_tokens, new_tokens = (ROWS, PROMPT_TOKENS, NEW_TOKENS) if not context.tiny else ((1, 3), 6, 5)
    prompts = np.random.default_rng(0).integers(2, config.vocab_size, (max(sizes), prompt_tokens))
    baseline: dict[int, float] = {}
    for rows in sizes:
        work = partial(generate, model, prompts[:rows])
        baseline[rows] = measure(context, f"model.generate, {rows} rows", rows, new_tokens, work)
    engine = HfEngine(model, Placement(device, dtype), stop_ids=(), micro_batch_tokens=10**9)
    for rows in sizes:
        work = partial(sample, engine, prompts[:rows])
        rate = measure(context, f"hf engine, {rows} rows", rows, new_tokens, work)
        report.figure(f"hf engine, {rows} rows: speed", rate / baseline[rows], "times", "model.generate")


def measure(context: Context, name: str, rows: int, new_tokens: int, work: Callable[[int], int]) -> float:
    """Tokens a second; checks that all tokens came. work: samples so many tokens a row, returns how many came."""
    report, device = context.report, context.device
    reset_memory(device)
    work(2)
    came: list[int] = []
    seconds = seconds_of(lambda: came.append(work(new_tokens)), device)
    report.holds(f"{name}: tokens", came == [rows * new_tokens], str(came[0]), str(rows * new_tokens))
    report.figure(name, rows * new_tokens / seconds, "tokens/s")
    report.figure(f"{name}: a token", 1000 * seconds / new_tokens, "ms, its share of the prompt's pass included")
    report.figure(f"{name}: peak memory", peak_gib(device), "GiB")
    return rows * new_tokens / seconds


def generate(model: Any, prompts: np.ndarray, tokens: int) -> int:
    """Samples by transformers; how many tokens."""
    ids = torch.from_numpy(prompts).to(model.device)
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=PAD,
    )  # fmt: skip
    return int(found.shape[0] * (found.shape[1] - ids.shape[1]))


def sample(engine: HfEngine, prompts: np.ndarray, tokens: int) -> int:
    """Samples by primecli; how many tokens."""
    requests = [Request(f"g{number}", prompt.tolist()) for number, prompt in enumerate(prompts)]
    params = SamplingParams(n=1, max_tokens=tokens)
    groups = engine.sample(requests, params, tick=lambda: None)
    return sum(len(one.token_ids) for _, samples in groups for one in samples)
