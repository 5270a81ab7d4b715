"""Answers in other mathematical forms, and near misses of each form: `forms.tsv`."""

from pathlib import Path

import pytest

from tests.verifiers.math.grading import grade_in_box

LINES = (Path(__file__).parent / "forms.tsv").read_text().splitlines()
ROWS = [tuple(line.split("\t")) for line in LINES if not line.startswith("#")]


@pytest.mark.parametrize(("right", "gold", "answer"), ROWS)
def test_a_form_is_graded_as_labelled(right: str, gold: str, answer: str) -> None:
    grade = grade_in_box(gold, answer)
    assert (grade.reward, grade.verdict == "error") == (float(right), False), grade
