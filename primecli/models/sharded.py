"""Loading of models that are spread over ranks: each rank reads its own rows of the files, straight to its device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from primecli.errors import InputError
from primecli.models import checkpoints, loading, lora
from primecli.models.body import body_of
from primecli.models.checkpoints import BASE, IN_MODEL, MASTER, TrainerState
from primecli.models.device import Placement, resolve_placement, return_large_blocks
from primecli.models.direct import names_in, stored_buffers
from primecli.models.identity import TRAINER_DIRECTORY, is_checkpoint, read_trainer_record
from primecli.models.lora import LoraOptions
from primecli.models.skeleton import skeleton
from primecli.models.slices import TensorFiles, torch_name
from primecli.parallel.ranks import Ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BY_NAME = "primecli_stored_by_name"
"""Attribute of a model: whether its files store its parameters under their own names and in their own shapes."""


class Weights(Protocol):
    """The numbers of a model, by the names of its parameters and buffers, to be read by rows."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""

    def dtype(self, name: str) -> str:
        """Its dtype in the file, by safetensors' name."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some of its rows."""


def load(
    directory: Path,
    placement: Placement,
    *,
    dtype: torch.dtype | None = None,
    of: Callable[..., Any] = loading.load_model,
    ranks: Ranks,
) -> Any:
    """As `loading.load_model`, for a model that is not trained, spread over the ranks.

    of: `loading.load_model` or `loading.load_critic`, which says what kind of model it is.
    """
    from primecli.parallel import sharding

    if placement.device.type == "cpu":
        return_large_blocks()
    model = skeleton(directory, dtype or placement.dtype, critic=of is loading.load_critic).requires_grad_(False)
    with exported(directory, model, of, fresh_head=True) as weights:
        sharding.shard(model, ranks, placement.device, dtype or placement.dtype)
        fill(model, weights, ranks, directory, partly=True)
    if of is loading.load_model:
        sharding.computing(model, lambda: loading.check_head(model, directory))
    return model


def load_to_train(
    directory: Path,
    placement: Placement,
    state: TrainerState,
    adapters: LoraOptions | None,
    seed: int,
    *,
    of: Callable[..., Any],
    ranks: Ranks,
) -> Any:
    """A model with float32 parameters, spread over the ranks, at the point where its checkpoint stopped.

    What `load` and then `checkpoints.load_parameters` give one process. state: that of the directory. adapters: those
    to train, which start from `seed` where the checkpoint has none. of: as in `load`.
    """
    import torch

    from primecli.parallel import sharding

    assert not state.has_moments or state.lora == adapters, "check_adapters() comes first"
    if placement.device.type == "cpu":
        return_large_blocks()
    model = skeleton(directory, torch.float32, critic=of is loading.load_critic)
    with ExitStack() as stack:
        stored = stack.enter_context(exported(directory, model, of, fresh_head=not state.has_moments))
        setattr(model, BY_NAME, isinstance(stored, _Named))
        weights = stack.enter_context(_trained(directory, state)) or stored
        if adapters is not None:
            lora.inject(model, adapters)
            if placement.dtype == torch.bfloat16:
                _hold_compactly(model, weights)
        sharding.shard(model, ranks, placement.device, placement.dtype)
        if adapters is not None and state.lora is None:
            _copy_rows(lora.initial_values(model, seed), ranks)
        fill(model, weights, ranks, directory, buffers=stored, partly=not state.has_moments)
    if of is loading.load_model:
        with placement.autocast():
            sharding.computing(model, lambda: loading.check_head(model, directory))
    return model


def _hold_compactly(model: Any, weights: Weights) -> None:
    """As `lora.hold_compactly`, for a model without numbers: by the dtype in which they are stored."""
    import torch

    linear = {module.weight for module in body_of(model).modules() if isinstance(module, torch.nn.Linear)}
    for name, parameter in lora.frozen(model).items():
        if parameter in linear and name in weights and weights.dtype(name) == "BF16":
            parameter.data = parameter.data.to(torch.bfloat16)


def fill(
    model: Any,
    weights: Weights,
    ranks: Ranks,
    directory: Path,
    *,
    buffers: Weights | None = None,
    partly: bool = False,
) -> None:
    """Reads this rank's rows of every parameter, and all of the buffers that are stored.

    buffers: where these are, if not in `weights`. directory: of the model, for messages. partly: adapters, and a value
    head, may be missing and keep their values, or become 0.

    Raises InputError for a tensor that is missing or has another shape.
    """
    import torch

    from primecli.parallel import sharding

    with torch.no_grad():
        for name, parameter in lora.parameters(model).items():
            own = sharding.local(parameter)
            if name not in weights and ".lora_" in name:
                continue
            if name not in weights and name.startswith(f"{lora.HEAD}.") and partly:
                own.zero_()
                continue
            if name not in weights or weights.shape(name) != tuple(parameter.shape):
                raise InputError(f"{directory}: does not fit the model at {name}", "the checkpoint is damaged")
            start, stop = sharding.window(parameter, ranks)
            if stop > start:
                own.copy_(weights.rows(name, start, stop))
        source = buffers or weights
        for name, buffer in stored_buffers(model).items():
            if name in source:
                buffer.copy_(source.rows(name, 0, len(buffer) if buffer.ndim else 1))


@contextmanager
def moments(
    path: Path, trained: Mapping[str, torch.nn.Parameter], ranks: Ranks
) -> Iterator[Callable[[str, Tensor], Tensor]]:
    """A function that reads this rank's rows of an optimizer's moment, as `AdamW.load` takes it.

    path: of the moments. trained: the model's parameters, by name. Raises InputError for one that does not fit.
    """
    from primecli.parallel import sharding

    with TensorFiles([path]) as files:

        def read(name: str, share: Tensor) -> Tensor:
            parameter = trained[name.rpartition(".")[0]]
            if name not in files or files.shape(name) != tuple(parameter.shape):
                raise InputError(f"{path}: does not fit the model at {name}", "the checkpoint is damaged")
            start, stop = sharding.window(parameter, ranks)
            return files.rows(name, start, stop) if stop > start else share.new_empty(share.shape)

        yield read


def _copy_rows(values: Iterator[tuple[torch.nn.Parameter, Tensor]], ranks: Ranks) -> None:
    """Gives each parameter this rank's rows of its whole value."""
    import torch

    from primecli.parallel import sharding

    with torch.no_grad():
        for parameter, value in values:
            start, stop = sharding.window(parameter, ranks)
            sharding.local(parameter).copy_(value[start:stop])


class _Named:
    """Files in which each parameter is stored under one of its names: tied ones have several."""

    def __init__(self, files: TensorFiles, names: Mapping[str, str]) -> None:
        self._files = files
        self._names = names

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._names[name])

    def dtype(self, name: str) -> str:
        return self._files.dtype(self._names[name])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._files.rows(self._names[name], start, stop)


class _InMemory:
    """Tensors that are in memory, such as those of a model whose files store them in another form."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        return "BF16" if torch_name(self._tensors[name].dtype) == "bfloat16" else "F32"

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        tensor = self._tensors[name]
        return tensor[start:stop] if tensor.ndim else tensor


class _Merged:
    """Base weights with adapters merged into them, by rows, as `lora.merge_tensors` does for whole tensors."""

    def __init__(self, base: TensorFiles, trained: TensorFiles, options: LoraOptions) -> None:
        self._base = base
        self._trained = trained
        self._scale = options.alpha / options.rank

    def __contains__(self, name: str) -> bool:
        return name in self._base or (name in self._trained and ".lora_" not in name)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self._base if name in self._base else self._trained).shape(name)

    def dtype(self, name: str) -> str:
        return "F32"

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self._base:
            return self._trained.rows(name, start, stop)
        weight = self._base.rows(name, start, stop).float()
        stem = name.removesuffix("weight")
        if f"{stem}lora_A.weight" not in self._trained:
            return weight
        rank = self._trained.shape(f"{stem}lora_A.weight")[0]
        a = self._trained.rows(f"{stem}lora_A.weight", 0, rank)
        return lora.merged_weight(weight, a, self._trained.rows(f"{stem}lora_B.weight", start, stop), self._scale)


class _Both:
    """The frozen weights of one file and the trained ones of another."""

    def __init__(self, base: TensorFiles, trained: TensorFiles) -> None:
        self._files = (trained, base)

    def _file(self, name: str) -> TensorFiles:
        return next(file for file in self._files if name in file)

    def __contains__(self, name: str) -> bool:
        return any(name in file for file in self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file(name).shape(name)

    def dtype(self, name: str) -> str:
        return self._file(name).dtype(name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._file(name).rows(name, start, stop)


@contextmanager
def exported(directory: Path, model: Any, of: Callable[..., Any], *, fresh_head: bool) -> Iterator[Weights]:
    """The weights of a model directory: read by rows where the files name them as the model does.

    Some architectures are stored under other names or in other shapes, such as mixtures of experts. Those are loaded
    whole, in the dtype of their files, by each rank. model: a skeleton. of: as in `load`. fresh_head: a critic's head
    may be missing.
    """
    with TensorFiles(sorted(directory.glob("*.safetensors"))) as files:
        names = names_in(files, model)
        wanted = {*dict(model.named_parameters()), *stored_buffers(model)}
        if fresh_head:
            wanted = (
                {name for name in wanted if not name.startswith(f"{lora.HEAD}.")}
                if of is loading.load_critic
                else wanted
            )
        if wanted <= names.keys():
            yield _Named(files, names)
            return
    dtype = checkpoints.stored_dtype(directory)
    whole = of(directory, resolve_placement("cpu", "float32"), dtype=dtype)
    yield _InMemory({**{name: value.detach() for name, value in whole.named_parameters()}, **stored_buffers(whole)})


@contextmanager
def _trained(directory: Path, state: TrainerState) -> Iterator[Weights | None]:
    """The float32 weights in a checkpoint's `trainer/`; None where there are none besides the exported model's."""
    if not is_checkpoint(directory):
        yield None
        return
    record = read_trainer_record(directory)
    if record.get("master") == IN_MODEL:
        yield None
        return
    trainer = directory / TRAINER_DIRECTORY
    options = lora.stored_options(record)
    with ExitStack() as stack:
        master = stack.enter_context(TensorFiles([trainer / MASTER]))
        if options is None:
            yield master
            return
        base = stack.enter_context(TensorFiles([trainer / BASE]))
        yield _Both(base, master) if state.lora is not None else _Merged(base, master, options)
