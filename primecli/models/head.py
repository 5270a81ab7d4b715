"""How a model gets from its last hidden states to its logits: found out by trying, not from its name or configuration.

The numbers on both sides of the head are replaced by known ones, and the model's own code shows what it does to them.
That is exact, in float64, where real logits would say little: those of a small or untrained model lie so near 0 that a
cap at 30 hardly changes them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from primecli.core.after_head import AfterHead
from primecli.errors import PrimecliError
from primecli.models.body import body_of

TOKENS = 8  # of each row that models are tried on
# What the head is made to say. All are exact in every floating-point format, should a model round them.
SMALL = 2.0**-20  # so near 0 that a cap changes nothing: shows the scale
LARGE = 2.0**60  # so far that a cap is all that is left of it
STEPS = (-512.0, -96.0, -40.0, -20.0, -7.5, -2.0, -0.25, 0.0, 0.5, 1.0, 3.0, 5.0, 12.0, 30.0, 64.0, 160.0, 1024.0)
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative, of what a model makes of them
HALF_ROUNDING = 2e-2  # the same in 16 bits


class _UnsupportedError(Exception):
    """The model does something between its hidden states and its logits that `Head` cannot say; the message is what."""


@dataclass(frozen=True, slots=True)
class Head:
    """The logits are `after` of the head's output for `before` times the last hidden states.

    before: positive, such as 0.1 in MiniCPM 3. after: a scale or a cap, such as Gemma 2's at 30.
    """

    before: float = 1.0
    after: AfterHead = AfterHead()  # noqa: RUF009 (immutable)

    @property
    def plain(self) -> bool:
        """Whether the logits are the head's output for the last hidden states, and nothing else."""
        return self == Head()


_heads: WeakKeyDictionary[torch.nn.Module, Head] = WeakKeyDictionary()


def head_of(model: Any, output: Any = None, *, where: str = "") -> Head:
    """How the model gets to its logits. It is tried once for each model.

    output: of its body, for `trial_input`; computed when None. where: begins the message, such as a
    directory. Raises PrimecliError where `Head` cannot say it.
    """
    if model not in _heads:
        try:
            _heads[model] = _measure(model, output)
        except _UnsupportedError as error:
            raise PrimecliError(
                f"{where}{type(model).__name__} {error}",
                "this is not supported: log-probabilities computed from its hidden states would be wrong",
            ) from None
    return _heads[model]


def trial_input(model: Any) -> Tensor:
    """(2, TOKENS) int64: token ids that every model has; the two rows have the first half of their tokens in common."""
    ids = torch.arange(1, TOKENS + 1, device=model.device).repeat(2, 1)
    ids[1, TOKENS // 2 :] += TOKENS
    vocabulary: int = model.get_input_embeddings().num_embeddings
    return ids % vocabulary


def _measure(model: Any, output: Any) -> Head:
    ids = trial_input(model)
    if output is None:
        with torch.no_grad():
            output = body_of(model)(input_ids=ids, use_cache=False)
    spy = _Spy(output)
    with torch.enable_grad(), spy.installed(model):
        logits = model(input_ids=ids, use_cache=False).logits
    if spy.said is None:
        return Head()  # the head is not called as a module; `check_head` compares its output with the logits
    if logits.requires_grad:
        raise _UnsupportedError("changes its logits after the head by parameters that are trained")
    return Head(spy.before(), _after(spy.said, logits.detach()))


class _Spy:
    """Stands in for a model's body and for what its head says, and sees what the head is given.

    said: what the head was made to say, (2, TOKENS, V) float64; None as long as it has not been called.
    """

    def __init__(self, output: Any) -> None:
        """output: of the body, of which only the kind and the shape matter."""
        self.said: Tensor | None = None
        self._output = copy.copy(output)
        hidden = output.last_hidden_state  # (2, TOKENS, D)
        # of both signs, all different from their neighbours, and exact in 16 bits
        numbers = torch.arange(hidden.shape[1])[:, None] * 3 + torch.arange(hidden.shape[2]) * 5
        self._hidden = ((numbers % 61 - 30) / 8).to(hidden.device, torch.float64).repeat(len(hidden), 1, 1)
        self._hidden[0, 0, 0] = 1.0  # shows the factor
        self._output.last_hidden_state = self._hidden
        self._given: Tensor | None = None
        self._stood_in = False

    @contextlib.contextmanager
    def installed(self, model: Any) -> Iterator[None]:
        body, head = body_of(model), model.get_output_embeddings()
        hooks = [head.register_forward_pre_hook(self._before_head), head.register_forward_hook(self._after_head)]
        shadowing = vars(body).get("forward")
        body.forward = self._stand_in  # shadows the method of its class
        try:
            yield
        finally:
            del body.forward
            if shadowing is not None:
                body.forward = shadowing
            for hook in hooks:
                hook.remove()

    def _stand_in(self, *arguments: Any, **options: Any) -> Any:
        self._stood_in = True
        return self._output

    def _before_head(self, head: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        self._given = arguments[0].detach()
        return (torch.zeros_like(arguments[0], dtype=head.weight.dtype), *arguments[1:])

    def _after_head(self, head: Any, arguments: Any, output: Tensor) -> Tensor:
        rows = torch.arange(output.shape[-2], device=output.device)[:, None]
        columns = torch.arange(output.shape[-1], device=output.device)
        steps = torch.tensor(STEPS, dtype=torch.float64, device=output.device)
        said = steps[(rows * 5 + columns) % len(STEPS)]  # (T, V)
        said[0], said[1] = SMALL, LARGE
        self.said = said.expand(output.shape)
        return self.said.clone()  # the model may change it in place

    def before(self) -> float:
        """What the hidden states were multiplied by on their way to the head. Raises _UnsupportedError."""
        given = self._given
        if given is None or not self._stood_in:
            return 1.0  # the body is not called as a module
        if given.shape == self._hidden.shape:
            factor = float(given[0, 0, 0])
            if factor > 0 and _close(given, factor * self._hidden):
                return _unless_one(factor)
        raise _UnsupportedError("changes its hidden states before the head, other than by a factor")


def _after(said: Tensor, logits: Tensor) -> AfterHead:
    """What makes these logits of what the head said, (2, T, V) both. Raises _UnsupportedError."""
    if logits.shape != said.shape:
        raise _UnsupportedError(f"has {logits.shape[-1]} logits where its head has {said.shape[-1]} outputs")
    exact = logits.double()
    scale, limit = float(exact[0, 0, 0]) / SMALL, float(exact[0, 1, 0])
    found = AfterHead(_unless_one(scale), None if _near(limit, scale * LARGE) else limit)
    if found.scale > 0 and (found.cap is None or 0 < found.cap < float("inf")):
        expected = found.apply_(said.clone())
        wrong = ~torch.isclose(exact, expected, rtol=_rounding(logits), atol=_rounding(logits) * SMALL)
        if not bool(wrong.any()):
            return found
    else:
        wrong = exact != said
    place = tuple(wrong.nonzero()[-1].tolist())  # of the last row's: the first two hold extreme numbers
    raise _UnsupportedError(
        f"changes its logits after the head, other than by a scale or a cap: token {place[2]} gets "
        f"{float(exact[place]):.4g} where the head says {float(said[place]):.4g}"
    )


def _rounding(values: Tensor) -> float:
    return ROUNDING.get(values.dtype, HALF_ROUNDING)


def _close(values: Tensor, expected: Tensor) -> bool:
    return torch.allclose(values.double(), expected, rtol=_rounding(values), atol=0)


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= 1e-3 * abs(expected)


def _unless_one(factor: float) -> float:
    """The factor; exactly 1 where it differs by rounding only."""
    return 1.0 if abs(factor - 1) < 1e-6 else factor
