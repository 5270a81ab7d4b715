"""Causal language models: finding, loading, identifying them, and token log-probabilities in bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError
from primecli.models.device import (
    Placement,
    first_line,
    give_freed_memory_back,
    is_out_of_memory,
    keep_freed_memory,
    wait_for_memory,
)

if TYPE_CHECKING:
    import torch

HEAD_TOLERANCE = 1e-3  # nats; a head of another form is off by far more, rounding by far less


def warm_imports() -> None:
    """Imports torch and transformers' model classes, which takes seconds; worth doing while waiting."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def load_model(directory: Path, place: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM in evaluation mode (dropout off, also when it is trained), on its device.

    dtype: of its parameters; that of `place` when None. Raises InputError where it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if place.device.type == "cpu":
        keep_freed_memory()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype or place.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: cannot be loaded as a causal language model: {first_line(error)}") from error
    except SafetensorError as error:
        raise InputError(f"{directory}: damaged weights: {first_line(error)}") from error
    model = move(model, place).eval()
    check_head(model, directory)
    return model


def load_critic(directory: Path, place: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM with a value head, in evaluation mode: transformers' token classifier of one label.

    The head of a model that has none starts at 0, so that an untrained critic expects nothing. Raises InputError where
    it cannot be loaded, or where transformers has no token classifier of its architecture.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForTokenClassification
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        names: set[str] = set()
        for path in directory.glob("*.safetensors"):
            with safe_open(path, framework="pt") as tensors:
                names.update(tensors.keys())
        model = AutoModelForTokenClassification.from_pretrained(
            directory, num_labels=1, dtype=dtype or place.dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: cannot be loaded as a critic: {first_line(error)}") from error
    except SafetensorError as error:
        raise InputError(f"{directory}: damaged weights: {first_line(error)}") from error
    finally:
        logging.set_verbosity(before)
    if not hasattr(model, "score"):
        raise InputError(f"{directory}: {type(model).__name__} has no value head `score`", "it cannot be a critic yet")
    if "score.weight" not in names:
        with torch.no_grad():
            for parameter in model.score.parameters():
                parameter.zero_()
    return move(model, place).eval()


def move(model: Any, place: Placement) -> Any:
    """The model on its device, once other processes leave room for it; running out of memory is one line."""
    tensors = [*model.parameters(), *model.buffers()]
    wait_for_memory(place.device, sum(tensor.nbytes for tensor in tensors if tensor.device != place.device))
    try:
        moved = model.to(place.device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PrimecliError(f"the model does not fit on {place.device}: {first_line(error)}") from error
    del tensors
    if place.device.type != "cpu":
        give_freed_memory_back()
    return moved


def check_head(model: Any, directory: Path) -> None:
    """Checks on a probe that the model's logits are those of its head on its last hidden states.

    Some architectures scale or cap logits after the head; their log-probabilities would be wrong. Raises
    PrimecliError for them.
    """
    import torch

    ids = torch.arange(1, 9, device=model.device)[None, :] % model.get_input_embeddings().num_embeddings
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits  # (1, T, V)
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # (1, T, D)
        head = model.get_output_embeddings()
        # by the head itself, which rounds logits as the model does: `token_logprobs` does not where it can do without
        ours, theirs = (
            torch.log_softmax(each.float(), -1).gather(-1, ids[..., None]).squeeze(-1)
            for each in (head(hidden.to(head.weight.dtype)), logits)
        )
    if not bool(logits.isfinite().all()):
        raise InputError(f"{directory}: the model's logits are not finite", "its weights are damaged")
    if not torch.allclose(ours, theirs, atol=HEAD_TOLERANCE):
        raise PrimecliError(
            f"{directory}: {type(model).__name__} changes its logits after the head, which is not supported yet"
        )
