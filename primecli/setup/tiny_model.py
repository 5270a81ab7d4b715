"""A random model of some ten thousand parameters, to try the stages with: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path


def make_tokenizer(directory: Path) -> None:
    """Writes a tokenizer of the 256 bytes, an end-of-sequence and a padding token, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate([*alphabet, "<eos>", "<pad>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")  # type: ignore[no-untyped-call]
    fast.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    fast.save_pretrained(directory)


def make_model(
    directory: Path, *, seed: int = 0, dtype: str = "float32", scale: float = 0.1, tied: bool = True, heads: int = 4
) -> Path:
    """Writes a random Qwen2 and its tokenizer to a directory; returns the directory.

    dtype: of the weights on disk, by torch's name. scale: standard deviation of the weights. tied: whether the output
    layer shares the embedding. heads: of attention: 4, each 8 wide, or 2, each 32 wide, the least that vLLM accepts.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=258,
        hidden_size=32 if heads == 4 else 64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        initializer_range=scale,
        eos_token_id=256,
        pad_token_id=257,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config).to(getattr(torch, dtype))  # type: ignore[no-untyped-call]
    model.generation_config.eos_token_id = 256
    model.save_pretrained(directory)
    make_tokenizer(directory)
    return directory
