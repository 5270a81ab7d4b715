"""Right: what a GPU computes is what the CPU computes, and no way to save memory or time changes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from primecli.core.logprobs import token_logprobs
from primecli.models import lora, scoring
from primecli.models.compiled import compile_layers
from primecli.models.device import Placement
from primecli.models.lora import LoraOptions
from primecli.shards.rollouts import Sequences
from primecli.training import memory
from primecli.training.optimizer import AdamW
from tests.gpu.context import Context
from tests.gpu.models import make_config, make_model
from tests.gpu.timing import GIB, median_seconds, reset_memory, seconds_of

CPU = torch.device("cpu")
SAME_FORMULA = 1e-4  # float32 in another order: nats, or a share of the gradient's norm
BFLOAT16_GRADIENT = 5e-2  # as above, where products are rounded to 8 bits


def run(context: Context) -> None:
    """All of it, the forward pass first."""
    context.report.note(f"float32 products: {torch.get_float32_matmul_precision()}")
    compare_logprobs(context)
    compare_head(context)
    compare_gradients(context)
    compare_adapters(context)
    compare_optimizers(context)


def make_sequences(vocabulary: int, *, tiny: bool) -> Sequences:
    """Four prompts with three responses each, of ragged lengths."""
    generator = np.random.default_rng(0)
    longest = 12 if tiny else 150

    def draw(shortest: int) -> np.ndarray:
        return generator.integers(0, vocabulary, int(generator.integers(shortest, longest))).astype(np.int32)

    prompts = [draw(5) for _ in range(4)]
    return Sequences([prompt for prompt in prompts for _ in range(3)], [draw(2) for _ in range(12)])


def compare_logprobs(context: Context) -> None:
    """The same float32 model on both devices, then in bfloat16, as parameters and by autocast."""
    report, device = context.report, context.device
    config = make_config("0.5B", tiny=context.tiny)
    model = make_model(config, device, torch.float32)
    sequences = make_sequences(config.vocab_size, tiny=context.tiny)

    def score(model: Any, placement: Placement) -> np.ndarray:
        return scoring.score(model, placement, sequences, micro_batch_tokens=1024)

    on_device = score(model, Placement(device, torch.float32, "off"))
    again = score(model, Placement(device, torch.float32, "off"))
    report.figure(
        "float32 logprobs, twice, largest difference", float(np.abs(on_device - again).max()), "nats", "itself"
    )
    packed = score(model, Placement(device, torch.float32, "on"))
    report.at_most("float32 logprobs, packed - padded, largest", float(np.abs(packed - on_device).max()), SAME_FORMULA)
    autocast = score(model, Placement(device, torch.bfloat16, "off"))
    in_bfloat16 = score(copy.deepcopy(model).to(torch.bfloat16), Placement(device, torch.bfloat16, "off"))
    on_cpu = score(copy.deepcopy(model).to(CPU), Placement(CPU, torch.float32, "off"))
    report.at_most("float32 logprobs, device - CPU, largest", float(np.abs(on_device - on_cpu).max()), SAME_FORMULA)
    for name, values in (("autocast", autocast), ("bfloat16 weights", in_bfloat16)):
        gap = np.abs(values - on_cpu)
        report.figure(f"gap of {name}, mean", float(gap.mean()), "nats", "float32 on the CPU")
        report.figure(f"gap of {name}, largest", float(gap.max()), "nats", "float32 on the CPU")
    gap = np.abs(autocast - in_bfloat16)
    report.figure("gap of autocast, mean, to bfloat16 weights", float(gap.mean()), "nats", "score-prm's precision")


def compare_head(context: Context) -> None:
    """Log-probabilities by tiles against all logits, from the same bfloat16 numbers; logits as large as a model's."""
    report, device = context.report, context.device
    config = make_config("0.5B", tiny=context.tiny)
    tokens, width, vocabulary = 16 if context.tiny else 256, config.hidden_size, config.vocab_size
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, device=device)
    weight = torch.randn(vocabulary, width, generator=generator, device=device) * (5 / width**0.5)
    targets = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    mix = torch.linspace(-1, 1, tokens, device=device)

    def whole(hidden: Tensor, weight: Tensor) -> Tensor:
        return (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)

    def tiled(hidden: Tensor, weight: Tensor) -> Tensor:
        elements = tokens * 100 if context.tiny else 1 << 22  # several tiles, some of them kept
        found = token_logprobs(hidden, weight, targets, chunk_elements=elements, kept_elements=2 * elements)
        return found.logprobs

    def gradients(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        first, second = torch.autograd.grad((function(*leaves) * mix).sum(), leaves)
        return first, second

    difference = (tiled(hidden, weight) - whole(hidden, weight)).abs().max()
    report.at_most("logprobs in float32, tiles - all logits, largest", float(difference), SAME_FORMULA)
    for name, ours, theirs in zip(("hidden states", "head"), gradients(tiled), gradients(whole), strict=True):
        report.at_most(f"gradient of the {name}, tiles - all logits", relative(ours, theirs), SAME_FORMULA)
    half, half_weight = hidden.bfloat16(), weight.bfloat16()
    exact = whole(half.double(), half_weight.double())
    error = float((tiled(half, half_weight) - exact).abs().max())
    report.figure("logprobs from bfloat16 states, error, largest", error, "nats", "the same numbers in float64")
    if context.gpu:  # on a CPU every logit is rounded to 8 bits
        report.at_most("logits of bfloat16 products are not rounded", error, 1e-3)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference, over the norm of the second."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def gradient(model: Any, placement: Placement, sequences: Sequences, budget: int = 10**6) -> Tensor:
    """All gradients of one loss over the sequences, one after another; float32, on the CPU."""
    for parameter in model.parameters():
        parameter.grad = None
    tokens = sum(len(response) for response in sequences.response_ids)
    signs = np.random.default_rng(1).normal(size=len(sequences.response_ids))  # advantages, so to speak
    for batch in scoring.plan(model, placement, sequences, range(len(sequences.response_ids)), budget):
        found = scoring.sequence_logprobs(model, placement, sequences, batch, with_entropy=True)
        lengths = torch.tensor([len(sequences.response_ids[row]) for row in batch.rows])
        weights = torch.tensor(signs[batch.rows], dtype=torch.float32).repeat_interleave(lengths).to(placement.device)
        ((found.logprobs * weights).sum() / tokens + 0.01 * found.entropy.sum() / tokens).backward()  # type: ignore[no-untyped-call]
    grads = [parameter.grad.flatten().float().cpu() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(grads)


def compare_gradients(context: Context) -> None:
    """One step's gradient: packed against padded, in small micro-batches, with activations recomputed."""
    report, device = context.report, context.device
    reset_memory(device)
    config = make_config("0.5B", tiny=context.tiny, num_hidden_layers=2 if context.tiny else 4)
    model = make_model(config, device, torch.float32)
    memory.accumulate_embedding_gradient(model)
    sequences = make_sequences(config.vocab_size, tiny=context.tiny)
    found: dict[str, Tensor] = {}
    for dtype, bound in ((torch.float32, SAME_FORMULA), (torch.bfloat16, BFLOAT16_GRADIENT)):
        padded = Placement(device, dtype, "off")
        name = str(dtype).removeprefix("torch.")
        found[name] = plain = gradient(model, padded, sequences)
        again = gradient(model, padded, sequences)
        report.figure(f"gradient in {name}, twice, difference", relative(again, plain), "of its norm", "itself")
        packed = gradient(model, replace(padded, packing="on"), sequences)
        report.at_most(f"gradient in {name}, packed - padded", relative(packed, plain), bound)
        small = gradient(model, padded, sequences, budget=40 if context.tiny else 512)
        report.at_most(f"gradient in {name}, micro-batches - one batch", relative(small, plain), bound)
    difference = relative(found["bfloat16"], found["float32"])
    report.figure("gradient in bfloat16, difference", difference, "of its norm", "float32 on the device")
    cpu = gradient(copy.deepcopy(model).to(CPU), Placement(CPU, torch.float32, "off"), sequences)
    report.at_most("gradient in float32, device - CPU", relative(found["float32"], cpu), SAME_FORMULA)
    compiled = copy.deepcopy(model)
    compile_layers(compiled, Placement(device, torch.float32, "off", compiled=True))
    memory.recompute_activations(model)
    for name, bound in (("float32", SAME_FORMULA), ("bfloat16", BFLOAT16_GRADIENT)):
        recomputed = gradient(model, Placement(device, getattr(torch, name), "off"), sequences)
        report.at_most(f"gradient in {name}, checkpointed - plain", relative(recomputed, found[name]), bound)
        fused = gradient(compiled, Placement(device, getattr(torch, name), "off"), sequences)
        report.at_most(f"gradient in {name}, compiled - plain", relative(fused, found[name]), bound)


def compare_adapters(context: Context) -> None:
    """LoRA: the gradient of the adapters packed and padded, and the merged model against the adapted one."""
    report, device = context.report, context.device
    try:
        import peft  # noqa: F401
    except ImportError:
        report.skip("LoRA", "peft is not installed")
        return
    config = make_config("0.5B", tiny=context.tiny, num_hidden_layers=2 if context.tiny else 4)
    model = make_model(config, device, torch.bfloat16).float()  # weights that bfloat16 holds
    lora.attach(model, LoraOptions(rank=8, alpha=32.0), seed=0)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in lora.trained(model).items():
        if ".lora_B." in name:
            with torch.no_grad():
                parameter.normal_(std=0.05, generator=generator)
    sequences = make_sequences(config.vocab_size, tiny=context.tiny)
    padded = Placement(device, torch.bfloat16, "off")
    plain = gradient(model, padded, sequences)
    lora.hold_compactly(model)
    compact = gradient(model, padded, sequences)
    report.at_most("adapters' gradient, bfloat16 - float32 frozen weights", relative(compact, plain), BFLOAT16_GRADIENT)
    packed = gradient(model, replace(padded, packing="on"), sequences)
    report.at_most("adapters' gradient, packed - padded", relative(packed, plain), BFLOAT16_GRADIENT)
    full = Placement(device, torch.float32, "off")
    model = model.float()
    before = scoring.score(model, full, sequences, micro_batch_tokens=10**6)
    lora.merge(model)
    after = scoring.score(model, full, sequences, micro_batch_tokens=10**6)
    report.at_most("logprobs, merged - adapted, largest", float(np.abs(after - before).max()), SAME_FORMULA)


def compare_optimizers(context: Context) -> None:
    """Fused AdamW with its moments on the device and in CPU memory: the same bits, and how much longer it takes."""
    report, device = context.report, context.device
    reset_memory(device)
    size = 1000 if context.tiny else 100_000_000
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(size // 100, 100), (7,), (3, 5)]
    start = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
    steps = [[torch.randn(shape, generator=generator, device=device) for shape in shapes] for _ in range(2)]
    ends, seconds = [], []
    for offload in (False, True):
        parameters = {str(number): torch.nn.Parameter(tensor.clone()) for number, tensor in enumerate(start)}
        optimizer = AdamW(parameters, weight_decay=0.01, offload=offload)
        for gradients in steps:
            for parameter, given in zip(parameters.values(), gradients, strict=True):
                parameter.grad = given.clone()
            seconds.append(seconds_of(partial(optimizer.step, 1e-3), device))
        ends.append([*parameters.values(), *(tensor.to(device) for tensor in optimizer.tensors().values())])
    same = all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    report.holds("a step with offloaded moments", same, "compared to the bit", "the bits of one without")
    report.figure("step over 100M parameters", seconds[1], "s")
    report.figure("the same, moments in CPU memory", seconds[3], "s", "moments on the GPU")
    if context.gpu:
        tensor = torch.empty(GIB // 4, device=device)
        for name, home in (("pageable", torch.empty(GIB // 4)), ("pinned", torch.empty(GIB // 4, pin_memory=True))):
            home.zero_()
            rate = 1 / median_seconds(partial(tensor.copy_, home), device, repeats=3)
            report.figure(f"copy of {name} memory to the GPU", rate, "GiB/s")
            rate = 1 / median_seconds(partial(home.copy_, tensor), device, repeats=3)
            report.figure(f"copy of the GPU's to {name} memory", rate, "GiB/s")
