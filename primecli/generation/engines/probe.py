"""How a model can be decoded, found out by decoding a little: which state it keeps, and what that state allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from sys import float_info
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from primecli.errors import PrimecliError, first_line
from primecli.generation.engines.caches import Carried, Layout
from primecli.generation.engines.decoding import Decoding, Plan, Prefill
from primecli.generation.engines.layouts import learn_layout, run_prompts
from primecli.models.device import Placement, is_out_of_memory
from primecli.models.skeleton import quiet
from primecli.models.trial_tokens import spread_ids

BROKEN = 1e-2  # nats; in float32, rounding makes far less of a difference, another state far more
# Decoding may be off by what rounding explains: so many times the difference that it makes whether a sequence goes on,
# and at least so many nats, since that difference is 0 where kernels compute a token in the same way in either case.
TIMES_ROUNDING = {torch.float32: 16.0, torch.bfloat16: 4.0}
LEAST_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
# In 16 bits, a cache rounds more than the layers do. So a single sequence decoded with it tells what rounding makes, up
# to so many nats, which it does not explain.
NOT_ROUNDING = 1.0

WAYS: tuple[tuple[Prefill, bool, bool], ...] = (
    ("padded", True, True),
    ("joined", True, True),
    ("apart", True, True),
    ("padded", False, True),
    ("apart", False, True),
    ("alone", False, True),
    ("padded", True, False),
    ("apart", True, False),
    ("alone", True, False),
)
"""Ways to decode, from the fastest on: the `prefill`, `drops_rows` and `cached` of a Plan."""


def plan_decoding(model: Any, placement: Placement) -> Plan:
    """The fastest way to decode with this model that gives what a forward pass without a cache gives.

    Every way is tried on two short prompts of different lengths, with two samples of one, of which rows leave. Raises
    PrimecliError where none works.
    """
    with torch.inference_mode(), quiet():
        try:
            layout = learn_layout(model, placement)
            trial = _Trial(model, placement, layout)
        except Exception as error:  # whatever a cache of another form raises
            if is_out_of_memory(error):
                raise
            raise _refusal(model, first_line(error)) from error
        # what is not finite is found while sampling, which names the prompt
        if placement.dtype == torch.float32 and trial.rounding > BROKEN:
            raise _refusal(model, f"later tokens change a token's log-probabilities, by {trial.rounding:.2g} nats")
        allowed = max(TIMES_ROUNDING[placement.dtype] * trial.rounding, LEAST_ROUNDING[placement.dtype])
        masks_steps = True
        if trial.only_keys():  # these can be padded and selected in any precision; whether the model masks them is seen
            allowed = BROKEN if placement.dtype == torch.float32 else float_info.max
        else:
            alone = Plan(layout, "alone", drops_rows=False)
            gaps = {masked: trial.gap(replace(alone, masks_steps=masked)) for masked in (True, False)}
            masks_steps = not (gaps[True] > allowed and gaps[True] > TIMES_ROUNDING[placement.dtype] * gaps[False])
            if placement.dtype != torch.float32:
                allowed = max(allowed, min(TIMES_ROUNDING[placement.dtype] * gaps[masks_steps], NOT_ROUNDING))
        for prefill, drops_rows, cached in WAYS:
            plan = Plan(layout, prefill, drops_rows, cached, masks_steps or not cached)
            if not trial.gap(plan) > allowed:
                return plan
    raise _refusal(model, trial.problem or "its logits are not those of a forward pass without a cache")


def _refusal(model: Any, why: str) -> PrimecliError:
    return PrimecliError(
        f"{type(model).__name__} keeps a state that --engine hf cannot decode with: {why}",
        "sample from it with --engine vllm or vllm-server",
    )


class _Trial:
    """Three sequences, a long prompt once and a short one twice, each with a few more tokens, which all differ.

    expected: their log-probabilities after the prompt and after each token from there on, in a forward pass without a
        cache; (STEPS + 1, V) each.
    rounding: the largest gap between these and a forward pass that ends at the token, nats.
    problem: the first error that decoding raised.
    """

    STEPS = 3  # tokens after a prompt

    def __init__(self, model: Any, placement: Placement, layout: Layout) -> None:
        self.model, self.placement, self.layout = model, placement, layout
        long = layout.tokens + 2
        self.lengths = [long, long // 2, long // 2]  # of the prompts
        ids = spread_ids(model.get_input_embeddings().num_embeddings, long + 3 * self.STEPS)
        self.sequences = [
            ids[:length] + ids[first : first + self.STEPS]
            for length, first in zip(self.lengths, range(long, len(ids), self.STEPS), strict=True)
        ]
        self.expected = [self._forward(sequence)[-self.STEPS - 1 :] for sequence in self.sequences]
        shorter = [self._forward(self.sequences[0][: -self.STEPS + step])[-1] for step in range(self.STEPS)]
        self.rounding = float((torch.stack(shorter) - self.expected[0][: self.STEPS]).abs().max())
        self.problem: str | None = None

    def _forward(self, sequence: Sequence[int]) -> Tensor:
        """Log-probabilities after each token, without a cache: (T, V)."""
        ids = torch.tensor([sequence], device=self.placement.device)
        with self.placement.autocast():
            logits = self.model(input_ids=ids, use_cache=False).logits[0]
        expected: Tensor = logits.float().log_softmax(-1)
        return expected

    def only_keys(self) -> bool:
        """Whether all that the model keeps are keys and values, or the last ones of them."""
        state = Carried(self.model, self.layout)
        run_prompts(self.model, self.placement, state, 1, 2)
        known = {DynamicLayer, DynamicSlidingWindowLayer}
        return type(state.cache) is DynamicCache and {*map(type, state.cache.layers)} <= known and not self.layout.held

    def gap(self, plan: Plan) -> float:
        """The largest gap, in nats, of the three sequences decoded in this way; infinity where it does not work."""
        try:
            batches = {"apart": [[0], [1, 2]], "alone": [[0], [1], [2]]}.get(plan.prefill, [[0, 1, 2]])
            return max(self._decode(plan, batch) for batch in batches)
        except Exception as error:  # whatever a state raises that has another form than it seemed to have
            if is_out_of_memory(error):
                raise
            self.problem = self.problem or first_line(error)
            return math.inf

    def _decode(self, plan: Plan, rows: list[int]) -> float:
        """The largest gap of a batch of some of the sequences; the second and the third are samples of one prompt."""
        prompts = [self.sequences[row][: self.lengths[row]] for row in rows if row < 2 or len(rows) == 1]
        sizes = [1] * (len(prompts) - 1) + [len(rows) - len(prompts) + 1]
        batch = Decoding(self.model, self.placement, plan, prompts, sizes)
        gaps = []
        for step in range(self.STEPS + 1):
            expected = torch.stack([self.expected[row][step] for row in rows])
            gaps.append((batch.logits.float().log_softmax(-1) - expected).abs().max())
            if step == self.STEPS:
                break
            if plan.drops_rows and step and len(rows) > 1:  # the second of three leaves, then the first of two
                kept = [place for place in range(len(rows)) if place != (len(rows) - 1) // 2]
                batch.keep(torch.tensor(kept))
                rows = [rows[place] for place in kept]
            tokens = [self.sequences[row][self.lengths[row] + step] for row in rows]
            batch.advance(torch.tensor(tokens, device=self.placement.device))
        return float(torch.stack(gaps).max())
