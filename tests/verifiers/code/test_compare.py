from typing import Any

import pytest

from primecli.verifiers.code.compare import same_text, same_value


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("3\n", "3", True),
        ("  3  \n\n", "3\n", True),
        ("1 2\n3\r\n", "1  2\n\n3", True),
        ("1 2 3", "1 2\n3", False),
        ("0.3333333", "0.33333333333", True),
        ("0.333", "0.33333333333", False),
        ("1e-7", "0.0", True),
        ("1e-5", "0.0", False),
        ("3.0", "3", True),
        ("3", "3.000000", True),
        ("3.4", "3", False),
        ("9999", "10000", False),
        ("9999999", "10000000", False),
        ("9999999.0", "10000000.0", False),
        ("1000000000.4", "1000000000", False),
        ("123456789012345678901", "123456789012345678902", False),
        ("123456789012345678901.0", "123456789012345678901", True),
        ("1000000.5", "1000000.50001", True),
        ("007", "7", False),
        ("yes", "YES", False),
        ("nan", "0.5", False),
        ("1_0", "10.0", False),
        ("", "", True),
        ("", "0", False),
        ("9" * 1000 + ".0", "9" * 1000, False),
        ("٣.0", "3", False),
    ],
)
def test_texts(got: str, expected: str, same: bool) -> None:
    assert same_text(got, expected) is same


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ((1, [2, (3,)]), [1, [2, [3]]], True),
        ([1, 2], [1, 2, 3], False),
        ({1}, [1], False),
        ("1", 1, False),
        (1, "1", False),
        (None, None, True),
        (None, 0, False),
        (0.1 + 0.2, 0.3, True),
        (10**20, 10**20 + 1, False),
        (10**400, 1.5, False),
        (float("nan"), 1, False),
        (float("inf"), 10**6, False),
        (9999999.0, 10000000, False),
        ({1: [2]}, {"1": [2]}, True),
        ({1: 2, "1": 2}, {"1": 2}, False),
        ({(1,): 2}, {"(1,)": 2}, False),
        (b"a", "a", False),
    ],
)
def test_values(got: Any, expected: Any, same: bool) -> None:
    assert same_value(got, expected) is same
