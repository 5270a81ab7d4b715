from __future__ import annotations

import numpy as np
import pytest
import torch

from primecli.core.importance import effective_sample_size


def test_it_is_kishs_formula() -> None:
    rng = np.random.default_rng(0)
    for spread in (0.01, 1.0, 5.0):
        log_weights = rng.normal(0, spread, size=500)
        weights = np.exp(log_weights)
        exact = weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        assert effective_sample_size(torch.tensor(log_weights)) == pytest.approx(exact, rel=1e-12)


def test_a_common_factor_changes_nothing_and_nothing_overflows() -> None:
    log_weights = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    assert effective_sample_size(log_weights + 2000) == pytest.approx(effective_sample_size(log_weights), rel=1e-9)


def test_equal_weights_are_all_effective_and_one_of_many_is_one() -> None:
    assert effective_sample_size(torch.full((10,), -3.0)) == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([100.0, *[0.0] * 9])) == pytest.approx(0.1)
