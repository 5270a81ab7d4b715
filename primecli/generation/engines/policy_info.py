"""What an engine needs to know about the policy, read from its checkpoint without loading the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from primecli.errors import InputError, first_line
from primecli.generation.engines import Policy


def read_policy(
    directory: Path, tokenizer: Any, *, fingerprint: str, max_length: int, stop_texts: tuple[str, ...] = ()
) -> Policy:
    """The policy in a checkpoint directory.

    max_length: tokens of the longest sequence that can come up, prompt and response together. stop_texts: texts that
    end a response. Raises InputError where the model has fewer positions than `max_length`.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except StrictDataclassError as error:  # whose first line names only the field
        raise InputError(f"{directory}: its config.json cannot be read: {' '.join(str(error).split())}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{directory}: its config.json cannot be read: {first_line(error)}") from error
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and max_length > limit:
        raise InputError(
            f"{directory}: prompt and --max-tokens add up to {max_length} tokens, but the model has {limit} positions",
            "lower --max-tokens or --max-prompt-tokens",
        )
    outputs = config.get_text_config().vocab_size
    stops = stop_ids(directory, config, tokenizer)
    return Policy(directory, fingerprint, stops, len(tokenizer), max_length, outputs, stop_texts)


def stop_ids(directory: Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a response: those in generation_config.json, or else in config.json, and the tokenizer's."""
    from transformers import GenerationConfig

    if (directory / "generation_config.json").exists():
        try:
            stop = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
        except Exception as error:  # it compares and converts what it finds, whatever its type
            text = f"{directory}: its generation_config.json cannot be read: {first_line(error)}"
            raise InputError(text) from error
    else:
        stop = GenerationConfig.from_model_config(config).eos_token_id
    ids = [*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id]
    if not all(token is None or isinstance(token, int) for token in ids):
        raise InputError(f"{directory}: eos_token_id is {stop!r}, not a token id or a list of them")
    return tuple(sorted({token for token in ids if token is not None}))
