"""Loading of causal language models and critics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError, PrimecliError
from primecli.models import checkpoints, direct, mapped
from primecli.models.body import body_of
from primecli.models.device import (
    Placement,
    fitting,
    give_freed_memory_back,
    keep_freed_memory,
    wait_for_memory,
)
from primecli.models.fitness import check_unquantised, missing_weights
from primecli.models.skeleton import check_value_head, quiet, reporting_load_errors
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


def load_model(
    directory: Path, placement: Placement, *, dtype: torch.dtype | None = None, to_train: bool = False
) -> Any:
    """A causal LM on its device, in evaluation mode: dropout stays off even when it is trained.

    dtype: of its parameters; that of `placement` when None. to_train: in float32, and of a checkpoint that was trained
    in all its parameters, with these instead of the exported ones. Raises InputError where it cannot be loaded, and
    PrimecliError where it does not fit on the device or is not supported (`check_head`).
    """

    if placement.device.type == "cpu":
        keep_freed_memory()
    model = _loaded(directory, placement, dtype or placement.dtype, to_train=to_train, critic=False)
    with quiet():
        check_head(model, directory)
    return model


def load_critic(
    directory: Path, placement: Placement, *, dtype: torch.dtype | None = None, to_train: bool = False
) -> Any:
    """A causal LM with a value head, in evaluation mode: a token classifier with one label; see `critic_class`.

    A model without a value head gets one that is all 0, so an untrained critic predicts 0. The arguments are those of
    `load_model`. Raises InputError where it cannot be loaded.
    """
    return _loaded(directory, placement, dtype or placement.dtype, to_train=to_train, critic=True)


def _loaded(directory: Path, placement: Placement, dtype: torch.dtype, *, to_train: bool, critic: bool) -> Any:
    """A model on its device: from its files where these store it as it is, else by transformers."""
    import torch

    check_unquantised(directory)
    dtype = torch.float32 if to_train else dtype
    model = direct.from_masters(directory, critic=critic) if to_train else None
    has_masters = model is not None
    if model is None and dtype == torch.float32:
        model = direct.from_exported(directory, placement.device, critic=critic)
    if model is None:
        model = _by_transformers(directory, dtype, critic=critic)
    model = move(model, placement).eval()
    if to_train:
        if not has_masters:
            checkpoints.load_masters(model, directory)
        mapped.copy_pages(model.parameters())  # the first step writes to all of them
    return model


def _by_transformers(directory: Path, dtype: torch.dtype, *, critic: bool) -> Any:
    """The model as transformers loads it, on the CPU. Raises InputError where it lacks weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with reporting_load_errors(directory, critic=critic), quiet():
        if not critic:
            model, found = _from_pretrained(AutoModelForCausalLM, directory, dtype=dtype)
        else:
            config = AutoConfig.from_pretrained(directory, local_files_only=True, num_labels=1)
            model, found = _from_pretrained(critic_class(config), directory, dtype=dtype, config=config)
    if critic:
        check_value_head(model, directory)
    _check_complete(directory, found, but="score." if critic else None)
    if critic and "score.weight" in found["missing_keys"]:
        with torch.no_grad():
            for parameter in model.score.parameters():
                parameter.zero_()
    return model


def _from_pretrained(kind: Any, directory: Path, **options: Any) -> tuple[Any, Mapping[str, Any]]:
    """The model, and what transformers says of the loading. kind: one of transformers' Auto classes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
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


def move(model: Any, placement: Placement) -> Any:
    """The model, moved to its device once there is room. Raises PrimecliError if it does not fit."""
    device = placement.device
    tensors = [*model.parameters(), *model.buffers()]
    wait_for_memory(device, sum(tensor.nbytes for tensor in tensors if tensor.device != device))
    del tensors
    with fitting(device):
        model = model.to(device)
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
    with torch.no_grad(), _Watch(body_of(model)) as body:
        logits = model(input_ids=ids, use_cache=False).logits  # (2, T, V)
        output = body.alone(ids)
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


OFF = ("use_cache", "output_attentions", "output_hidden_states")
"""What a model may tell its body to leave out without changing its states."""


class _Watch:
    """Sees what a model's body returns while the model calls it, which saves calling it again. A context manager."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []

    def __enter__(self) -> _Watch:
        self._hook = self._body.register_forward_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _note(self, body: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        self._calls.append((arguments, options, output))

    def alone(self, ids: torch.Tensor) -> Any:
        """What the body returns for these ids and nothing else.

        It is what it has returned to the model, if the model has given it just that; else it is called again.
        """
        self._hook.remove()
        if len(self._calls) == 1:
            arguments, options, output = self._calls[0]
            given = [value for key, value in options.items() if key != "return_dict" and not (key in OFF and not value)]
            more = [value for value in (*arguments, *given) if value is not None]
            if len(more) == 1 and more[0] is ids and hasattr(output, "last_hidden_state"):
                return output
        return self._body(input_ids=ids, use_cache=False)


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
