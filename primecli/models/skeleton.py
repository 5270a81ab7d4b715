"""Models without numbers, made from a directory's config.json; what libraries raise meanwhile, as one-line errors."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError, first_line
from primecli.models.device import is_out_of_memory
from primecli.models.fitness import check_unquantised
from primecli.models.value_head import critic_class

if TYPE_CHECKING:
    import torch


def skeleton(directory: Path, dtype: torch.dtype, *, critic: bool = False) -> Any:
    """The model of a directory, with parameters on the meta device: they have a shape, and no numbers.

    Its buffers are real. dtype: of its parameters. critic: make a critic of it, see `critic_class`. Raises InputError
    where it cannot be made.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_unquantised(directory)
    with reporting_load_errors(directory, critic=critic), quiet():
        options: dict[str, Any] = {"num_labels": 1} if critic else {}
        config = AutoConfig.from_pretrained(directory, local_files_only=True, **options)
        kind: Any = critic_class(config) if critic else AutoModelForCausalLM
        with _parameters_on_meta():
            made = getattr(kind, "from_config", None) or kind._from_config  # of an Auto class, and of a model's own
            model = made(config, dtype=dtype)
    if critic:
        check_value_head(model, directory)
    return model.eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Moves every parameter to the meta device as a module registers it, before it is initialised.

    Not torch.device("meta"): buffers, such as the frequencies of RoPE, are computed when a module is made, and are
    stored in no file.
    """
    import torch

    register = torch.nn.Module.register_parameter

    def register_on_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        register(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            empty = torch.empty_like(parameter, device="meta")
            module._parameters[name] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            # transformers initialises what has no such mark, which takes most of the time that a model takes to make
            module._parameters[name]._is_hf_initialized = True  # type: ignore[union-attr]

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def check_value_head(model: Any, directory: Path) -> None:
    """Raises InputError for a critic whose class has no value head."""
    if not hasattr(model, "score"):
        raise InputError(
            f"{directory}: {type(model).__name__} has no value head `score`",
            "this architecture cannot be a critic yet",
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from listing missing weights, which primecli says in a line, and slower kernels."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def reporting_load_errors(directory: Path, *, critic: bool = False) -> Iterator[None]:
    """Turns what the libraries raise while they load a model into an InputError. critic: it is to be one."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    what = "a critic" if critic else "a causal language model"
    try:
        yield
    except SafetensorError as error:
        raise InputError(f"{directory}: damaged weights: {first_line(error)}") from error
    except StrictDataclassError as error:  # a field of config.json of another type; its text has several lines
        raise InputError(f"{directory}: its config.json cannot be read: {' '.join(str(error).split())}") from error
    except Exception as error:  # a config.json that does not fit can make a model's code raise anything
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            raise _no_memory(directory) from error
        raise InputError(f"{directory}: cannot be loaded as {what}: {first_line(error)}") from error


def _no_memory(directory: Path) -> PrimecliError:
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return PrimecliError(
        f"{directory}: there is not enough memory for its weights ({size / 1e9:.1f} GB on disk)",
        "free some memory, or raise the limit of `ulimit -v`; --dtype bfloat16 needs half of float32",
    )
