"""Which model architectures primecli works with: a whole iteration on each, with tiny random weights, on the CPU.

For each: whether it can be a policy and a PRM (sampled, scored and updated; sampler and trainer agree), and whether it
can be PPO's critic. Nothing is downloaded; 19 architectures take a minute.

Example:
    python tests/benchmarks/architectures.py
    python tests/benchmarks/architectures.py Qwen3 Gemma2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from primecli import cli  # noqa: E402
from tests.made_runs import make_byte_tokenizer  # noqa: E402

END = 256  # the end-of-text token of make_byte_tokenizer
LARGEST_GAP = "0.001"  # nats, on average, between the sampler and the trainer
SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.5,  # so that logits differ enough for a scale or a cap after the head to show
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": SMALL,
    "Qwen3": {**SMALL, "head_dim": 8},
    "Qwen3Moe": {**SMALL, "head_dim": 8, **EXPERTS},
    "Llama": SMALL,
    "Mistral": {**SMALL, "sliding_window": None},
    "Gemma": {**SMALL, "head_dim": 8},
    "Gemma2": {**SMALL, "head_dim": 8},
    "Gemma3Text": {**SMALL, "head_dim": 8},
    "Phi3": {**SMALL, "pad_token_id": END},
    "Olmo2": SMALL,
    "SmolLM3": {**SMALL, "pad_token_id": END},
    "Starcoder2": SMALL,
    "GptOss": {**SMALL, "head_dim": 8, "num_local_experts": 4},
    "GPT2": {"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.5},
    "GPTNeoX": SMALL,
    "OPT": {**SMALL, "word_embed_proj_dim": 32, "ffn_dim": 64},
    "Bloom": {"vocab_size": 257, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Cohere": SMALL,
    "Granite": {**SMALL, "logits_scaling": 8.0},
}
CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}


def make_model(name: str, directory: Path) -> None:
    """A random model of an architecture, as transformers names it, with a tokenizer of bytes."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**ARCHITECTURES[name], eos_token_id=END, bos_token_id=END)
    getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).save_pretrained(directory)
    make_byte_tokenizer(directory)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def run(*arguments: object) -> bool:
    """Whether a command of primecli succeeds; what it prints goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        return cli.run([*map(str, arguments), "--quiet"]) == 0


def runs_an_iteration(model: Path, prompts: Path, out: Path) -> bool:
    """Whether the model can be sampled, scored and updated, as a policy and as a PRM."""
    sampled = ("generate", "--model", model, "--prompts", prompts, "--n", 2, "--max-tokens", 12, "--engine", "hf")
    return (
        run(*sampled, "--out", out / "generate")
        and run("check-logprobs", "--model", model, "--max-gap", LARGEST_GAP, out / "generate")
        and run("verify", out / "generate")
        and run("filter", "--accuracy", 0, 1, "--allow-truncated", out / "verify")
        and run("update-prm", "--prm", model, "--ref", model, "--checkpoint", out / "prm", out / "filter")
        and run("score-prm", "--prm", out / "prm", "--ref", model, out / "filter")
        and run("compute-advantages", out / "score-prm")
        and run("update-policy", "--policy", model, "--checkpoint", out / "policy", out / "compute-advantages")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="as transformers has them  [default: all]")
    names = parser.parse_args().names or list(ARCHITECTURES)
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        prompts = Path(directory) / "prompts.jsonl"
        rows = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(4)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name in names:
            model = Path(directory) / name
            make_model(name, model)
            works = runs_an_iteration(model, prompts, model / "run")
            critic = works and run("score-values", "--critic", model, model / "run" / "score-prm")
            lines.append(f"{name:12} {'yes' if works else 'no':14} {'yes' if critic else 'no'}")
    print(f"{'':12} {'policy and PRM':14} critic", *lines, sep="\n")


if __name__ == "__main__":
    main()
