"""The class of a critic: transformers' token classifier, or what it would be where transformers has none."""

from __future__ import annotations

import functools
from typing import Any


def critic_class(config: Any) -> Any:
    """A class whose models are the body of a causal language model and a linear layer `score`.

    transformers' own token classifier, where it has one whose head is called so. Else one that is made here in the same
    way, such as Lfm2Critic: transformers does not know it by that name, but loads its body, whose weights have the
    names that they have in the causal language model. Where the architecture is not that of a causal language model, it
    is the Auto class, which says so when it loads. config: of the model.
    """
    from transformers import AutoModelForTokenClassification
    from transformers.modeling_layers import GenericForTokenClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
    )

    kind = type(config)
    known: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(kind, None)
    if known is not None and issubclass(known, GenericForTokenClassification):
        return AutoModelForTokenClassification
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or kind not in MODEL_MAPPING:
        return AutoModelForTokenClassification
    return _made(MODEL_MAPPING[kind])


@functools.cache
def _made(body: Any) -> Any:
    """The class of critics whose body is of the class `body`, such as Lfm2Model."""
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GenericForTokenClassification

    parent = next(each for each in body.__mro__[1:] if issubclass(each, PreTrainedModel))  # such as Lfm2PreTrainedModel
    attributes = {
        # the name of the body within a causal language model: "model" in most
        "base_model_prefix": parent.base_model_prefix or "model",
        # In a class of another package, transformers would not compute the buffers that are stored in no file, such as
        # the multipliers of Falcon-H1: they would stay as they were allocated.
        "__module__": body.__module__,
    }
    return type(f"{body.__name__.removesuffix('Model')}Critic", (GenericForTokenClassification, parent), attributes)
