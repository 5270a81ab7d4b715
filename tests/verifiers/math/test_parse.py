import pytest

from primecli.verifiers.math.evaluate import exact
from primecli.verifiers.math.parse import MAX_DEPTH, parse_expression
from primecli.verifiers.math.tokens import MAX_NUMBER_CHARS, Unreadable


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("2-3-4", -5),
        ("8/4/2", 1),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^-1", 0.5),
        ("1/2(4)", 2),
        (r"\frac12", 0.5),
        (r"2\frac{3}{4}", 2.75),
        (r"-2\frac{3}{4}", -2.75),
        ("2 3/4", 2.75),
        (r"\sqrt16", 4),
        (r"\sqrt[3]{27}", 3),
        ("3!", 6),
        ("50%", 0.5),
        ("|3-5|", 2),
        ("|-2|*|-3|", 6),
        (r"\lfloor 3.5 \rfloor", 3),
        ("1,234.5", 1234.5),
        ("1.5e3", 1500),
        (r"\binom{5}{2}", 10),
    ],
)
def test_expressions_have_the_value_that_mathematicians_read(text: str, value: float) -> None:
    assert exact(parse_expression(text)) == value


def test_functions_bind_their_arguments_as_in_print() -> None:
    assert parse_expression(r"\sin 2x + 1") == parse_expression(r"\sin(2x) + 1")
    assert parse_expression(r"\sin^2 x") == parse_expression(r"(\sin x)^2")
    assert parse_expression(r"\sin^{-1} x") == parse_expression(r"\arcsin x")
    assert parse_expression(r"\sin x\cos x") == parse_expression(r"(\sin x)(\cos x)")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2 3",
        "1/",
        "(1",
        "1)",
        "2^3^4",
        r"\frac{1}{2}3",
        r"1\frac{3}{2}",
        r"\unknown",
        r"\sum_{k=1}^3 k",
        "1" * (MAX_NUMBER_CHARS + 1),
    ],
)
def test_what_the_grammar_does_not_cover(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_expression(text)


def test_nesting_is_bounded() -> None:
    assert exact(parse_expression("(" * (MAX_DEPTH // 2 - 1) + "1" + ")" * (MAX_DEPTH // 2 - 1))) == 1
    for text in ("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, "1" + "!" * MAX_DEPTH, "1+" * 10_000 + "1" + "^2" * 10_000):
        with pytest.raises(Unreadable):
            parse_expression(text)
