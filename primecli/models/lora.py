"""LoRA (arXiv 2106.09685) by peft: two small matrices beside each linear layer are trained, and nothing else.

A weight W acts as W + (alpha / rank) * B A, with A of (rank, inputs) and B of (outputs, rank), both float32; B starts
at 0. What a checkpoint exports is that sum; A, B and W themselves are kept in its `trainer/`, so that training goes on
from the float32 numbers and nothing is merged twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError, UsageError
from primecli.files import Json

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADAPTER = "default"  # peft's name for the only adapter of a model
HEAD = "score"  # a critic's
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
        """The options as a recipe and a checkpoint store them: they change the result."""
        return {"lora_rank": self.rank, "lora_alpha": self.alpha, "lora_targets": list(self.targets)}

    def in_words(self) -> str:
        """The options as they are given."""
        targets = f" --lora-targets {','.join(self.targets)}" if self.targets else ""
        return f"--lora-rank {self.rank} --lora-alpha {self.alpha:g}{targets}"


def lora_options(rank: int | None, alpha: float | None, targets: str | None) -> LoraOptions | None:
    """The command line's options; None where LoRA is not asked for. Raises where peft is not installed."""
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
        raise UsageError("--lora-targets names no layer", "as in --lora-targets q_proj,v_proj")
    return LoraOptions(rank, DEFAULT_ALPHA if alpha is None else alpha, names)


def stored_options(record: Mapping[str, Any]) -> LoraOptions | None:
    """What a checkpoint's record says that it was trained with."""
    found = record.get("lora")
    if found is None:
        return None
    return LoraOptions(int(found["lora_rank"]), float(found["lora_alpha"]), tuple(found["lora_targets"]))


def attach(model: Any, options: LoraOptions, seed: int) -> None:
    """Puts adapters that change nothing yet into the model, and lets only them and a critic's head be trained.

    A is drawn by the seed, the same on every device. Raises UsageError where the model has no such layers.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    names = _target_names(model, options.targets)
    targets = [f"model.{name}" for name in names]
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    # shown a transformers model, peft takes names of old checkpoints for it: gate_proj is all experts of some mixtures
    holder = torch.nn.Module()
    holder.model = model
    inject_adapter_in_model(config, holder, ADAPTER)
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(model).values():
        weight = layer.lora_A[ADAPTER].weight
        bound = weight.shape[1] ** -0.5  # Kaiming's for a uniform draw with a = sqrt(5), as the paper's code has it
        drawn = torch.empty(weight.shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            weight.copy_(drawn)
    if hasattr(model, HEAD):
        model.get_submodule(HEAD).requires_grad_(True)


def _target_names(model: Any, targets: Sequence[str]) -> list[str]:
    """Full names of the linear layers that are meant. The head is not one of them: it is as large as the embedding.

    Nor are those of Mamba's mixers whose weights are taken past the layer, by fused kernels: all but in_proj.
    """
    import torch

    inside = set(model.base_model.modules())
    for module in model.modules():
        if "Mamba" in type(module).__name__:
            inside.difference_update(child for name, child in module.named_children() if name != "in_proj")
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module in inside
    ]
    if not linear:
        raise UsageError(f"{type(model).__name__} has no linear layers that --lora-rank can train beside")
    last_parts = {name.rpartition(".")[2] for name in linear}
    unknown = sorted(set(targets) - last_parts)
    if unknown:
        raise UsageError(
            f"--lora-targets {unknown[0]}: the model has no such linear layer",
            f"it has {', '.join(sorted(last_parts))}",
        )
    return [name for name in linear if not targets or name.rpartition(".")[2] in targets]


def _layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def has_adapters(model: Any) -> bool:
    """Whether there are adapters in the model, not merged yet."""
    return any(name.endswith(f".lora_A.{ADAPTER}.weight") for name, _ in model.named_parameters())


def parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """All parameters by the names under which a checkpoint has them: as without adapters, and lora_A, lora_B."""
    return {
        name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
    }


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """Those of the parameters that are trained."""
    return {name: parameter for name, parameter in parameters(model).items() if parameter.requires_grad}


def frozen(model: Any) -> dict[str, torch.nn.Parameter]:
    """Those of the parameters that stand still."""
    return {name: parameter for name, parameter in parameters(model).items() if not parameter.requires_grad}


def compact(tensor: Tensor) -> Tensor:
    """The same numbers in bfloat16 where it holds them all, as it does those of a model that was stored in it."""
    import torch

    half = tensor.to(torch.bfloat16)
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def hold_compactly(model: Any) -> None:
    """Holds the frozen weights of linear layers in bfloat16 where that loses nothing: half the memory.

    For a model whose products are taken in bfloat16; those round the weights so anyway, and the results are the same to
    the bit. Embeddings and norms stay float32, which the states between the layers follow.
    """
    import torch

    inside = set(model.base_model.modules())
    for module in inside:
        if isinstance(module, torch.nn.Linear):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = compact(parameter.data)


def merge(model: Any) -> None:
    """Puts W + (alpha / rank) * B A in W's place and takes the adapters out, so that its layers are those of before."""
    import torch

    for name, layer in _layers(model).items():
        linear = layer.get_base_layer()
        a, b = layer.lora_A[ADAPTER].weight.data, layer.lora_B[ADAPTER].weight.data
        linear.weight = torch.nn.Parameter(merged_weight(linear.weight.data, a, b, layer.scaling[ADAPTER]))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, linear)


def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """weight: (outputs, inputs), a: (rank, inputs), b: (outputs, rank). Returns weight + scale * b a, in a's dtype."""
    return weight.to(a.dtype) + scale * (b @ a)


def merge_tensors(base: Mapping[str, Tensor], trained: Mapping[str, Tensor], options: LoraOptions) -> dict[str, Tensor]:
    """A checkpoint's parameters as one float32 model: its base and its trained tensors, by name, merged."""
    found = {name: tensor.float() for name, tensor in base.items()}
    for name, tensor in trained.items():
        if ".lora_" not in name:
            found[name] = tensor
        elif name.endswith(".lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            b = trained[f"{stem}lora_B.weight"]
            found[f"{stem}weight"] = merged_weight(found[f"{stem}weight"], tensor, b, options.alpha / options.rank)
    return found
