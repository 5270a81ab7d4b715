from __future__ import annotations

import pytest
import torch

from primecli.core.after_head import AfterHead

FORMS = [(1.0, None), (0.0625, None), (1.0, 30.0), (2.5, 4.0)]
POINTS = torch.cat([torch.linspace(-100, 100, 401), torch.tensor([1e-6, -1e-6, 1e6, -1e6])]).double()


@pytest.mark.parametrize(("scale", "cap"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_slope_are_those_of_the_plain_formula(scale: float, cap: float | None, dtype: torch.dtype) -> None:
    points = POINTS.clone().requires_grad_()
    expected = scale * points if cap is None else cap * torch.tanh(scale * points / cap)
    (slope,) = torch.autograd.grad(expected.sum(), [points])
    after = AfterHead(scale, cap)
    found = after.apply_(POINTS.to(dtype))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)
    ours = after.slope_(found.clone())
    if cap is None:
        assert ours is None
        assert slope.eq(scale).all()
    else:
        torch.testing.assert_close(ours.double(), slope, rtol=0, atol=tolerance)  # type: ignore[union-attr]


@pytest.mark.parametrize(("scale", "cap"), FORMS)
def test_logits_keep_their_order_and_their_sign_and_stay_below_the_cap(scale: float, cap: float | None) -> None:
    logits = AfterHead(scale, cap).apply_(POINTS[:401].clone())
    assert bool((logits.diff() >= 0).all())
    assert torch.equal(AfterHead(scale, cap).apply_(-POINTS[:401]), -logits)
    assert cap is None or float(logits.abs().max()) <= cap


def test_the_output_is_overwritten() -> None:
    for after in (AfterHead(), AfterHead(scale=3.0), AfterHead(cap=3.0)):
        output = torch.ones(3)
        assert after.apply_(output) is output
