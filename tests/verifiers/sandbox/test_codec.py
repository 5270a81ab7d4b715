import json
from collections import OrderedDict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from primecli.verifiers.sandbox.codec import (
    MAX_BITS,
    MAX_ITEMS,
    Malformed,
    decode,
    dump_line,
    encode,
    load_line,
)

Point = namedtuple("Point", "x y")


class SameAsAll(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def refuse(_: Any) -> int | None:
    return None


def handle(number: int, type_name: str) -> tuple[int, str]:
    return number, type_name


def sent(value: Any) -> Any:
    """The value that arrives on the other side."""
    return decode(load_line(dump_line(encode(value, refuse))), handle)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -(10**5000), 2.5, float("inf"), "ä\ud800", 1 + 2j, b"\xff", bytearray(b"x")),
        *([1, [2, "x"]], (1, (2,)), {1: "a", (2, 3): [4]}, {1, 2}, frozenset({1}), deque([1, 2]), range(1, 9, 2)),
        *(Decimal("1.10"), Fraction(1, 3), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_arrives_with_its_type(value: Any) -> None:
    result = sent(value)
    assert (type(result), result) == (type(value), value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (SameAsAll(4), 4),
        (Point(1, 2), (1, 2)),
        (OrderedDict({"a": SameAsAll(1)}), {"a": 1}),
        (iter([1, 2]), [1, 2]),
        (map(str, [1]), ["1"]),
        ({1: 2}.items(), [(1, 2)]),
    ],
)
def test_a_subclass_or_iterator_arrives_as_plain_data(value: Any, plain: Any) -> None:
    result = sent(value)
    if not isinstance(plain, list):
        assert type(result) is type(plain)
    assert (list(result) if isinstance(plain, list) else result) == plain
    assert sent(5) != sent(SameAsAll(4))


def test_an_endless_iterator_is_cut_and_raises_where_it_was() -> None:
    iterator = sent(iter(int, 1))
    assert [next(iterator) for _ in range(MAX_ITEMS)] == [0] * MAX_ITEMS
    with pytest.raises(RuntimeError, match="more than 100000 items"):
        next(iterator)


def test_an_object_travels_as_a_handle_or_not_at_all() -> None:
    message = encode([object()], lambda _: 7)
    assert message == [{"h": [7, "object"]}]
    assert decode(message, handle) == [(7, "object")]
    with pytest.raises(TypeError, match="object is not plain data"):
        encode(object(), refuse)


@pytest.mark.parametrize(
    "message",
    [
        {"z": 1}, {"i": "x"}, {"i": "0x" + "f" * (MAX_BITS // 4 + 9)}, {"s": [[1]]}, {"F": [1, 0]}, {"D": "x"},
        {"d": [1]}, {"t": 1}, {"h": ["x", "y"]}, {}, {"t": [], "s": []}, {"r": [1, 2, 0]}, {"b": "zz"},
    ],
)  # fmt: skip
def test_what_is_not_a_value_is_malformed(message: Any) -> None:
    with pytest.raises(Malformed):
        decode(message, handle)


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_malformed(line: bytes) -> None:
    with pytest.raises(Malformed):
        load_line(line)


def test_a_message_is_one_line_of_json() -> None:
    line = dump_line(encode({"a\n": (1, 2)}, refuse))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"d": [["a\n", {"t": [1, 2]}]]}
