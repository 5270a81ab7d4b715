"""The part of a model that computes its hidden states."""

from __future__ import annotations

from typing import Any

from primecli.errors import PrimecliError


def body_of(model: Any) -> Any:
    """All of a model but its head: a module whose output has `last_hidden_state`.

    Raises PrimecliError where the model has none of its own.
    """
    # the causal language model of Llama 4 names another module as its base than it has
    body = model.base_model if model.base_model is not model else getattr(model, "model", model)
    if body is model:
        raise PrimecliError(f"{type(model).__name__} has no part of its own that computes its hidden states")
    return body
