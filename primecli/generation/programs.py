"""The tests of programming problems in the layouts of public sets, as the JSON that the code verifier reads.

| set | columns | becomes |
|---|---|---|
| HumanEval, HumanEval+ | `test`, `entry_point`, `prompt` | test, entry_point, prompt |
| MBPP | `test_list`, and `test_imports` or `test_setup_code` | asserts, setup |
| LiveCodeBench | `public_test_cases`, `private_test_cases`, `metadata` | inputs, outputs, fn_name |
| LeetCodeDataset | `input_output`, `entry_point` such as `Solution().twoSum` | inputs, outputs, fn_name |
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from primecli.generation.values import as_object, from_json

ABILITY = "code"
COLUMNS = (
    "test",
    "entry_point",
    "test_list",
    "test_imports",
    "test_setup_code",
    "public_test_cases",
    "private_test_cases",
    "metadata",
    "starter_code",
    "input_output",
)
"""What `tests_of` and `with_starter` look at, besides the prompt."""

MAX_TESTS_BYTES = 1 << 30  # of one problem, unpacked: the largest in LiveCodeBench has some 100 MB
NODES = ("tree_node(", "list_node(")
"""What LeetCodeDataset's tests call to build nodes, which no value in JSON is."""


class UnreadableTestsError(Exception):
    """The tests of a row cannot be read, or not be written as JSON."""


def tests_of(values: Mapping[str, Any]) -> str | None:
    """The tests in a row of a public set as `ground_truth`; None for a row in no layout of these.

    >>> tests_of({"test_list": ["assert f(1) == 2"], "test_imports": ["import math"]})
    '{"asserts": ["assert f(1) == 2"], "setup": "import math"}'

    Raises UnreadableTestsError.
    """
    if values.get("test_list") is not None:
        return _asserts(values)
    if values.get("input_output") is not None and "." in str(values.get("entry_point")):
        return _calls_of_solution(values)
    if values.get("public_test_cases") is not None:
        return _cases(values)
    test, entry_point = values.get("test"), values.get("entry_point")
    if isinstance(test, str) and isinstance(entry_point, str):
        prompt = values.get("prompt")
        code = {"prompt": prompt} if isinstance(prompt, str) else {}
        return _json({"test": test, "entry_point": entry_point, **code})
    return None


def with_starter(values: Mapping[str, Any], text: str) -> str:
    """LiveCodeBench's problem with its starter code, which names what the tests call; any other text as it is.

    >>> with_starter({"public_test_cases": "[]", "starter_code": "class Solution:"}, "Add.")
    'Add.\\n\\n```python\\nclass Solution:\\n```'
    """
    starter = values.get("starter_code")
    if values.get("public_test_cases") is None or not isinstance(starter, str) or not starter.strip():
        return text
    return f"{text}\n\n```python\n{starter.strip()}\n```"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _asserts(values: Mapping[str, Any]) -> str:
    asserts = _texts(values["test_list"], "test_list")
    setup = [*_texts(values.get("test_imports"), "test_imports")]
    if isinstance(code := values.get("test_setup_code"), str) and code.strip():
        setup.append(code)
    return _json({"asserts": asserts, **({"setup": "\n".join(setup)} if setup else {})})


def _texts(value: Any, name: str) -> list[str]:
    listed = from_json(value) if isinstance(value, str) else value
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise UnreadableTestsError(f"{name} is not a list of texts")
    return listed


def _cases(values: Mapping[str, Any]) -> str:
    """LiveCodeBench: the public tests, then the private ones."""
    cases: list[Any] = []
    for name in ("public_test_cases", "private_test_cases"):
        text = values.get(name)
        if text is None or text == "":
            continue
        listed = from_json(text) if isinstance(text, str) else text
        if listed is None and isinstance(text, str):
            listed = from_json(_unpacked(text, name))
        if not isinstance(listed, list) or not all(isinstance(case, dict) for case in listed):
            raise UnreadableTestsError(f"{name} is not a list of tests")
        cases += listed
    if not all(isinstance(case.get(part), str) for case in cases for part in ("input", "output")):
        raise UnreadableTestsError("a test has no input or no output")
    function = (as_object(values.get("metadata")) or {}).get("func_name")
    made = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    return _json({**made, **({"fn_name": function} if function else {})})


class _TextUnpickler(pickle.Unpickler):
    """Reads a pickled text, and nothing that would import or call anything."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise UnreadableTestsError(f"private_test_cases holds {module}.{name}, and only a text is read from it")


def _unpacked(text: str, name: str) -> str:
    """The private tests, which are base64 of zlib of a pickled text."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), MAX_TESTS_BYTES)
        if unpacker.unconsumed_tail:
            raise UnreadableTestsError(f"{name} has more than {MAX_TESTS_BYTES:,} bytes")
        value = _TextUnpickler(io.BytesIO(data)).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, ValueError, EOFError, LookupError, TypeError) as error:
        raise UnreadableTestsError(f"{name} cannot be unpacked: {error}") from error
    if not isinstance(value, str):
        raise UnreadableTestsError(f"{name} holds {type(value).__name__}, not a text")
    return value


def _calls_of_solution(values: Mapping[str, Any]) -> str:
    """LeetCodeDataset: `{"input": "nums = [3, 3], target = 6", "output": "[0, 1]"}` as calls of a method."""
    if any(mark in str(values.get("test")) for mark in NODES):
        raise UnreadableTestsError("its tests call tree_node or list_node, and values in JSON cannot stand for nodes")
    cases = from_json(listed) if isinstance(listed := values["input_output"], str) else listed
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise UnreadableTestsError("input_output is not a list of tests")
    inputs, outputs = [], []
    for case in cases:
        try:
            values_of_test = _arguments(str(case["input"])), _literal(str(case["output"]))
        except (KeyError, ValueError, SyntaxError, MemoryError, RecursionError):
            continue  # its own checks leave such tests out too: "Execution timed out" stands for an output
        inputs.append(values_of_test[0])
        outputs.append(values_of_test[1])
    if not inputs:
        raise UnreadableTestsError("input_output has no test whose values can be read")
    name = str(values["entry_point"]).rpartition(".")[2]
    return _json({"inputs": inputs, "outputs": outputs, "fn_name": name})


def _arguments(text: str) -> list[Any]:
    """The values in a text such as `nums = [3, 3], target = 6`."""
    call = ast.parse(f"f({text})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError(text)
    return [_plain(ast.literal_eval(keyword.value)) for keyword in call.keywords]


def _literal(text: str) -> Any:
    return _plain(ast.literal_eval(text))


def _plain(value: Any) -> Any:
    """A value that JSON has. Raises ValueError for others, such as sets."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise ValueError(repr(value))
