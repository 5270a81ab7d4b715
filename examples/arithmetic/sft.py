"""Train a tiny Qwen2 from scratch on the demonstrations of the arithmetic task.

Reads DATA_DIR/demonstrations.jsonl and DATA_DIR/tokenizer, which make_task.py writes. The loss is the
cross-entropy of the response tokens and the end-of-sequence token; prompt tokens are only context. This
script leaves out what a real run needs and this one does not: evaluation, intermediate checkpoints, mixed
precision. The same seed on the same machine with the same number of threads gives the same weights.

Writes OUT_MODEL_DIR, which AutoModelForCausalLM and AutoTokenizer can load. The directory appears only when
it is complete.

Example:
    python examples/arithmetic/sft.py task sft-model
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

IGNORED = -100  # the label that cross_entropy ignores
HEAD_WIDTH = 24  # the default; vLLM needs a multiple of 32 on a CPU
INITIALIZER_RANGE = 0.08  # near 1 / sqrt(width); the usual 0.02 suits wide models and learns far slower here
WARMUP_SHARE = 0.05
PROGRESS_EVERY = 100


class Demonstration(NamedTuple):
    """A prompt with a response.

    prompt_ids: token ids of the prompt.
    response_ids: token ids of the response, which ends with the end-of-sequence token.
    """

    prompt_ids: list[int]
    response_ids: list[int]


def read_demonstrations(path: Path, tokenizer: "PreTrainedTokenizerBase") -> list[Demonstration]:
    """The demonstrations of a JSONL file with the columns prompt and response."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    responses = tokenizer([row["response"] + tokenizer.eos_token for row in rows])["input_ids"]
    return [Demonstration(*ids) for ids in zip(prompts, responses, strict=True)]


def collate(batch: Sequence[Demonstration], pad_token_id: int) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Right-padded input ids and labels, each (B, T); labels are IGNORED in the prompt and in the padding.

    Causal attention never looks to the right, so the padding needs no attention mask.
    """
    import torch

    width = max(len(prompt_ids) + len(response_ids) for prompt_ids, response_ids in batch)
    input_ids = torch.full((len(batch), width), pad_token_id)  # (B, T)
    labels = torch.full((len(batch), width), IGNORED)  # (B, T)
    for row, (prompt_ids, response_ids) in enumerate(batch):
        end = len(prompt_ids) + len(response_ids)
        input_ids[row, :end] = torch.tensor(prompt_ids + response_ids)
        labels[row, len(prompt_ids) : end] = torch.tensor(response_ids)
    return input_ids, labels


def draw_batches(demonstrations: Sequence[Demonstration], batch_size: int, steps: int) -> Iterator[list[Demonstration]]:
    """`steps` batches; each time the demonstrations run out, they are shuffled again."""
    import torch

    order: list[int] = []
    for _ in range(steps):
        while len(order) < batch_size:
            order += torch.randperm(len(demonstrations)).tolist()
        yield [demonstrations[index] for index in order[:batch_size]]
        order = order[batch_size:]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to 0, as a factor of the peak learning rate.

    >>> [round(learning_rate_factor(step, 10), 2) for step in (0, 1, 5, 9)]
    [1.0, 0.98, 0.5, 0.02]
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1)))


def make_model(
    tokenizer: "PreTrainedTokenizerBase", layers: int, width: int, head_width: int = HEAD_WIDTH
) -> "Qwen2ForCausalLM":
    """A Qwen2 with random weights and tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // head_width,
        num_key_value_heads=width // head_width,
        max_position_embeddings=1024,
        initializer_range=INITIALIZER_RANGE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]


def train(
    model: "Qwen2ForCausalLM",
    demonstrations: Sequence[Demonstration],
    pad_token_id: int,
    *,
    steps: int,
    batch_size: int,
    lr: float,
) -> float:
    """Train the model in place; return the last step's loss, in nats per response token."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    model.train()
    last_loss = math.nan
    for step, batch in enumerate(draw_batches(demonstrations, batch_size, steps), start=1):
        input_ids, labels = collate(batch, pad_token_id)  # (B, T)
        logits = model(input_ids=input_ids, use_cache=False).logits  # (B, T, V)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        last_loss = loss.item()
        if step % PROGRESS_EVERY == 0 or step == steps:
            print(f"step {step}/{steps} loss {last_loss:.4f}", file=sys.stderr, flush=True)
    return last_loss


def save(model: "Qwen2ForCausalLM", tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Write model and tokenizer beside the target, then rename."""
    from transformers import GenerationConfig

    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument("out_model_dir", type=Path, metavar="OUT_MODEL_DIR", help="must not exist yet")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps (default: 1500)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default: 0.002)")
    parser.add_argument("--batch", type=int, default=16, help="demonstrations per step (default: 16)")
    parser.add_argument("--layers", type=int, default=2, help="transformer layers (default: 2)")
    parser.add_argument("--width", type=int, default=96, help="hidden size (default: 96)")
    parser.add_argument("--head-width", type=int, default=HEAD_WIDTH, help="width of an attention head (default: 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    options = parser.parse_args(arguments)
    if min(options.steps, options.batch, options.layers, options.threads) < 1:
        parser.error("--steps, --batch, --layers and --threads must be at least 1")
    if options.head_width < 2 or options.head_width % 2:
        parser.error("--head-width must be even")
    if options.width < options.head_width or options.width % options.head_width:
        parser.error(f"--width must be a multiple of {options.head_width}, the --head-width")
    for needed in (options.data_dir / "demonstrations.jsonl", options.data_dir / "tokenizer"):
        if not needed.exists():
            parser.error(f"{needed} does not exist; make_task.py writes it")
    if options.out_model_dir.exists():
        parser.error(f"{options.out_model_dir} exists already")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(options.data_dir / "tokenizer")
    demonstrations = read_demonstrations(options.data_dir / "demonstrations.jsonl", tokenizer)
    model = make_model(tokenizer, options.layers, options.width, options.head_width)
    loss = train(
        model,
        demonstrations,
        tokenizer.pad_token_id,
        steps=options.steps,
        batch_size=options.batch,
        lr=options.lr,
    )
    save(model, tokenizer, options.out_model_dir)
    print(
        f"{options.out_model_dir}: {model.num_parameters()} parameters, loss {loss:.4f}, "
        f"{time.perf_counter() - started:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
