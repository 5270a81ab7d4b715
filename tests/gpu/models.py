"""Random models of real shapes, made where they compute; their tokenizer; rollouts; FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.files import write_json_atomically
from tests.benchmarks.made import write_rollouts

if TYPE_CHECKING:
    import torch

    from primecli.shards.rollouts import Rollouts

VOCABULARY = 151_936
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
             "num_key_value_heads": 2},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "tie_word_embeddings": False},
}  # fmt: skip
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 4096,
}  # fmt: skip
EOS, PAD = 0, 1
FILE_BYTES = 4 << 30  # of weights in a file


def make_config(shape: str, *, tiny: bool = False, **others: Any) -> Any:
    """Qwen2's configuration of a shape in SHAPES; tiny: a tiny one in its place. others: settings to change."""
    from transformers import Qwen2Config

    common: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 32768, "tie_word_embeddings": True}
    common |= {"rms_norm_eps": 1e-6, "eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": None}
    return Qwen2Config(**{**common, **SHAPES[shape], **(TINY if tiny else {}), **others})


def make_model(config: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A random model in evaluation mode, made on its device."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model.to(device).eval()


def write_model(model: Any, directory: Path) -> None:
    """Writes a model as transformers stores it, one file at a time, so that no second copy of it is made."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += tensor.nbytes
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        places = {name: file for file, parts in zip(names, files, strict=True) for name in parts}
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        write_json_atomically(directory / "model.safetensors.index.json", {"metadata": total, "weight_map": places})
    for file, parts in zip(names, files, strict=True):
        save_file({name: tensors[name].contiguous() for name in parts}, directory / file, metadata={"format": "pt"})


def write_tokenizer(directory: Path, vocabulary: int) -> None:
    """A tokenizer of bytes for prompts, with a name for every other token that such a model may sample.

    It is of the kind that transformers makes for a Qwen2, whatever stands in the file: byte-level pairs.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<|endoftext|>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"w{number}" for number in range(len(names), vocabulary)]
    tokenizer = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=names[EOS], pad_token=names[PAD])  # type: ignore[no-untyped-call]
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    fast.save_pretrained(directory)


def make_rollouts(
    directory: Path,
    rows: int,
    tokens: tuple[int, int],
    prompt_tokens: int,
    vocabulary: int,
    model: Path | None = None,
) -> Path:
    """A shard of rollouts with advantages, as if this model had made them; returns its path.

    tokens: of the shortest and the longest response.
    """
    from primecli.models.identity import model_fingerprint

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "rollouts-00000-of-00001.parquet"
    mean = sum(tokens) / 2
    write_rollouts(
        path, rows, round(mean), words=vocabulary, prompt_tokens=prompt_tokens, spread=(tokens[1] - mean) / mean,
        fingerprint=model_fingerprint(model) if model else "0" * 32, tokens_of=model,
    )  # fmt: skip
    return path


def read_rollouts(path: Path) -> Rollouts:
    """The rollouts of a shard of `make_rollouts`, with what either update needs."""
    from primecli.pipeline.inputs import Inputs
    from primecli.shards import schema
    from primecli.shards.rollouts import load_rollouts
    from primecli.training import policy
    from primecli.training.policy_options import PolicyOptions

    columns = [*policy.needed_columns(PolicyOptions()), schema.OUTCOME_REWARD, schema.REF_LOGPROBS]
    return load_rollouts(list(Inputs([str(path)], partial=True)), columns, token_ids=True)


def forward_flops(config: Any, prompt_lengths: Sequence[int], response_lengths: Sequence[int]) -> float:
    """FLOPs of a forward pass over sequences, with logits for response tokens only.

    2 per weight of the layers and token, 2 per weight of the head and response token, and 2 x layers x width x T^2 for
    causal attention over T tokens. Training takes three times that; what is computed twice to save memory does not
    count.

    >>> from transformers import Qwen2Config
    >>> config = Qwen2Config(hidden_size=4, intermediate_size=6, num_hidden_layers=2, num_attention_heads=2,
    ...                      num_key_value_heads=1, vocab_size=10)
    >>> layer = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6  # q, k and v, o, gate up down
    >>> forward_flops(config, [3], [2]) == 2 * 2 * layer * 5 + 2 * 4 * 10 * 2 + 2 * 2 * 4 * 5**2
    True
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    inner = heads * head
    layer = 2 * width * inner + 2 * width * config.num_key_value_heads * head + 3 * width * config.intermediate_size
    total = 0.0
    for prompt, response in zip(prompt_lengths, response_lengths, strict=True):
        tokens = prompt + response
        total += 2 * config.num_hidden_layers * layer * tokens + 2 * width * config.vocab_size * response
        total += 2 * config.num_hidden_layers * inner * tokens**2
    return total
