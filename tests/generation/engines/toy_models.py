"""Causal models that keep their state in forms that no model of transformers has, or only ones too large for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config
from transformers.modeling_outputs import CausalLMOutputWithPast

VOCABULARY, WIDTH, BLOCK = 40, 8, 16


class Toy(torch.nn.Module):
    """Embeds tokens, adds what the subclass makes of the tokens before, and multiplies by its head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = Qwen2Config()
        self.config._attn_implementation = "eager"
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
    ) -> CausalLMOutputWithPast:
        inputs = self.embedding(input_ids)  # (B, t, D)
        seen, state = self.mix(inputs, attention_mask, past_key_values)
        return CausalLMOutputWithPast(
            logits=self.head(torch.tanh(inputs + seen)), past_key_values=state if use_cache else None
        )

    def mix(self, inputs: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError


class OneForAll(Toy):
    """A running sum, of which the state has the numbers of all rows in one dimension."""

    def mix(self, inputs: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        if mask is not None:
            inputs = inputs * mask[:, -inputs.shape[1] :, None]
        before = 0 if state is None else state["sum"].reshape(len(inputs), 1, WIDTH)
        sums = before + inputs.cumsum(1)
        return sums, {"sum": sums[:, -1].reshape(-1)}


class Blocks(Toy):
    """The sum of the means of all whole blocks of tokens, wherever a row begins; at first the state has no block."""

    def mix(self, inputs: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        rows, _, width = inputs.shape
        if state is None:
            state = {"rest": inputs.new_zeros(rows, 0, width), "blocks": inputs.new_zeros(rows, 0, width)}
        seen = []
        rest, blocks = state["rest"], state["blocks"]
        for step in range(inputs.shape[1]):
            rest = torch.cat([rest, inputs[:, step : step + 1]], 1)
            if rest.shape[1] == BLOCK:
                blocks, rest = torch.cat([blocks, rest.mean(1, keepdim=True)], 1), rest[:, :0]
            seen.append(blocks.sum(1))
        return 5 * torch.stack(seen, 1), {"rest": rest, "blocks": blocks}


class Careless(Toy):
    """A running sum that takes padding for tokens, as a tuple in a list."""

    def mix(self, inputs: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        sums = (0 if state is None else state[0][1]) + inputs.cumsum(1)
        return sums, [("a name", sums[:, -1:])]


class Foresighted(Toy):
    """The mean of all tokens of the sequence, later ones too."""

    def mix(self, inputs: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        return inputs.mean(1, keepdim=True), {}
