"""What an update can do to use less memory; none of it changes the result beyond rounding."""

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
    """Whether to try the largest micro-batch first: by default, on a GPU only.

    On a CPU the kernel kills a process that runs out of memory, so there would be no error to report.
    """
    return device.type != "cpu" if options.preflight is None else options.preflight


def remedies(options: TrainingOptions, device: torch.device, rows: int) -> str:
    """A hint that names the options which would still save memory when a micro-batch does not fit.

    rows: rows of the micro-batch; 0 if memory ran out before anything was computed.
    """
    helps_by_text = {
        f"lower --micro-batch-tokens (it is {options.micro_batch_tokens})": rows > 1,
        "pass --gradient-checkpointing": rows > 0 and not options.gradient_checkpointing,
        "pass --offload-optimizer": device.type != "cpu" and not options.offload_optimizer,
        "pass --lora-rank": options.lora_rank is None,
    }
    texts = [text for text, helps in helps_by_text.items() if helps]
    return ", or ".join(texts) or "train on shorter responses, or train a smaller model"


def bytes_to_come(trained: Iterable[torch.nn.Parameter], *, offload: bool) -> int:
    """Bytes that the gradients and, without `offload`, AdamW's two moments will take on the parameters' device."""
    return sum(parameter.nbytes for parameter in trained) * (1 if offload else 3)


def largest_micro_batches(plans: Iterable[Sequence[Batch]], sequences: Sequences) -> list[Batch]:
    """The micro-batches that may need the most memory: one or two.

    The first has the most tokens, the second the most tokens times those of its longest row, because attention may need
    memory for their product.

    plans: the micro-batches of each mini-batch.
    """
    batches = [batch for plan in plans for batch in plan]
    largest = [
        max(batches, key=lambda batch: batch.tokens(sequences)),
        max(batches, key=lambda batch: batch.tokens(sequences) * batch.longest(sequences)),
    ]
    return largest[:1] if largest[0] == largest[1] else largest


def try_largest_micro_batches(
    plans: Sequence[Sequence[Batch]],
    sequences: Sequences,
    forward: Callable[[Batch], Tensor],
    parameters: Iterable[torch.nn.Parameter],
    remedies: Callable[[int], str],
) -> None:
    """Runs the forward and backward pass of the largest micro-batches, and frees their memory again.

    plans, sequences: as in `largest_micro_batches`.
    forward: computes a micro-batch, and returns a scalar to be differentiated.
    parameters: those that get a gradient.
    remedies: the hint if a micro-batch of this many rows does not fit.

    Raises PrimecliError if memory runs out.
    """
    import torch

    parameters = list(parameters)
    accumulated = any(len(plan) > 1 for plan in plans)  # then there are gradients already when a micro-batch starts
    for batch in largest_micro_batches(plans, sequences):
        row_count = f"{len(batch.rows)} row{'s' if len(batch.rows) > 1 else ''}"
        tokens, longest = batch.tokens(sequences), batch.longest(sequences)
        what = f"the largest micro-batch ({row_count}, {tokens} tokens, the longest row {longest})"
        with reporting_memory(remedies(len(batch.rows)), what):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter) if accumulated else None
            forward(batch).backward()  # type: ignore[no-untyped-call]
        for parameter in parameters:
            parameter.grad = None


def accumulate_embedding_gradient(model: Any) -> None:
    """Makes the backward pass add the gradient of the embedded tokens to the embedding's own gradient, row by row.

    Autograd would first make a second gradient of the embedding's size, which is zero except in the rows of the tokens
    of the micro-batch. Does nothing to a model that embeds tokens by other means than torch.nn.Embedding, or that does
    not train its embedding.
    """
    import torch

    embedding = model.get_input_embeddings()
    if type(embedding) is torch.nn.Embedding and embedding.weight.requires_grad:
        embedding.register_forward_hook(_without_autograd, with_kwargs=True)


def _without_autograd(
    embedding: torch.nn.Embedding, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor
) -> Tensor:
    """The output of the embedding as a leaf, whose gradient is added to the rows of the embedding's gradient."""
    import torch

    if not output.requires_grad:
        return output
    (ids,) = arguments or keywords.values()  # any shape; `output` and its gradient have one more dimension

    def add_gradient(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        if gradient is None:
            return
        if embedding.padding_idx is not None:
            gradient = gradient.masked_fill((ids == embedding.padding_idx)[..., None], 0)
        if embedding.weight.grad is None:
            embedding.weight.grad = torch.zeros_like(embedding.weight)
        # not index_add_: on a GPU it adds in an order that varies, so two runs would differ
        embedding.weight.grad.index_put_((ids,), gradient.to(embedding.weight.dtype), accumulate=True)

    leaf = output.detach().requires_grad_()
    leaf.register_post_accumulate_grad_hook(add_gradient)  # type: ignore[no-untyped-call]
    return leaf


def recompute_activations(model: Any) -> None:
    """Keeps only the input of each layer; the backward pass computes the other activations again.

    Raises PrimecliError for a model whose layers transformers cannot checkpoint.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PrimecliError(
            f"{type(model).__name__} has no layers that transformers can checkpoint",
            "train without --gradient-checkpointing",
        )
    # transformers' own switch works only in training mode, which would also turn dropout on
    for layer in layers:
        layer.forward = _recomputing(layer.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    import torch
    from torch.utils.checkpoint import checkpoint

    def recomputing(*arguments: Any, **keywords: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        # without dropout nothing draws random numbers, so there is no generator state to preserve
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **keywords)

    return recomputing
