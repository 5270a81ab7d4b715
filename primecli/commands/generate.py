"""`primecli generate`."""

from __future__ import annotations

from primecli.stages import generate as stage


def generate(options: stage.GenerateOptions) -> None:
    """Each shard holds whole groups: the N samples of a prompt, with their exact token ids and the
    log-probabilities of the distribution that they were sampled from.

    Which prompts an iteration takes depends on --seed, --step and --batch-prompts alone, so a loop that was
    killed goes on where it stopped, and any iteration can be made again.

    With vllm-server, the servers have to answer a probe as --model does, at the start and before each shard is
    written; --reload makes them load it first (they run with VLLM_SERVER_DEV_MODE=1).

    Example:

      \b
      primecli generate --model ckpt/policy/0 --prompts train.jsonl --n 4 \\
        --step 1 --batch-prompts 256 --out runs/1/generate
    """
    stage.generate(options)
