import pytest

from primecli.verifiers.sandbox.names import defined_names, free_names, program_names, prompt_helpers, trusted_modules


def test_all_ways_to_bind_a_name() -> None:
    source = """
import a.b, c as d
from e import f
def g(h, *i, k=1, **l): pass
class M: pass
n, (o, p) = 1, (2, 3)
for q in []: pass
with x as r: pass
try: pass
except E as s: pass
[t for u in v]
(w := 1)
"""
    assert defined_names(source) == set("adfghiklnopqrsuw") | {"M"}
    assert free_names(source) == ["E", "t", "v", "x"]


@pytest.mark.parametrize(
    ("tests", "modules", "names"),
    [
        ("assert math.isclose(f(1), 2)", {"math": "math"}, ["f"]),
        ("assert np.array_equal(f(1), [2])", {"np": "numpy"}, ["f"]),
        ("assert math(1) == math.pi", {}, ["math"]),
        ("assert helper.value == f(1)", {}, ["f", "helper"]),
        ("import math\nassert math.pi < f(1)", {}, ["f"]),
        ("assert sorted(f(1)) == [2]", {}, ["f"]),
        ("assert sorted([1]) == [1]", {}, ["sorted"]),
        ("assert (lambda x: f(x))(1)", {}, ["f"]),
    ],
)
def test_who_defines_what_tests_use(tests: str, modules: dict[str, str], names: list[str]) -> None:
    assert trusted_modules(tests) == modules
    assert program_names(tests) == names


def test_helpers_are_all_of_a_prompt_but_the_function() -> None:
    prompt = "import math\nLIMIT = 3\ndef helper(): pass\nclass Node: pass\ndef f(x):\n    '''doc'''\n"
    assert [type(node).__name__ for node in prompt_helpers(prompt, "f")] == [
        "Import",
        "Assign",
        "FunctionDef",
        "ClassDef",
    ]
    assert prompt_helpers("def f(x):", "f") == []
    assert prompt_helpers(None, "f") == []
