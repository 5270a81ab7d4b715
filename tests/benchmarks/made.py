"""Models and rollouts made at random for the benchmarks, of any size. Imports torch and pyarrow where it needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from primecli.models import same_tokens  # noqa: E402
from primecli.shards import parquet, schema  # noqa: E402
from primecli.shards.columns import list_column  # noqa: E402

GROUP = 4
STAGES = ("generate", "verify", "score-prm", "compute-advantages")


def make_model(directory: Path, *, words: int, width: int, layers: int, seed: int = 0, **config: Any) -> str:
    """A random Qwen2 without a tokenizer; returns its fingerprint. config: what else Qwen2Config is to be given."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    from primecli.models.identity import model_fingerprint

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    given = {
        "intermediate_size": 3 * width,
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 128),
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "pad_token_id": 1,
        **config,
    }
    Qwen2ForCausalLM(  # type: ignore[no-untyped-call]
        Qwen2Config(vocab_size=words, hidden_size=width, num_hidden_layers=layers, **given)
    ).save_pretrained(directory)
    return model_fingerprint(directory)


def write_rollouts(
    path: Path,
    rows: int,
    tokens: int,
    *,
    words: int = 1000,
    prompt_tokens: int = 80,
    spread: float = 0.75,
    fingerprint: str = "0" * 32,
    stages: Sequence[str] = STAGES,
    first_row: int = 0,
    tokens_of: Path | None = None,
) -> None:
    """One shard of whole groups with the columns of these stages, as if they had made them.

    tokens: of a response in the mean; spread: how far their number goes from it, as a share of it. words: token ids are
    below it. first_row: the number of the first row in the whole, by which groups are named and drawn. tokens_of: the
    model with the tokenizer of the ids, for stages that compare it.
    """
    import numpy as np
    import pyarrow as pa

    generator = np.random.default_rng(first_row)
    low, high = round(tokens * (1 - spread)), round(tokens * (1 + spread))
    lengths = generator.integers(low, high, rows, endpoint=True)
    total = int(lengths.sum())
    outcome = (generator.random(rows) < 0.4).astype(np.float32)
    numbers = first_row + np.arange(rows)
    groups = numbers // GROUP
    prompts = generator.integers(0, words, (rows // GROUP + 1, prompt_tokens))
    responses = [
        " ".join(f"w{number % words}" for _ in range(length - 1)) + f" \\boxed{{{group + (not right)}}}"
        for number, group, length, right in zip(numbers, groups, lengths, outcome, strict=True)
    ]
    columns: dict[str, Any] = {
        schema.PROMPT_ID: [f"p{group}" for group in groups],
        schema.GROUP_ID: [f"p{group}@{group}" for group in groups],
        schema.DATA_SOURCE: ["numina" if group % 3 else "gsm8k" for group in groups],
        schema.ABILITY: ["math"] * rows,
        schema.GROUND_TRUTH: [str(group) for group in groups],
        schema.PROMPT: [f"question {group}: " + "word " * 60 for group in groups],
        schema.RESPONSE: responses,
        schema.FINISH_REASON: ["stop"] * rows,
        schema.POLICY_FINGERPRINT: [fingerprint] * rows,
        schema.VERDICT: ["correct" if right else "wrong" for right in outcome],
        schema.EXTRACTED_ANSWER: [str(group) for group in groups],
        schema.GROUP_SIZE: np.full(rows, GROUP),
        schema.SAMPLE_INDEX: numbers % GROUP,
        schema.TEMPERATURE: np.ones(rows),
        schema.TOP_P: np.ones(rows),
        schema.TOP_K: np.zeros(rows),
        schema.OUTCOME_REWARD: outcome,
    }
    lists = {
        schema.PROMPT_IDS: (prompts[groups - groups[0]].ravel(), np.full(rows, prompt_tokens)),
        schema.RESPONSE_IDS: (generator.integers(0, words, total), lengths),
        **{
            name: (generator.normal(size=total).astype(np.float32) * 0.01, lengths)
            for name in schema.PER_RESPONSE_TOKEN
        },
    }
    lists[schema.ROLLOUT_LOGPROBS] = (-np.abs(lists[schema.ROLLOUT_LOGPROBS][0]), lengths)
    columns |= {name: list_column(values, sizes, name) for name, (values, sizes) in lists.items()}
    names = [column.name for column in schema.COLUMNS if column.name in columns and column.stage in stages]
    arrays = [
        columns[name]
        if isinstance(columns[name], pa.Array)
        else pa.array(columns[name]).cast(schema.BY_NAME[name].arrow_type())
        for name in names
    ]
    table = pa.Table.from_arrays(arrays, schema=schema.arrow_schema(names))
    record: dict[str, Any] = {"stage": "generate", "command": "", "config": {}, "fingerprint": "f", "inputs": []}
    if tokens_of is not None:
        record[same_tokens.TOKEN_IDENTITY] = same_tokens.token_identity(tokens_of)
    parquet.write_shard(path, table, fingerprint="f", recipe={}, counts={}, provenance=[record])
