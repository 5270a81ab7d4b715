from __future__ import annotations

from primecli.printable import one_line, printable


def test_a_terminal_is_not_steered() -> None:
    assert printable("a\x1b]0;title\x07b\r\n\tc\x7f\x9b\u202e\u00a0d") == "a␛]0;title␇b␍\n c␡\ufffd\ufffd d"
    assert printable("naïve 数学 🎉") == "naïve 数学 🎉"


def test_whatever_comes_in_one_line_that_can_be_encoded_comes_out() -> None:
    everything = "".join(map(chr, [*range(0x3000), 0xD800, 0xDFFF, 0xFEFF, 0xE0001, 0x10FFFF]))
    assert one_line(everything).isprintable()
    assert one_line(everything).encode()
