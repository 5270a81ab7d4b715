import time
from typing import Any

import pytest

from primecli.verifiers.code.compare import same_text, same_value
from primecli.verifiers.sandbox import codec


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
        ([10**3000], [10**3000], True),
        ([10**3000 + 1], [10**3000], False),
        ([10**5000], [float("nan")], False),
        ([1 << 10**6], [10**3000], False),
        ({"a": {"b": (1,)}}, {"a": {"b": [1]}}, True),
        ({"a": 1}, {"b": 1}, False),
        (b"a", "a", False),
    ],
)
def test_values(got: Any, expected: Any, same: bool) -> None:
    assert same_value(codec.encode(got, lambda _: None), expected) is same


@pytest.mark.parametrize(
    "message",
    [{}, {"t": 1}, {"d": 1}, {"d": [1]}, {"d": [[1]]}, {"d": [["a", 1], ["a", 1]]}, {"i": 1}, {"i": [1]}, {"s": [1]}],
)
@pytest.mark.parametrize("expected", [1, [1], {"a": 1}, {"a": 1, "b": 1}, None, float("nan")])
def test_what_no_value_has_as_its_message_is_equal_to_nothing(message: Any, expected: Any) -> None:
    assert same_value(message, expected) is False


def test_the_time_of_a_comparison_is_bounded_by_what_is_expected() -> None:
    equal_hashes = [number * (2**61 - 1) for number in range(300_000)]
    start = time.process_time()
    for tag in "sfqg":
        assert not same_value({tag: equal_hashes}, [1])
    assert not same_value({"d": [[number, 1] for number in equal_hashes]}, {"1": 1})
    assert not same_value([equal_hashes], [[1]])
    for text in ("1 " * 4_000_000, "1\n" * 4_000_000, "\n " * 4_000_000 + "2", "1" + " " * 8_000_000 + "x"):
        assert not same_text(text, "1\n2")
    assert time.process_time() - start < 20  # a second or two on a busy machine; hours where it is quadratic
