"""The second set of reference cases: what has been published since PRIME. Layout as in reference.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CASES_2: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "reference_cases_2.json").read_text(encoding="utf-8")
)
NAMES_2 = [f"seed{case['seed']}-n{case['group_size']}" for case in CASES_2]
