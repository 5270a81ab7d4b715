import json
from typing import Any

import pytest

from primecli.errors import UsageError
from primecli.verifiers import Grade, Task, load_verifier
from primecli.verifiers.code.verifier import CodeVerifier
from primecli.verifiers.sandbox.process import bwrap_problem

pytestmark = pytest.mark.skipif(bwrap_problem() is not None, reason=f"no sandbox: {bwrap_problem()}")

ADD = {"asserts": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]}
ECHO = {"inputs": ["1\n2\n", "3\n4\n", "5\n6\n"], "outputs": ["3\n", "7\n", "11\n"]}
SUM_LINES = "a = int(input())\nprint(a + int(input()))"
HUMAN = {
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-3) == 9",
    "entry_point": "sq",
}


@pytest.fixture(scope="module")
def verifier() -> Any:
    verifier = CodeVerifier(sandbox="bwrap", test_timeout=3.0)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def fraction() -> Any:
    verifier = CodeVerifier(sandbox="bwrap", code_reward="fraction", test_timeout=1.0)
    yield verifier
    verifier.close()


def graded(verifier: CodeVerifier, program: str, truth: dict[str, Any]) -> Grade:
    return verifier.grade(Task(f"Here:\n```python\n{program}\n```\n", json.dumps(truth)))


def test_stdin_and_stdout(verifier: CodeVerifier) -> None:
    grade = graded(verifier, SUM_LINES, ECHO)
    assert grade == Grade(1.0, "correct", SUM_LINES + "\n", None, 3, 3)
    wrong = graded(verifier, SUM_LINES.replace("input()))", "input()) - 4 * (a == 3))"), ECHO)
    assert (wrong.reward, wrong.verdict, wrong.tests_passed, wrong.tests_total) == (0.0, "wrong", 1, 3)
    assert wrong.first_failure == "test 2 of 3: stdout '3\\n', expected '7\\n'"


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
        "print(sum(map(int, open(0))))",
        "print(sum(map(int, open('/dev/stdin'))))",
        "def main():\n    print(int(input()) + int(input()))\nif __name__ == '__main__':\n    main()\n    exit()",
        "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
        "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
        "def f(n):\n    return 0 if n == 0 else f(n - 1) + 0\n"
        "def g():\n    print(f(50000) + int(input()) + int(input()))\nthreading.Thread(target=g).start()",
        "import numpy as np\nprint(int(np.array([int(input()), int(input())]).sum()))",
        "import atexit\natexit.register(lambda: print(int(input()) + int(input())))",
    ],
)
def test_the_ways_in_which_programs_read_and_end(verifier: CodeVerifier, program: str) -> None:
    grade = graded(verifier, program, ECHO)
    assert grade.verdict == "correct", grade.first_failure


def test_an_uncaught_exception_is_wrong_whatever_was_printed(verifier: CodeVerifier) -> None:
    grade = graded(verifier, SUM_LINES + "\nprint(end='', flush=True)\nraise KeyError('k')", ECHO)
    assert grade.verdict == "wrong"
    assert grade.first_failure == "test 1 of 3: exit status 1: KeyError: 'k'"


def test_calls(verifier: CodeVerifier) -> None:
    truth = {"fn_name": "pairs", "inputs": [[[3, 1], 2], [[], 0]], "outputs": [[[1, 3], 2.0], [[], 0.0]]}
    assert graded(verifier, "def pairs(a, b): return sorted(a), b * (1 + 1e-9)", truth).verdict == "correct"
    solution = "class Solution:\n    def pairs(self, a, b):\n        return [sorted(a), b]"
    assert graded(verifier, solution, truth).verdict == "correct"
    wrong = graded(verifier, "def pairs(a, b): return a, b", truth)
    assert wrong.first_failure == "test 1 of 2: returned ([3, 1], 2), expected [[1, 3], 2.0]"
    missing = graded(verifier, "def other(a, b): return a, b", truth)
    assert missing.first_failure == "test 1 of 2: raised LookupError: name 'pairs' is not defined"


def test_calls_as_other_data_sets_write_them(verifier: CodeVerifier) -> None:
    program = "def f(a, b=0): return a if isinstance(a, dict) else a + b"
    for inputs, outputs in (
        ([[1, 2], [3, 4]], [[3], [7]]),
        (["1\n2", "3\n4"], ["3", "7"]),
        ([{"1": 2}], [{"1": 2}]),
        ([[{"1": 2}]], [[{"1": 2}]]),
        ([5], [5]),
    ):
        truth = {"fn_name": "f", "inputs": inputs, "outputs": outputs}
        grade = graded(verifier, program, truth)
        assert grade.verdict == "correct", (inputs, grade.first_failure)
    # the first item of a longer output is not the output
    assert graded(verifier, "def f(a): return a", {"fn_name": "f", "inputs": [[3]], "outputs": [[3, 4]]}).reward == 0.0


def test_human_eval(verifier: CodeVerifier) -> None:
    assert graded(verifier, "def sq(x): return x * x", HUMAN).verdict == "correct"
    assert graded(verifier, "class Solution:\n    def sq(self, x): return x * x", HUMAN).verdict == "correct"
    assert graded(verifier, "sq = lambda x: x * x", HUMAN).verdict == "correct"
    wrong = graded(verifier, "def sq(x): return x * 2", HUMAN)
    assert wrong.first_failure == "test 1 of 1: AssertionError (line 3 of the tests)"
    assert (wrong.tests_passed, wrong.tests_total) == (0, 1)
    assert graded(verifier, "def cube(x): return x * x", HUMAN).reward == 0.0


PROMPT = 'from typing import List\n\ndef half(x):\n    return x / 2\n\ndef sq(x):\n    """Squares."""\n'


@pytest.mark.parametrize(
    "response",
    [
        "    return x * x\n",
        "```python\n    return x * x\n```",
        "```python\nreturn x * x\n```",
        "return x * x",
        "```python\ndef sq(x: List[int]):\n    return int(half(2 * x * x))\n```",
        "```python\nfrom __future__ import annotations\ndef sq(x):\n    return x * x\n```",
        "def sq(x):\n    return x * x",
        "1. So\n\n   ```python\n   def sq(x):\n       return x * x\n   ```",
    ],
)
def test_a_completion_of_the_prompt_or_a_whole_function(verifier: CodeVerifier, response: str) -> None:
    grade = verifier.grade(Task(response, json.dumps({**HUMAN, "prompt": PROMPT})))
    assert grade.verdict == "correct", grade


def test_helpers_of_the_prompt_are_not_the_programs(verifier: CodeVerifier) -> None:
    test = "def check(candidate):\n    assert half(candidate(4)) == 8"
    truth = {"test": test, "entry_point": "sq", "prompt": PROMPT}
    assert graded(verifier, "def sq(x): return x * x", truth).verdict == "correct"
    assert graded(verifier, "def half(x): return 8\ndef sq(x): return 0", truth).verdict == "wrong"
    without = {"test": test, "entry_point": "sq"}  # then there is nothing but the program's own
    assert graded(verifier, "def half(x): return x / 2\ndef sq(x): return x * x", without).verdict == "correct"


def test_asserts(verifier: CodeVerifier, fraction: CodeVerifier) -> None:
    assert graded(verifier, "def add(a, b): return a + b", ADD).verdict == "correct"
    half = graded(fraction, "def add(a, b): return 0", ADD)
    assert (half.reward, half.verdict, half.tests_passed, half.tests_total) == (0.5, "wrong", 1, 2)
    assert half.first_failure == "test 1 of 2: AssertionError (line 1 of the tests)"


@pytest.mark.parametrize(
    ("program", "statement"),
    [
        (
            "def f(x):\n    x.append(3)\n    x[0].append(1)",
            "x = [[0]]; y = x[0]; f(x); assert x == [[0, 1], 3] and y == [0, 1]",
        ),
        ("def f(x):\n    x['a'] = 1", "x = {}; f(x); assert x == {'a': 1}"),
        ("def f(x):\n    x.add(1)", "x = set(); f(x); assert x == {1}"),
        (
            "def f(x): return (1, {2}, None, b'3', 4j, {(5,): 6.5}, float('inf'), 10**5000)",
            "assert f(0) == (1, {2}, None, b'3', 4j, {(5,): 6.5}, float('inf'), 10**5000)",
        ),
        ("def f(x): return float('nan')", "assert f(0) != f(0)"),
        ("def f(x): yield from range(x)", "assert list(f(3)) == [0, 1, 2]"),
        ("def f(x): return map(str, range(x))", "assert list(f(2)) == ['0', '1']"),
        ("def f(x): return {1: 2}.keys()", "assert f(0) == {1}"),
        (
            "from collections import *\nP = namedtuple('P', 'a b')\ndef f(x): return P(1, 2), Counter('aab')",
            "assert f(0) == ((1, 2), {'a': 2, 'b': 1})",
        ),
        ("def f(x): return lambda y: x + y", "assert f(3)(4) == 7"),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'no'",
        ),
        (
            "class E(KeyError): pass\ndef f(x): raise E('no')",
            "try:\n    f(1)\n    assert False\nexcept KeyError:\n    pass",
        ),
        ("import math\ndef f(x): return x * math.pi", "assert math.isclose(f(1), 3.14159, rel_tol=1e-3)"),
        ("def f(x): return x + 0.1", "assert abs(f(1) - 1.1) < 1e-9"),
        ("def sum(a, b): return a * b", "assert sum(10, 15) == 150"),
        (
            "class N:\n    left = None\n    def __init__(self, v): self.v = v\n"
            "def f(n): return n.v + (f(n.left) if n.left else 0)",
            "r = N(1); r.left = N(2); r.left.left = N(3); assert f(r) == 6 and r.left.v == 2",
        ),
        ("def f(*a, k=0, **m): return [a, k, m]", "assert f(1, 2, k=3, z=4) == [(1, 2), 3, {'z': 4}]"),
        ("def f(x): return '\\ud800' + x", "assert f('é') == '\\ud800é'"),
        ("LIMIT = 7\ndef f(x): return LIMIT", "assert f(0) == LIMIT"),
        (
            "import re\ndef f(x): return re.match('a', x)",
            "assert f('a'); assert not f('b'); assert f('a').group() == 'a'",
        ),
    ],
)
def test_values_cross_and_keep_their_types(verifier: CodeVerifier, program: str, statement: str) -> None:
    grade = graded(verifier, program, {"asserts": [statement]})
    assert grade.verdict == "correct", grade


@pytest.mark.parametrize(
    ("program", "statement"),
    [
        ("def f(x): return [1, 2]", "assert f(0) == (1, 2)"),
        ("def f(x): return map(int, '12')", "assert f(0) == [1, 2]"),
        ("def f(x): return object()", "assert not f(0)"),
        ("class A:\n    def __len__(self): return 0\ndef f(x): return A()", "assert f(0)"),
        ("import re\ndef f(x): return re.match('a', x)", "assert f('b')"),
        ("def f(x): return 1.0000001", "assert f(0) == 1"),
        ("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))"),
        ("def f(x): return 3\ndef set(x): return 1", "assert set(f(0)) == set([1])"),
        (
            "def f(x): return 3\nclass math:\n    isclose = staticmethod(lambda a, b: True)",
            "assert math.isclose(f(1), 2)",
        ),
    ],
)
def test_what_python_would_not_call_equal_is_not(verifier: CodeVerifier, program: str, statement: str) -> None:
    assert graded(verifier, program, {"asserts": [statement]}).verdict == "wrong"


def test_many_calls_are_quick(verifier: CodeVerifier) -> None:
    assert graded(
        verifier, "def f(x): return x + 1", {"asserts": ["for i in range(10000): assert f(i) == i + 1"]}
    ).reward


def test_fraction_goes_on_after_a_hang_and_after_an_exit(fraction: CodeVerifier) -> None:
    stdin = "x = int(input())\nwhile x == 3: pass\nprint(x + int(input()))"
    grade = graded(fraction, stdin, ECHO)
    assert (grade.verdict, grade.tests_passed, grade.tests_total) == ("timeout", 2, 3)
    assert grade.reward == pytest.approx(2 / 3)
    calls = {"fn_name": "f", "inputs": [[1], [2], [3]], "outputs": [1, 2, 3]}
    grade = graded(fraction, "import os\ndef f(x): return os._exit(0) if x == 2 else x", calls)
    assert (grade.verdict, grade.tests_passed) == ("wrong", 2)
    asserts = {"asserts": ["y = 3", "assert f(1) == 1", "assert f(2) == 2", "assert f(y) == y"]}
    grade = graded(fraction, "def f(x):\n    while x == 2: pass\n    return x", asserts)
    assert (grade.verdict, grade.tests_passed) == ("timeout", 3)


@pytest.mark.parametrize(
    "truth",
    [
        None,
        "",
        "7",
        "{",
        "[]",
        "{}",
        '{"asserts": []}',
        '{"asserts": ["assert ("]}',
        '{"inputs": ["1"], "outputs": []}',
        '{"inputs": [], "outputs": []}',
        '{"test": "def check(", "entry_point": "f"}',
        '{"test": "x = 1", "entry_point": "f"}',
        '{"test": "import nonexistent\\ndef check(f): pass", "entry_point": "f"}',
        '{"test": "def check(f):\\n import nonexistent", "entry_point": "f"}',
        '{"test": "while True: pass\\ndef check(f): pass", "entry_point": "f"}',
        '{"asserts": ["import nonexistent"]}',
    ],
)
def test_what_the_data_caused_has_no_reward(verifier: CodeVerifier, truth: str | None) -> None:
    grade = verifier.grade(Task("def f(x): return x", truth))
    assert (grade.reward, grade.verdict) == (None, "error"), grade
    assert grade.detail


def test_a_sandbox_that_does_not_start_has_no_reward(verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("primecli.verifiers.sandbox.process.bwrap_command", lambda _: ["false"])
    grade = graded(verifier, SUM_LINES, ECHO)
    assert (grade.reward, grade.verdict) == (None, "error")
    assert "sandbox did not start" in (grade.detail or "")


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("", "wrong"),
        ("  \n", "wrong"),
        ("I cannot solve this.", "unparseable"),
        ("```\na\n```\nor\n```\nb\n```", "unparseable"),
        ("```python\nprint(\n```", "wrong"),
        ("```python\n" + "(" * 100_000 + "\n```", "wrong"),
        ("```python\n" + "-" * 100_000 + "1\n```", "wrong"),
        ("```python\nx = '\0'\n```", "wrong"),
        ("```python\n" + "x = 1\n" * 100_000 + "```", "unparseable"),
        ("\ud800", "unparseable"),
    ],
)
def test_what_the_model_caused_is_reward_zero(verifier: CodeVerifier, response: str, verdict: str) -> None:
    grade = verifier.grade(Task(response, json.dumps(ADD)))
    assert (grade.reward, grade.verdict) == (0.0, verdict), grade


def test_options() -> None:
    with pytest.raises(UsageError):
        load_verifier("code", {"code_reward": "some"})
    with pytest.raises(UsageError):
        load_verifier("code", {"test_timeout": 0})


def test_the_pools_deadline_leaves_time_for_two_attempts() -> None:
    assert CodeVerifier(sandbox="bwrap", program_timeout=60.0).pool_timeout == 210.0


LEETCODE = """
class Solution:
    def f(self, head: Optional[ListNode], pairs: List[Tuple[int, int]]) -> Dict[str, int]:
        heap: Deque[int] = deque(sorted(a * b for a, b in pairs))
        heapify(counts := [*heap])
        best = max(accumulate(counts), default=-inf)
        return {"best": best, "first": bisect_left(counts, 12), "root": math.isqrt(best), "all": Counter(counts)[12]}
"""


def test_a_class_solution_finds_the_names_that_leetcode_gives(verifier: CodeVerifier) -> None:
    outputs = [{"best": 14, "first": 1, "root": 3, "all": 1}]
    truth = {"fn_name": "f", "inputs": [[None, [[1, 2], [3, 4]]]], "outputs": outputs}
    grade = graded(verifier, LEETCODE, truth)
    assert grade.verdict == "correct", grade.first_failure
    test = "def check(f):\n    assert f(None, [(1, 2), (3, 4)])['best'] == 14"
    assert graded(verifier, LEETCODE, {"test": test, "entry_point": "f"}).verdict == "correct"
    plain = graded(verifier, "def f(a: List[int]): return 1", {"fn_name": "f", "inputs": [[1]], "outputs": [1]})
    assert plain.first_failure == "test 1 of 1: NameError: name 'List' is not defined"
    own = "class Deque(int): pass\nclass Solution:\n    def f(self, a): return Deque(a)"
    assert graded(verifier, own, {"fn_name": "f", "inputs": [[7]], "outputs": [7]}).verdict == "correct"


def test_a_method_is_not_taken_for_a_name_that_leetcode_gives(verifier: CodeVerifier) -> None:
    add = "class Solution:\n    def add(self, a, b): return {}"  # operator.add is one of those names
    truth = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}
    assert graded(verifier, add.format("a - b"), truth).first_failure == "test 1 of 1: returned -1, expected 3"
    assert graded(verifier, add.format("a + b"), truth).verdict == "correct"
