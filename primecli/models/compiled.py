"""Layers that torch.compile has made into fewer, larger kernels."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from primecli.errors import PrimecliError, UsageError, first_line
from primecli.models.device import Placement

VARIANTS = 64
"""How many versions of a layer may be compiled: with and without gradients, a mask, packed rows, one row or several."""


def compile_layers(model: Any, placement: Placement) -> None:
    """Makes each decoder layer of a model on its device compile itself when it is first called, for rows of any length.

    Only what a layer computes is compiled: hooks, such as those that gather the parameters of ranks, run around it. The
    attention of packed rows, whose segments differ in every row, runs as it is, between two compiled parts.

    Does nothing where `placement` asks for none. Raises UsageError for a model whose layers are not known, and
    PrimecliError where nothing can be compiled, as without a C++ compiler.
    """
    if not placement.compiled:
        return
    import torch

    from primecli.models.attention import register_packed
    from primecli.models.scoring import packing_obstacle
    from primecli.parallel.sharding import layers

    found = layers(model)
    if not found:
        raise UsageError(f"{type(model).__name__} does not say what its layers are", "leave --compile out")
    _check(placement)
    if placement.may_pack:
        packing_obstacle(model, placement)  # is found out, and remembered, before there is anything to compile
    register_packed(compiled=True)
    for layer in found:
        layer.forward = torch.compile(layer.forward, dynamic=True)


def _check(placement: Placement) -> None:
    """Compiles something small. Raises PrimecliError where that fails."""
    import torch

    torch._dynamo.config.cache_size_limit = VARIANTS
    torch._logging._internal.set_logs(all=logging.ERROR)  # what fails here is said in one line of ours
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")  # torch looks there
    try:
        with warnings.catch_warnings():  # of torch's own modules, as they are imported
            warnings.simplefilter("ignore")
            torch.compile(torch.neg, dynamic=True)(torch.zeros(2, device=placement.device))
    except Exception as error:  # torch, triton and the compiler have errors of many kinds
        raise PrimecliError(
            f"torch.compile does not work here: {first_line(error)}",
            "leave --compile out, or install a C++ compiler (g++) and Python's headers",
        ) from error
