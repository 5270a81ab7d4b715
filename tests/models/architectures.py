"""Tiny random models of the architectures that people train, each a few layers of every kind that it has.

Every one has the vocabulary of the byte tokenizer of `make_tokenizer`. Windows, chunks and blocks are shorter than the
sequences of the tests, so that what they cut off is cut off; scales and caps are such that logits show them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primecli.setup.tiny_model import make_tokenizer
from tests.models.configs.common import EOS, PAD, VOCABULARY, Architecture
from tests.models.configs.dense import DENSE_MODELS
from tests.models.configs.experts import EXPERT_MODELS
from tests.models.configs.recurrent import RECURRENT_MODELS

GAIN = 1.5  # of a layer: what it adds is about as large as what comes in

ARCHITECTURES: list[Architecture] = [*DENSE_MODELS, *EXPERT_MODELS, *RECURRENT_MODELS]
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def build(architecture: Architecture | str, *, seed: int = 0, **settings: Any) -> Any:
    """A random model in float32, ready for inference; the same for the same seed.

    settings: of the configuration, in place of the architecture's own.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    chosen = BY_NAME[architecture] if isinstance(architecture, str) else architecture
    tokens = {"vocab_size": VOCABULARY, "eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None}
    config = AutoConfig.for_model(chosen.type, **{**tokens, **chosen.settings, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        _randomize(model, chosen.spread)
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    return model.eval()


def save(architecture: Architecture | str, directory: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Writes such a model and its tokenizer as a checkpoint; returns the directory."""
    build(architecture, seed=seed, **settings).save_pretrained(directory)
    make_tokenizer(directory)
    return directory


def _randomize(model: Any, spread: float) -> None:
    """Weights of a size that depends on their shape alone, whatever the model's own initialization."""
    import torch

    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if "dt_" in name or (last not in ("weight", "bias") and "proj" not in last):
                continue  # time steps, decays and the like have values of their own that make sense
            noise = torch.randn(parameter.shape)
            if parameter is head:
                parameter.copy_(noise * spread / parameter.shape[-1] ** 0.5)
            elif parameter.dim() == 1:  # of a norm, or a bias
                parameter.add_(0.1 * noise)
            elif name.endswith("experts.weight") or (parameter.dim() == 3 and "conv" not in name):
                parameter.copy_(noise * GAIN / min(parameter.shape[1:]) ** 0.5)
            else:
                parameter.copy_(noise * GAIN / parameter[0].numel() ** 0.5)
