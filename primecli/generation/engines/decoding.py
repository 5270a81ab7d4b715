"""Decoding token by token: a batch and what its model carries from one token to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from primecli.generation.engines.caches import Carried, Layout, Recomputed, State
from primecli.models.attention import DECODING, register_decoding
from primecli.models.device import Placement


def avoid_key_copies(model: Any) -> None:
    """Has a model with fewer key heads than query heads decode without copying its keys (`attention.attend`).

    Only a model that attends by `sdpa` would copy them; others are left as they are.
    """
    if model.config._attn_implementation != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        return
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if heads != (getattr(config, "num_key_value_heads", None) or heads):
        register_decoding()
        model.set_attn_implementation(DECODING)


Prefill: TypeAlias = Literal["padded", "joined", "apart", "alone"]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How batches of a model are decoded; `plan_decoding` finds it out.

    layout: where the model keeps its state.
    prefill: how prompts of different lengths get into one batch. "padded": together, padded on the left. "joined":
        those of each length by themselves, since padding would change the state; then their states are joined.
        "apart": not at all, so that all prompts of a batch must be of one length. "alone": a batch is one sample.
    drops_rows: whether rows can leave the batch, and a prompt's state can be repeated for its samples.
    cached: whether the model's cache is used, or every token computed from the whole sequence.
    masks_steps: whether the mask is given to the model after the prompts too; models without attention may fail then.
    """

    layout: Layout
    prefill: Prefill = "padded"
    drops_rows: bool = True
    cached: bool = True
    masks_steps: bool = True

    def slower(self) -> str | None:
        """Why decoding is slower than it could be, for a message; None where it is not."""
        if not self.cached:
            return "its cache gives different logits, so each token is computed from the whole sequence"
        if self.prefill == "alone":
            return "responses are sampled one at a time, since it does not keep the rows of a batch apart"
        if not self.drops_rows:
            return "responses that have ended stay in the batch, since its cache cannot drop rows"
        if self.prefill == "apart":
            return "only prompts of the same length can share a batch"
        return None


class Decoding:
    """A batch that is being decoded: its state, its mask and the logits of the next token.

    Constructing it runs the prompts through the model.

    prompts: their token ids. sizes: number of samples of each prompt, B in total. mask: (B, T so far), 0 on padding.
    positions: (B, 1), of the last token. logits: (B, V).
    """

    def __init__(
        self, model: Any, placement: Placement, plan: Plan, prompts: Sequence[Sequence[int]], sizes: Sequence[int]
    ) -> None:
        self.model, self.placement, self.plan = model, placement, plan
        # each prompt is computed once for all its samples where its state can be repeated
        owners = torch.repeat_interleave(torch.tensor(sizes))  # (B,): the prompt of each sample
        if not plan.drops_rows:
            prompts, owners = [prompts[owner] for owner in owners.tolist()], torch.arange(len(owners))
        widest = max(len(prompt) for prompt in prompts)
        if plan.prefill == "joined":
            lengths = sorted({len(prompt) for prompt in prompts}, reverse=True)
            groups = [[row for row, prompt in enumerate(prompts) if len(prompt) == length] for length in lengths]
        else:
            groups = [list(range(len(prompts)))]
        begun = [self._begin([prompts[row] for row in group], widest) for group in groups]
        states, *others = zip(*begun, strict=True)
        self.state: State = states[0]
        if len(states) > 1:
            self.state.join(states[1:])
        logits, self.mask, self.positions = (torch.cat(each) for each in others)
        # from here on there is a row for each sample, B in total
        place = torch.tensor([row for group in groups for row in group]).argsort()  # of each prompt in the groups
        rows = place[owners].to(placement.device)
        if plan.drops_rows:
            self.state.select(rows)
        self.state.give_room()
        self.logits, self.mask, self.positions = logits[rows], self.mask[rows], self.positions[rows]

    def _begin(self, prompts: Sequence[Sequence[int]], widest: int) -> tuple[State, Tensor, Tensor, Tensor]:
        """Runs prompts, padded on the left to the longest of them. Returns their state, logits, mask and positions.

        The mask is padded to `widest`, (prompts, widest); positions are those of the last tokens, (prompts, 1).
        """
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros(len(prompts), width, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        mask = mask.to(self.placement.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (prompts, T), 0 on padding
        state: State = Carried(self.model, self.plan.layout) if self.plan.cached else Recomputed(self.model)
        with self.placement.autocast():
            logits = state.run(self.model, ids.to(self.placement.device), mask, positions)
        padding = mask.new_zeros(len(prompts), widest - width)
        return state, logits, torch.cat([padding, mask], dim=1), positions[:, -1:]

    def keep(self, rows: Tensor) -> None:
        """Removes all other rows from the batch, where `plan.drops_rows`. rows: (kept,) int64."""
        rows = rows.to(self.placement.device)
        self.state.select(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]

    def advance(self, tokens: Tensor) -> None:
        """Appends one token to each row and computes the logits of the next. tokens: (B,) int64."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions + 1
        mask = self.mask if self.plan.masks_steps else None
        with self.placement.autocast():
            self.logits = self.state.run(self.model, tokens[:, None], mask, self.positions)
