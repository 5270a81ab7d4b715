from __future__ import annotations

import numpy as np
import pytest

from primecli.report.payload import Payload, quantise
from tests.report.reading import columns, texts


@pytest.mark.parametrize("compress", [True, False])
def test_columns_and_texts_are_read_back(compress: bool) -> None:
    payload = Payload()
    payload.add("small", np.array([1, 2, 255], dtype=np.uint8))
    payload.add("numbers", np.array([0.5, -2.0], dtype=np.float32))
    payload.add_texts("text", ["", "é€", "a"])
    page = columns(payload.encode({"rows": 3}, compress=compress), compressed=compress)
    assert page["index"]["rows"] == 3
    assert page["small"].tolist() == [1, 2, 255]
    assert page["numbers"].tolist() == [0.5, -2.0]
    assert texts(page, "text") == ["", "é€", "a"]
    assert all(start % 8 == 0 for _, start, _ in page["index"]["columns"].values())


def test_zeros_stay_zeros_with_a_scale_of_zero() -> None:
    values, scale = quantise(np.zeros(3, dtype=np.float32))
    assert (values.tolist(), float(scale)) == ([0, 0, 0], 0.0)
