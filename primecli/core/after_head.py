"""What models do to their logits after the head: a scale, a soft cap, or both."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AfterHead(NamedTuple):
    """Logits as a function of the head's output z, each by itself: scale * z, or cap * tanh(scale * z / cap).

    Cohere and Granite scale, Gemma 2 caps (arXiv 2408.00118, section 2).

    scale: positive; 1 changes nothing. cap: positive, the largest absolute value that a logit can have; None for none.

    >>> import torch
    >>> AfterHead(scale=0.5).apply_(torch.tensor([-4.0, 0.0, 100.0]))
    tensor([-2.,  0., 50.])
    >>> AfterHead(cap=30.0).apply_(torch.tensor([-1.0, 20.0, 1000.0]))
    tensor([-0.9996, 17.4835, 30.0000])
    """

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, output: Tensor) -> Tensor:
        """The logits, of any shape, from the head's output, which they overwrite."""
        if self.cap is not None:
            return output.div_(self.cap / self.scale).tanh_().mul_(self.cap)
        return output if self.scale == 1.0 else output.mul_(self.scale)

    def slope_(self, logits: Tensor) -> Tensor | None:
        """The derivative of the logits with respect to the head's output; None where it is `scale` throughout.

        logits: of any shape, as `apply_` returned them, which the derivative overwrites. With
        y = cap * tanh(scale * z / cap), dy/dz is scale * (1 - (y / cap) ** 2).

        >>> import torch
        >>> AfterHead(cap=30.0).slope_(torch.tensor([0.0, 15.0, -30.0]))
        tensor([1.0000, 0.7500, 0.0000])
        """
        if self.cap is None:
            return None
        return logits.div_(self.cap).square_().mul_(-self.scale).add_(self.scale)
