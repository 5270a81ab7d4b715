"""LoRA (arXiv 2106.09685) by peft: only two small matrices beside each linear layer are trained.

A weight W acts as W + (alpha / rank) * B A, with A (rank, inputs) and B (outputs, rank), both float32; B starts at 0.
A checkpoint exports that sum, and keeps A, B and W themselves in its `trainer/`, so that training continues from the
float32 numbers and nothing is merged twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError, UsageError
from primecli.files import Json
from primecli.models.body import body_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER = "default"  # peft's name for the only adapter of a model
HEAD = "score"  # the value head of a critic
DEFAULT_ALPHA = 32.0


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """The adapters to train.

    rank: size of the low-rank matrices, such as 16.
    alpha: scale of their product, which counts alpha / rank times; such as 32.
    targets: last parts of the names of the linear layers, such as q_proj; all linear layers when empty.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Json]:
        """The options as a recipe and a checkpoint's record store them, since they change the result."""
        return {"lora_rank": self.rank, "lora_alpha": self.alpha, "lora_targets": list(self.targets)}

    def in_words(self) -> str:
        """The options as they are written on the command line."""
        targets = f" --lora-targets {','.join(self.targets)}" if self.targets else ""
        return f"--lora-rank {self.rank} --lora-alpha {self.alpha:g}{targets}"


def lora_options(rank: int | None, alpha: float | None, targets: str | None) -> LoraOptions | None:
    """The command line's options; None without --lora-rank.

    Raises UsageError for options that do not fit together, and PrimecliError where peft is not installed.
    """
    if rank is None:
        for option, value in (("--lora-alpha", alpha), ("--lora-targets", targets)):
            if value is not None:
                raise UsageError(f"{option} needs --lora-rank")
        return None
    try:
        import peft  # noqa: F401
    except ImportError:
        raise PrimecliError("--lora-rank needs the package peft", "pip install peft") from None
    names = tuple(sorted({name.strip() for name in (targets or "").split(",")} - {""}))
    if targets is not None and not names:
        raise UsageError("--lora-targets names no layer", "name some, as in --lora-targets q_proj,v_proj")
    return LoraOptions(rank, DEFAULT_ALPHA if alpha is None else alpha, names)


def stored_options(record: Mapping[str, Any]) -> LoraOptions | None:
    """The adapters that a checkpoint was trained with, from its record; None for all parameters."""
    adapters = record.get("lora")
    if adapters is None:
        return None
    return LoraOptions(int(adapters["lora_rank"]), float(adapters["lora_alpha"]), tuple(adapters["lora_targets"]))


def attach(model: Any, options: LoraOptions, seed: int) -> None:
    """Adds adapters to the model, which do not change its output yet, and freezes all but them and a critic's head.

    The initial A depends on the seed only, not on the device. Raises UsageError where the model has no such layers.
    """
    import torch

    inject(model, options)
    with torch.no_grad():
        for parameter, value in initial_values(model, seed):
            parameter.copy_(value)


def inject(model: Any, options: LoraOptions) -> None:
    """As `attach`, with adapters whose values are those of peft, or, for a model on the meta device, none."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    names = _target_names(model, options.targets)
    targets = [f"model.{name}" for name in names]
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    # Given a transformers model, peft maps target names as for old checkpoints: gate_proj would mean all experts of
    # some mixtures. It does not recognise the model inside another module.
    holder = torch.nn.Module()
    holder.model = model
    inject_adapter_in_model(config, holder, ADAPTER)
    _share_adapters(model)
    model.eval()
    if hasattr(model, HEAD):
        model.get_submodule(HEAD).requires_grad_(True)


def _share_adapters(model: Any) -> None:
    """Gives layers that share their weight one adapter, so that their merged weights are the same again."""
    first: dict[int, Any] = {}
    for layer in _layers(model).values():
        owner = first.setdefault(id(layer.get_base_layer().weight), layer)
        layer.lora_A, layer.lora_B = owner.lora_A, owner.lora_B


def initial_values(model: Any, seed: int) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """Each adapter's matrices, A and then B, with the values from which training starts."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    drawn: set[torch.nn.Parameter] = set()
    for layer in _layers(model).values():
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if a in drawn:
            continue
        drawn.add(a)
        bound = a.shape[1] ** -0.5  # Kaiming's bound for a = sqrt(5), as in the paper's code
        yield a, torch.empty(a.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        yield b, torch.zeros(b.shape, dtype=torch.float32)


def _target_names(model: Any, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers to adapt; all of them where `targets` is empty.

    The head is left out, since it is as large as the embedding. So are the layers of Mamba's mixers other than in_proj:
    fused kernels take their weights directly, without calling the layer. And so are routers that are linear layers by
    type, but return which experts they chose. Experts that a model stores as one tensor are no linear layers.
    """
    import torch

    inside = set(body_of(model).modules())
    for module in model.modules():
        if "Mamba" in type(module).__name__:
            inside.difference_update(child for name, child in module.named_children() if name != "in_proj")
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module in inside and _returns_its_product(module)
    ]
    if not linear:
        raise UsageError(f"{type(model).__name__} has no linear layers that --lora-rank can adapt")
    last_parts = {name.rpartition(".")[2] for name in linear}
    unknown = sorted(set(targets) - last_parts)
    if unknown:
        raise UsageError(
            f"--lora-targets {unknown[0]}: the model has no such linear layer",
            f"it has {', '.join(sorted(last_parts))}",
        )
    return [name for name in linear if not targets or name.rpartition(".")[2] in targets]


def _returns_its_product(layer: torch.nn.Linear) -> bool:
    """Whether a linear layer returns one tensor of its outputs, to which an adapter's can be added.

    A layer of a class of its own is called to find out, without numbers.
    """
    import torch

    if type(layer).forward is torch.nn.Linear.forward:
        return True
    without_numbers = {name: tensor.to("meta") for name, tensor in layer.state_dict().items()}
    given = torch.empty(1, layer.in_features, device="meta", dtype=layer.weight.dtype)
    found = torch.func.functional_call(layer, without_numbers, (given,))
    return isinstance(found, torch.Tensor) and found.shape == (1, layer.out_features)


def _layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def has_adapters(model: Any) -> bool:
    """Whether the model has adapters that are not merged yet."""
    return any(name.endswith(f".lora_A.{ADAPTER}.weight") for name, _ in model.named_parameters())


def parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """All parameters by their names in a checkpoint: those of the model without adapters, and lora_A and lora_B."""
    return {
        name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
    }


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by their names in a checkpoint."""
    return {name: parameter for name, parameter in parameters(model).items() if parameter.requires_grad}


def frozen(model: Any) -> dict[str, torch.nn.Parameter]:
    """The frozen parameters, by their names in a checkpoint."""
    return {name: parameter for name, parameter in parameters(model).items() if not parameter.requires_grad}


def compact(tensor: Tensor) -> Tensor:
    """The same numbers in bfloat16 if that loses nothing, as for a model stored in bfloat16; else unchanged."""
    import torch

    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def hold_compactly(model: Any) -> None:
    """Stores the frozen weights of linear layers in bfloat16 where that loses nothing, which halves their memory.

    Use it for a model whose products are computed in bfloat16: those round the weights to bfloat16 anyway, so the
    results are the same to the bit. Embeddings and norms stay float32, since the states between the layers take their
    dtype.
    """
    import torch

    inside = set(body_of(model).modules())
    for module in inside:
        if isinstance(module, torch.nn.Linear):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = compact(parameter.data)


def scales(model: Any) -> dict[str, float]:
    """What the product of each adapter's matrices is multiplied by, by the name of its layer in a checkpoint."""
    return {name: layer.scaling[ADAPTER] for name, layer in _layers(model).items()}


def merge(model: Any) -> None:
    """Replaces W by W + (alpha / rank) * B A and removes the adapters, so the model has its original layers again."""
    import torch

    layers = _layers(model)
    uses = Counter(id(layer.get_base_layer().weight) for layer in layers.values())
    shared: dict[int, torch.nn.Parameter] = {}  # what several layers' weight has become, by its id
    for name, layer in layers.items():
        linear = layer.get_base_layer()
        before = id(linear.weight)
        if before not in shared:
            a, b = layer.lora_A[ADAPTER].weight.data, layer.lora_B[ADAPTER].weight.data
            merged = torch.nn.Parameter(merged_weight(linear.weight.data, a, b, layer.scaling[ADAPTER]))
            shared.update({before: merged} if uses[before] > 1 else {})
        else:
            merged = shared[before]
        linear.weight = merged
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight + scale * b a, in the dtype of `a`. weight: (outputs, inputs); a: (rank, inputs); b: (outputs, rank)."""
    return weight.to(a.dtype) + scale * (b @ a)


def merge_tensors(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], options: LoraOptions) -> dict[str, Tensor]:
    """The float32 parameters of a checkpoint's model, from its base and its trained tensors, with adapters merged."""
    merged = {name: tensor.float() for name, tensor in base.items()}
    for name, tensor in trained.items():
        if ".lora_" not in name:
            merged[name] = tensor
        elif name.endswith(".lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            b = trained[f"{stem}lora_B.weight"]
            merged[f"{stem}weight"] = merged_weight(merged[f"{stem}weight"], tensor, b, options.alpha / options.rank)
    return merged
