import time

import pytest

from primecli.verifiers.math.extract import MAX_ANSWER_CHARS, extract_answer

BOXED = [
    (r"\boxed{5}", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\left\{1, \frac{1}{2}\right\}}", r"\left\{1, \frac{1}{2}\right\}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\}}", r"\}"),
    (r"first \boxed{1}, then \boxed{2}.", "2"),
    (r"\boxed{1} and \boxed{}", "1"),
    (r"\fbox{7}", "7"),
    (r"\boxed 5", "5"),
    (r"$\boxed 5$.", "5"),
    (r"\boxed {5}", "5"),
    (r"\\boxed{5}", "5"),
    (r"\boxed{\boxed{5}}", r"\boxed{5}"),
    (r"stray { and \boxed{5}", "5"),
    (r"stray } and \boxed{5}", "5"),
    (r"\boxed{5} and then \boxed{6", "5"),
    ("\\boxed{\n5\n}", "5"),
    (r"\boxed{5} so the answer is 6", "5"),
]

PHRASES = [
    ("#### 18", "18"),
    ("2 * 9 = 18\n#### 18\n", "18"),
    ("####18", "18"),
    ("The answer is 18.", "18"),
    ("The answer is: $18$.", "18"),
    ("The final answer is 18. I hope it is correct.", "18"),
    ("Final Answer: 18", "18"),
    ("**Final Answer**: 18", "18"),
    ("**Answer:** 18", "18"),
    ("Answer: 18", "18"),
    ("The correct answer is (C)", "(C)"),
    ("The answer is 1.5.", "1.5"),
    ("The answer is 18 because 2 * 9 = 18", "18"),
    (r"The answer is \(\frac{1}{2}\).", r"\frac{1}{2}"),
    ("The final answer is:\n\n$$x + 1$$", "x + 1"),
    ("Final Answer:\n18", "18"),
    ("The answer is $1$ and $2$.", "1 and $2$"),
    ("the answer is 3. No, the answer is 4.", "4"),
    ("the answer is 1,234 dollars", "1,234 dollars"),
]

NUMBERS = [
    ("so 7 are left", "7"),
    ("from 16-3 we get 13 eggs.", "13"),
    ("that is -4", "-4"),
    ("that is $1,234.50.", "$1,234.50"),
    ("about 3/4 of it", "3/4"),
    ("it is 25%", "25%"),
    ("7 rows of 8 are 56.\n", "56"),
]


@pytest.mark.parametrize(("text", "answer"), BOXED)
def test_box(text: str, answer: str) -> None:
    found = extract_answer(text)
    assert found is not None
    assert (found.text, found.rule) == (answer, "boxed")


@pytest.mark.parametrize(("text", "answer"), PHRASES)
def test_phrase(text: str, answer: str) -> None:
    found = extract_answer(text, last_number=False)
    assert found is not None
    assert (found.text, found.rule) == (answer, "phrase")


@pytest.mark.parametrize(("text", "answer"), NUMBERS)
def test_last_number(text: str, answer: str) -> None:
    found = extract_answer(text)
    assert found is not None
    assert (found.text, found.rule) == (answer, "last_number")
    assert extract_answer(text, last_number=False) is None


@pytest.mark.parametrize("text", ["", "no idea", r"\boxed{}", r"\boxed{\frac{1}{2}", r"the answer is \boxed{5", "H2O"])
def test_nothing_to_find(text: str) -> None:
    assert extract_answer(text) is None


MEGABYTES = {
    "words": "all is well " * 90_000,
    "boxes": "\\boxed{" * 150_000,
    "braces": "{" * 500_000 + "}" * 500_000,
    "boxed braces": "\\boxed{" + "{" * 500_000 + "5" + "}" * 500_000,
    "backslashes": "\\" * 1_000_000,
    "phrases": "the final answer is " * 50_000,
    "answers": "answer:" * 150_000,
    "hashes": "#" * 1_000_000,
    "digits": "1" * 1_000_000,
    "commas": "1," * 500_000,
    "spaces": "answer" + " " * 1_000_000,
    "newlines": "\n" * 1_000_000,
    "dollars": "the answer is " + "$" * 1_000_000,
    "turns": "<|im_start|>user" * 60_000,
    "ends": "5</s>" * 200_000,
    "questions": "\nQ: 5 =" * 120_000,
    "final answers": "\\boxed{5}" + "final answer is (" * 60_000,
    "list": "5, " * 330_000,
    "brackets": "the answer is 5 apples " + "(1 + " * 200_000,
    "statement": "so x = " + "y + " * 250_000,
    "characters": "共有5个" * 250_000,
}


@pytest.mark.parametrize("name", MEGABYTES)
def test_a_megabyte_takes_well_under_a_second(name: str) -> None:
    start = time.perf_counter()
    found = extract_answer(MEGABYTES[name])
    assert time.perf_counter() - start < 2.0  # some tenths of a second; the slack is for busy machines
    if name not in ("boxed braces",):
        assert found is None or len(found.text) <= MAX_ANSWER_CHARS
