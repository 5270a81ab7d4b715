"""Answers with units, words, times and percent signs, in other languages and in whole responses: `words.tsv`."""

from pathlib import Path

import pytest

from primecli.verifiers import Task, load_verifier
from tests.verifiers.math.grading import grade_in_box

LINES = (Path(__file__).parent / "words.tsv").read_text().splitlines()
ROWS = [tuple(line.split("\t")) for line in LINES if not line.startswith("#")]


@pytest.mark.parametrize(("right", "form", "gold", "answer"), ROWS)
def test_a_pair_of_gold_and_answer_is_graded_as_labelled(right: str, form: str, gold: str, answer: str) -> None:
    answer = answer.replace("⏎", "\n")
    grade = grade_in_box(gold, answer) if form == "box" else load_verifier("math").grade(Task(answer, gold))
    assert (grade.reward, grade.verdict == "error") == (float(right), False), grade
