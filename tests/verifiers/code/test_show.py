import time
from typing import Any

import pytest

from primecli.verifiers.code.show import MAX_SHOWN_CHARS, shown
from primecli.verifiers.sandbox import codec


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ((1,), "(1,)"),
        ([(1, 2.5), "a\n"], "[(1, 2.5), 'a\\n']"),
        ({"a": {1: {2}}}, "{'a': {1: {2}}}"),
        (frozenset([3]), "frozenset({3})"),
        (object(), "<object>"),
        (1 << 5000, "0x1" + "0" * 116 + "…"),
        ("\ud800", "'\\ud800'"),
    ],
)
def test_values_look_as_in_python(value: Any, text: str) -> None:
    assert shown(codec.encode(value, lambda _: 0)) == text


def test_any_message_is_shown_in_little_time_and_space() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    start = time.process_time()
    messages = [
        nested, ["x" * 10**6] * 10**5, {}, {"d": 1}, {"d": [1, [2]]}, {"h": []}, {"h": [{}, {}]}, {"h": 3}, {"t": 1},
        {"a": 1, "b": 2}, {"s": [[1]] * 10**6}, [""] * 10**6, {"z": None}, 9 * 10**4000,
    ]  # fmt: skip
    for message in messages:
        assert 0 < len(shown(message)) <= MAX_SHOWN_CHARS
    assert time.process_time() - start < 1
