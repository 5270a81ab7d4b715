"""Columns as bytes for the page: a JSON index, then typed arrays and texts, in base64.

Layout, little-endian: the length of the index (uint32), the index (UTF-8 JSON), then the columns, each aligned to 8
bytes. The index gives the type of each column, its offset after the index, and its number of values. A column of texts
is stored as two: NAME.length (bytes of each text) and NAME (UTF-8, concatenated).
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "int32": "i4", "int8": "i1", "float32": "f4"}
ALIGNMENT = 8  # bytes; a JavaScript typed array has to start at a multiple of its item size


class Payload:
    """Collects columns; `encode` returns the text that the page embeds."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[str, int, int]] = {}
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, name: str, values: np.ndarray) -> None:
        """Adds a column of numbers, (N,), of a type in KINDS."""
        kind = KINDS[values.dtype.name]
        data = np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()
        self._columns[name] = (kind, self._size, len(values))
        padded = data + bytes(-len(data) % ALIGNMENT)
        self._parts.append(padded)
        self._size += len(padded)

    def add_texts(self, name: str, texts: Sequence[str]) -> None:
        """Adds a column of texts."""
        encoded = [text.encode("utf-8", errors="replace") for text in texts]
        self.add(f"{name}.length", np.array([len(text) for text in encoded], dtype=np.uint32))
        self.add(name, np.frombuffer(b"".join(encoded), dtype=np.uint8))

    def encode(self, index: Mapping[str, Any], *, compress: bool) -> str:
        """The columns after this index, optionally compressed with gzip, in base64."""
        head = json.dumps({**index, "columns": self._columns}, ensure_ascii=False, allow_nan=False).encode()
        head += b" " * (-(len(head) + 4) % ALIGNMENT)
        whole = len(head).to_bytes(4, "little") + head + b"".join(self._parts)
        return base64.b64encode(gzip.compress(whole, mtime=0) if compress else whole).decode("ascii")


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Values, (T,), as int8 with their scale: value = int8 * scale / 127, so the largest magnitude becomes 127.

    >>> quantise(np.array([0.5, -0.25]))
    (array([127, -64], dtype=int8), np.float32(0.5))
    """
    scale = float(np.abs(values).max(initial=0.0))
    if scale == 0.0:
        return np.zeros(len(values), dtype=np.int8), np.float32(0.0)
    return np.rint(np.asarray(values, dtype=np.float64) / scale * 127).astype(np.int8), np.float32(scale)
