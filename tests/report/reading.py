"""Reads a report's payload without the page's script."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np


def page_json(page: Path) -> dict[str, Any]:
    """The page's data without the rollouts."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert match is not None
    return dict(json.loads(match[1]))


def page_columns(page: Path) -> dict[str, Any]:
    """The columns of the rollouts by name, and the index as `index`."""
    match = re.search(r'<script type="text/plain" id="payload">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert match is not None
    return columns(match[1], compressed=page_json(page)["rollouts"]["encoding"] == "gzip")


def columns(text: str, *, compressed: bool) -> dict[str, Any]:
    """The same, from the payload in base64."""
    data = base64.b64decode(text)
    data = gzip.decompress(data) if compressed else data
    size = int.from_bytes(data[:4], "little")
    index = json.loads(data[4 : 4 + size])
    by_name: dict[str, Any] = {"index": index}
    for name, (kind, start, count) in index["columns"].items():
        by_name[name] = np.frombuffer(data, dtype=f"<{kind}", count=count, offset=4 + size + start)
    return by_name


def texts(page: dict[str, Any], name: str) -> list[str]:
    """A column of texts, from the columns of a page."""
    lengths = page[f"{name}.length"]
    ends = np.cumsum(lengths)
    return [page[name][end - size : end].tobytes().decode() for end, size in zip(ends, lengths, strict=True)]
