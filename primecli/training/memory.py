"""What an update can do to need less memory: none of it changes the result beyond rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError
from primecli.models.device import reporting_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from primecli.models.scoring import Batch
    from primecli.shards.rollouts import Sequences
    from primecli.training.options import TrainingOptions


def runs_preflight(options: TrainingOptions, device: torch.device) -> bool:
    """Whether to try the largest micro-batch first: on a GPU, unless the options say otherwise.

    On a CPU the kernel kills the process that runs out of memory, and nobody is left to report it.
    """
    return device.type != "cpu" if options.preflight is None else options.preflight


def remedies(options: TrainingOptions, device: torch.device, rows: int) -> str:
    """What a user can still do where a micro-batch does not fit, as a hint.

    rows: of the micro-batch; 0 where memory ran out before anything was computed.
    """
    helpful = {
        f"lower --micro-batch-tokens (it is {options.micro_batch_tokens})": rows > 1,
        "pass --gradient-checkpointing": rows > 0 and not options.gradient_checkpointing,
        "pass --offload-optimizer": device.type != "cpu" and not options.offload_optimizer,
        "pass --lora-rank": options.lora_rank is None,
    }
    texts = [text for text, helps in helpful.items() if helps]
    return ", or ".join(texts) or "train on shorter responses, or a smaller model"


def bytes_to_come(trained: Iterable[torch.nn.Parameter], *, offload: bool) -> int:
    """What gradients and, without `offload`, AdamW's two moments will take beside the parameters on their device."""
    return sum(parameter.nbytes for parameter in trained) * (1 if offload else 3)


def largest_micro_batches(plans: Iterable[Sequence[Batch]], sequences: Sequences) -> list[Batch]:
    """Those that need the most memory: of most tokens and, since attention may need their square, by the longest too.

    plans: the micro-batches of each mini-batch.
    """
    every = [batch for plan in plans for batch in plan]
    found = [
        max(every, key=lambda batch: batch.tokens(sequences)),
        max(every, key=lambda batch: batch.tokens(sequences) * batch.longest(sequences)),
    ]
    return found[:1] if found[0] == found[1] else found


def try_largest_micro_batches(
    plans: Sequence[Sequence[Batch]],
    sequences: Sequences,
    forward: Callable[[Batch], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    remedies: Callable[[int], str],
) -> None:
    """The forward and backward pass of the largest micro-batches, leaving nothing behind.

    plans, sequences: as in `largest_micro_batches`. `forward` gives a scalar. remedies: what is left to do where so
    many rows do not fit. Raises PrimecliError when memory runs out.
    """
    import torch

    parameters = list(parameters)
    accumulated = any(len(plan) > 1 for plan in plans)  # then gradients are there already when a micro-batch starts
    for batch in largest_micro_batches(plans, sequences):
        number = f"{len(batch.rows)} row{'s' if len(batch.rows) > 1 else ''}"
        tokens, longest = batch.tokens(sequences), batch.longest(sequences)
        what = f"the largest micro-batch ({number}, {tokens} tokens, the longest row {longest})"
        with reporting_memory(remedies(len(batch.rows)), what):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter) if accumulated else None
            forward(batch).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None


def accumulate_embedding_gradient(model: Any) -> None:
    """Has the gradient of the looked up words added, row by row, to the one that the embedding has already.

    Autograd would make a second one of the embedding's size, zero but for the rows of the micro-batch. Models that look
    words up in another way than torch.nn.Embedding, or do not train their embedding, are left as they are.
    """
    import torch

    embedding = model.get_input_embeddings()
    if type(embedding) is torch.nn.Embedding and embedding.weight.requires_grad:
        embedding.register_forward_hook(_without_autograd, with_kwargs=True)


def _without_autograd(
    embedding: torch.nn.Embedding, given: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
) -> Tensor:
    """The output of a lookup as a leaf, which gives its gradient to the rows of the embedding's."""
    import torch

    if not output.requires_grad:
        return output
    (ids,) = given or named.values()

    def pass_on(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is None:
            return
        if embedding.padding_idx is not None:
            gradient = gradient.masked_fill((ids == embedding.padding_idx)[..., None], 0)
        if embedding.weight.grad is None:
            embedding.weight.grad = torch.zeros_like(embedding.weight)
        # index_add_ would add in any order on a GPU
        embedding.weight.grad.index_put_((ids,), gradient.to(embedding.weight.dtype), accumulate=True)

    leaf = output.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(pass_on)  # type: ignore[no-untyped-call]
    return leaf


def recompute_activations(model: Any) -> None:
    """Keeps of each layer its input alone; the backward pass makes the rest again.

    Raises PrimecliError for a model whose layers are not known.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PrimecliError(
            f"{type(model).__name__} has no layers that transformers can checkpoint",
            "leave --gradient-checkpointing out",
        )
    # transformers' own switch works in training mode alone, and that would switch dropout on
    for layer in layers:
        layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    from torch.utils.checkpoint import checkpoint

    def recomputing(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        # without dropout nothing draws random numbers, so that there is no state of them to keep
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named)

    return recomputing
