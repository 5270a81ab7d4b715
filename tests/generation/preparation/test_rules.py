from __future__ import annotations

import pyarrow as pa
import pytest

from primecli.generation.preparation.rules import asks_for_proof, multiple_choice, needs_figure


def holds(rule: object, text: str) -> bool:
    return bool(rule(pa.chunked_array([[text]]))[0])  # type: ignore[operator]


@pytest.mark.parametrize(
    "text",
    [
        r"How many? $\textbf{(A)}\ 2 \qquad \textbf{(B)}\ 3 \qquad \textbf{(C)}\ 4$",
        "What is 1+1?\n(A) 1\n(B) 2\n(C) 3",
        "What is 1+1?\nA. 1\nB. 2\nC. 3\nD. 4",
        "What is 1+1?\n\nA) 1\n\nB) 2\n\nC) 3",
        "What is 1+1? A. 1 B. 2 C. 3 D. 4",
        "Which of the following is prime?",
    ],
)
def test_options_are_found(text: str) -> None:
    assert holds(multiple_choice, text)


@pytest.mark.parametrize(
    "text",
    [
        "Given $P(A)=0.3$, $P(B) = 0.2$ and $P(C)=0.1$, find $P(D)$.",
        "Triangle $ABC$ has $AB = 3$. A circle through A. It also goes through B. Find C.",
        "(a) Find x. (b) Find y. (c) Find z.",
        "A: what is 1+1?",
    ],
)
def test_what_only_looks_like_options(text: str) -> None:
    assert not holds(multiple_choice, text)


@pytest.mark.parametrize(
    "text",
    [
        "In the figure, $AB = 3$. Find $BC$.",
        "The graph shown has 5 vertices.",
        "Find the area of the triangle in the diagram below.",
        "The following figure is made of squares.",
        "What is x? ![](image.png)",
        "如图，求x。",
    ],
)
def test_figures_are_missed(text: str) -> None:
    assert holds(needs_figure, text)
    assert not holds(needs_figure, f"{text}\n[asy] draw((0,0)--(1,1)); [/asy]")


@pytest.mark.parametrize(
    "text", ["How many edges are in the graph $K_5$?", "Find the image of $f$ below.", "Write it as a figure: seven."]
)
def test_no_figure_is_missed(text: str) -> None:
    assert not holds(needs_figure, text)


@pytest.mark.parametrize(
    "text",
    [
        "Prove that $\\sqrt 2$ is irrational.",
        "Let $n$ be odd. Show that $8 | n^2 - 1$.",
        "Prove the inequality $a^2 + b^2 \\ge 2ab$.",
        "Let $n$ be odd and prove that $n^2$ is odd.",
        "证明：根号二是无理数。",
    ],
)
def test_proofs_are_found(text: str) -> None:
    assert holds(asks_for_proof, text)


@pytest.mark.parametrize(
    "text",
    [
        "Prove that $n$ is even and find $n$.",
        "A witness said: prove it. How many lies were told?",
        "The tests show that 3 of 4 pass. Compute the rate.",
        "An approval rate of 5%: what is it in fractions",
    ],
)
def test_what_asks_for_a_value_is_no_proof(text: str) -> None:
    assert not holds(asks_for_proof, text)
