import json
from typing import Any

import pytest

from primecli.verifiers.code.ground_truth import AssertTests, CallTests, CheckTest, DataError, StdinTests, read_truth


def truth(**keys: Any) -> Any:
    return read_truth(json.dumps(keys))


def test_stdin_tests_are_texts() -> None:
    assert truth(inputs=["1\n", ["a", "b"], 5], outputs=["2", 2.5, ["c", 1]]) == StdinTests(
        ["1\n", "a\nb", "5"], ["2", "2.5", "c\n1"]
    )


def test_a_ground_truth_may_be_json_in_json() -> None:
    assert read_truth(json.dumps(json.dumps({"asserts": ["assert f(1)"]}))) == AssertTests(["assert f(1)"])


def test_call_tests_have_their_arguments_as_a_list() -> None:
    assert truth(fn_name="f", inputs=[[1, [2]], [3, 4]], outputs=[5, 6]) == CallTests(
        "f", [[1, [2]], [3, 4]], [5, 6], False
    )
    assert truth(fn_name="f", inputs=[7], outputs=[8]).arguments == [[7]]
    assert truth(fn_name="f", inputs=["1\n[2]", "3"], outputs=["4", "x"]) == CallTests(
        "f", [[1, [2]], [3]], [4, "x"], False
    )
    assert truth(fn_name="f", inputs=["no json", "3"], outputs=["4", "5"]) == CallTests(
        "f", [["no json"], ["3"]], ["4", "5"], False
    )


def test_outputs_of_one_item_each_are_wrapped() -> None:
    assert truth(fn_name="f", inputs=[[1], [2]], outputs=[[3], [4]]).wrapped
    assert not truth(fn_name="f", inputs=[[1], [2]], outputs=[[3], [4, 5]]).wrapped


def test_keys_of_a_sole_dictionary_are_numbers_again() -> None:
    assert truth(fn_name="f", inputs=[[{"1": 2, "-3": 4}]], outputs=[0]).arguments == [[{1: 2, -3: 4}]]
    assert truth(fn_name="f", inputs=[[{"1": 2, "x": 4}]], outputs=[0]).arguments == [[{"1": 2, "x": 4}]]
    assert truth(fn_name="f", inputs=[[{"1": 2}, 3]], outputs=[0]).arguments == [[{"1": 2}, 3]]


def test_human_eval_and_mbpp() -> None:
    assert truth(test="def check(f): pass", entry_point="f") == CheckTest("def check(f): pass", "f", None)
    assert truth(test="t", entry_point="f", prompt="def f():").prompt == "def f():"
    assert truth(asserts=["assert f(1)", "assert f(2)"], setup="x = 1") == AssertTests(
        ["x = 1\nassert f(1)", "assert f(2)"]
    )
    assert truth(asserts=["assert f(1)"], setup=" ") == AssertTests(["assert f(1)"])


@pytest.mark.parametrize(
    ("ground_truth", "reason"),
    [
        (None, "no ground truth"),
        (" ", "no ground truth"),
        ("{", "the ground truth is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "neither inputs and outputs, nor test and entry_point, nor asserts"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
        ('{"inputs": [], "outputs": []}', "0 inputs and 0 outputs"),
        ('{"inputs": "1", "outputs": "2"}', "not lists"),
        ('{"inputs": [{}], "outputs": ["2"]}', "an input or output is dict, not a text"),
        ('{"inputs": ["1"], "outputs": ["2"], "fn_name": 7}', "fn_name is not a text"),
        ('{"test": 1, "entry_point": "f"}', "test and entry_point are not texts"),
        ('{"asserts": []}', "asserts is not a list of texts, or empty"),
        ('{"asserts": [1]}', "asserts is not a list of texts, or empty"),
        ('{"asserts": ["assert f()"], "setup": 3}', "setup is not a text"),
    ],
)
def test_what_no_program_can_be_graded_by(ground_truth: str | None, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_truth(ground_truth)
