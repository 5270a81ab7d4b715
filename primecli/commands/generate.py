"""`primecli generate`."""

from __future__ import annotations

from primecli.stages import generate as stage


def generate(options: stage.GenerateOptions) -> None:
    """Each shard holds whole groups: the N responses to a prompt, with the exact token ids that were sampled and their
    log-probabilities under the distribution that they were sampled from.

    The prompts of an iteration depend only on --seed, --step and --batch-prompts. So a run that was killed continues
    where it stopped, and any iteration can be repeated.

    With vllm-server, each server must answer a probe as --model does, at the start and before each shard is written.
    With --reload the servers load --model first; start them with VLLM_SERVER_DEV_MODE=1.

    Example:

      \b
      primecli generate --model ckpt/policy/0 --prompts train.jsonl --n 4 \\
        --step 1 --batch-prompts 256 --out runs/1/generate
    """
    stage.generate(options)
