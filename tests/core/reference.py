"""The reference cases: inputs with the values that public implementations return on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "reference_cases.json").read_text(encoding="utf-8")
)
NAMES = [f"seed{case['seed']}-n{case['group_size']}" for case in CASES]


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask(case: dict[str, Any]) -> Tensor:
    return torch.tensor(case["response_mask"])  # (B, T)


def group_index(case: dict[str, Any]) -> Tensor:
    return torch.arange(len(case["lengths"])).div(int(case["group_size"]), rounding_mode="floor")  # (B,)


def given(case: dict[str, Any], name: str) -> Tensor:
    return float64(case["inputs"][name])
