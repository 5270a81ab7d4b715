"""Loading of causal language models and critics."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError, first_line
from primecli.models.body import body_of
from primecli.models.device import (
    Placement,
    give_freed_memory_back,
    is_out_of_memory,
    keep_freed_memory,
    wait_for_memory,
)
from primecli.models.fitness import check_unquantised, missing_weights
from primecli.models.value_head import critic_class

if TYPE_CHECKING:
    import torch

HEAD_TOLERANCE = 1e-3  # nats; rounding differs by far less, a head that computes something else by far more
# Of a state's mean absolute value. In 16 bits, a token may go to other experts by rounding, which changes it by more.
SAME_STATE = 1e-4
SAME_STATE_IN_HALF = 0.25


def warm_imports() -> None:
    """Imports torch and transformers' model classes. It takes seconds, so a stage does it while it waits for input."""
    import torch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401


def skeleton(load: Callable[..., Any], directory: Path, dtype: torch.dtype) -> Any:
    """The model that `load` would load, with parameters on the meta device: they have a shape, and no numbers.

    Its buffers are real. load: `load_model` or `load_critic`. dtype: of its parameters. Raises what `load` raises.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_unquantised(directory)
    is_critic = load is load_critic
    with _reporting_load_errors(directory, "a critic" if is_critic else "a causal language model"), quiet():
        options: dict[str, Any] = {"num_labels": 1} if is_critic else {}
        config = AutoConfig.from_pretrained(directory, local_files_only=True, **options)
        kind: Any = critic_class(config) if is_critic else AutoModelForCausalLM
        with _parameters_on_meta():
            made = getattr(kind, "from_config", None) or kind._from_config  # of an Auto class, and of a model's own
            model = made(config, dtype=dtype)
    if is_critic and not hasattr(model, "score"):
        raise _no_value_head(directory, model)
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
            on_meta = torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
            module._parameters[name] = on_meta

    torch.nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def _no_value_head(directory: Path, model: Any) -> InputError:
    return InputError(
        f"{directory}: {type(model).__name__} has no value head `score`", "this architecture cannot be a critic yet"
    )


def load_model(directory: Path, placement: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM on its device, in evaluation mode: dropout stays off even when it is trained.

    dtype: of its parameters; that of `placement` when None. Raises InputError where it cannot be loaded, and
    PrimecliError where it does not fit on the device or is not supported (`check_head`).
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if placement.device.type == "cpu":
        keep_freed_memory()
    check_unquantised(directory)
    with _reporting_load_errors(directory, "a causal language model"), quiet():
        model, found = _from_pretrained(AutoModelForCausalLM, directory, dtype=dtype or placement.dtype)
    _check_complete(directory, found)
    model = move(model, placement).eval()
    with quiet():
        check_head(model, directory)
    return model


def load_critic(directory: Path, placement: Placement, *, dtype: torch.dtype | None = None) -> Any:
    """A causal LM with a value head, in evaluation mode: a token classifier with one label; see `critic_class`.

    A model without a value head gets one that is all 0, so an untrained critic predicts 0. dtype: of its parameters;
    that of `placement` when None. Raises InputError where it cannot be loaded.
    """
    import torch
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    check_unquantised(directory)
    with _reporting_load_errors(directory, "a critic"), quiet():
        config = AutoConfig.from_pretrained(directory, local_files_only=True, num_labels=1)
        kind = critic_class(config)
        model, found = _from_pretrained(kind, directory, dtype=dtype or placement.dtype, config=config)
    if not hasattr(model, "score"):
        raise _no_value_head(directory, model)
    _check_complete(directory, found, but="score.")
    if "score.weight" in found["missing_keys"]:
        with torch.no_grad():
            for parameter in model.score.parameters():
                parameter.zero_()
    return move(model, placement).eval()


def _from_pretrained(kind: Any, directory: Path, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what transformers says of the loading. kind: one of transformers' Auto classes."""
    options = {**options, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    # it would raise an error that names nothing; `_check_complete` names the weights
    loaded: tuple[Any, Mapping[str, Any]] = kind.from_pretrained(directory, ignore_mismatched_sizes=True, **options)
    return loaded


def _check_complete(directory: Path, found: Mapping[str, Any], *, but: str | None = None) -> None:
    """Raises InputError where weights were missing or of another shape, so that random ones stand in for them.

    found: what transformers says of the loading. but: begins the names that may be missing.
    """
    missing = {name for name in found["missing_keys"] if but is None or not name.startswith(but)}
    mismatched = {name for name, *_ in found["mismatched_keys"]}
    if missing or mismatched:
        raise missing_weights(directory, missing, mismatched, found["unexpected_keys"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from listing missing weights, which `_check_complete` says in a line, and slower kernels."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _reporting_load_errors(directory: Path, what: str) -> Iterator[None]:
    """Turns what the libraries raise while they load a model into an InputError. what: such as "a critic"."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

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


def move(model: Any, placement: Placement) -> Any:
    """The model, moved to its device once there is room. Raises PrimecliError if it does not fit."""
    device = placement.device
    tensors = [*model.parameters(), *model.buffers()]
    wait_for_memory(device, sum(tensor.nbytes for tensor in tensors if tensor.device != device))
    del tensors
    try:
        model = model.to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise PrimecliError(f"the model does not fit on {device}: {first_line(error)}") from error
    if device.type != "cpu":
        give_freed_memory_back()
    return model


def check_head(model: Any, directory: Path) -> None:
    """Checks on a short input that log-probabilities computed from the last hidden states are those of the logits.

    Some architectures scale or cap the logits after the head; how is found out here, once for the model
    (`head.head_of`). Raises PrimecliError for those that do something else or are not causal, and InputError where the
    logits are not finite.
    """
    import torch

    from primecli.models.head import head_of, trial_input

    ids = trial_input(model)  # (2, T)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits  # (2, T, V)
        output = body_of(model)(input_ids=ids, use_cache=False)
    if not bool(logits.isfinite().all()):
        raise InputError(f"{directory}: the model's logits are not finite", "its weights are damaged")
    found = head_of(model, output, where=f"{directory}: ")
    _check_causal(model, output.last_hidden_state, directory)
    with torch.no_grad():
        head, hidden = model.get_output_embeddings(), output.last_hidden_state  # (2, T, D)
        hidden = (hidden if found.before == 1.0 else hidden * found.before).to(head.weight.dtype)
        linear = type(head).forward is torch.nn.Linear.forward
        # in the model's rounding: `token_logprobs` does not round logits on a GPU
        output = head(hidden) if linear else torch.nn.functional.linear(hidden, head.weight, head.bias)
        ours, theirs = (
            torch.log_softmax(each.float(), -1).gather(-1, ids[..., None]).squeeze(-1)
            for each in (found.after.apply_(output), logits)
        )
    # a factor that the model divides by, and that is multiplied with here, may round the last bit differently
    rounding = 0.0 if found.plain and linear else 2 * torch.finfo(logits.dtype).eps * float(logits.abs().max())
    if not torch.allclose(ours, theirs, atol=HEAD_TOLERANCE + rounding):
        raise PrimecliError(
            f"{directory}: {type(model).__name__} does not compute its logits from its last hidden states and its head",
            "this is not supported: log-probabilities computed from its hidden states would be wrong",
        )


def _check_causal(model: Any, hidden: torch.Tensor, directory: Path) -> None:
    """Checks that no state depends on later tokens, and so on the padding to the right of a row.

    hidden: (2, T, D), of two rows that have the first half of their tokens in common. Raises PrimecliError.
    """
    import torch

    one, other = hidden[:, : hidden.shape[1] // 2].float()  # (T / 2, D) each
    change = (one - other).abs().mean(-1) / one.abs().mean(-1)  # (T / 2,)
    half = hidden.dtype.itemsize == 2 or torch.is_autocast_enabled(hidden.device.type)
    if float(change.min()) > (SAME_STATE_IN_HALF if half else SAME_STATE):
        raise PrimecliError(
            f"{directory}: {type(model).__name__} is not causal: what it computes for a token depends on later tokens",
            "this is not supported: a token's probability would depend on what comes after it",
        )
