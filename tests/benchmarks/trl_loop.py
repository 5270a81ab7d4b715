"""The arithmetic task's loop by TRL's GRPOTrainer: what `loop.py` measures primecli against.

A plain use of it: group-normalised advantages, token-mean loss, no KL, no reference, as many optimizer steps a batch
as it has mini-batches. Nothing is saved. Prompts are taken in the order of the file, one batch an iteration. Prints
one JSON object: what was sampled, and the seconds from the start of this file to the first step and to the end.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
BOXED = re.compile(r"\\boxed\{(\d+)\}")
NUMBER = re.compile(r"\d+")


def is_right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 where the last boxed number is the answer; where completions are messages, after a template, any number."""
    found = [
        BOXED.findall(each) if isinstance(each, str) else NUMBER.findall(each[-1]["content"]) for each in completions
    ]
    return [float(bool(numbers) and numbers[-1] == right) for numbers, right in zip(found, answer, strict=True)]


def main() -> None:
    """Trains and says what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path, help="JSON lines with `prompt` and `answer`, iteration after iteration")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--batch-prompts", type=int, required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--mini-batch", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    rows = [json.loads(line) for line in options.prompts.read_text().splitlines()]
    steps = options.batch_prompts * options.n // options.mini_batch
    config = GRPOConfig(
        output_dir=str(options.out),
        per_device_train_batch_size=options.mini_batch,
        steps_per_generation=steps,
        max_steps=steps * options.iterations,
        num_generations=options.n,
        max_completion_length=options.max_tokens,
        temperature=1.0,
        learning_rate=options.lr,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        beta=0.0,
        loss_type="dapo",
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=steps,
        seed=0,
    )
    began: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            began.append(time.perf_counter() - STARTED)

    trainer = GRPOTrainer(
        model=str(options.model),
        reward_funcs=is_right,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"], "answer": row["answer"]} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
        callbacks=[Clock()],
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    print(
        json.dumps(
            {
                "steps": trainer.state.global_step,
                "rewards": [entry["reward"] for entry in logs],
                "response_tokens": [entry["completions/mean_length"] for entry in logs],
                "seconds_to_first_step": began[0],
                "seconds": time.perf_counter() - STARTED,
            }
        )
    )


if __name__ == "__main__":
    main()
