"""Grades programs: takes the code of a response, runs it in a sandbox, and compares what it gives.

The program never holds what is expected of it, and nothing that it prints, returns or destroys is a verdict: values
come out of its sandbox as plain data and are compared outside. What the program does is reward 0; what the data or
the sandbox does is an error without a reward.
"""

from __future__ import annotations

import ast
import textwrap

from primecli.errors import UsageError
from primecli.verifiers import Grade, Task
from primecli.verifiers.code.extract import Found, extract_code
from primecli.verifiers.code.ground_truth import CheckTest, DataError, Truth, read_truth
from primecli.verifiers.code.run import Outcome, Runner
from primecli.verifiers.sandbox.names import helpers
from primecli.verifiers.sandbox.process import NOTICES, Limits, SandboxFailed, resolve_mode

REWARDS = ("all", "fraction")
MAX_FAILURE_CHARS = 300
MIN_MEMORY_MB = 64
ATTEMPTS = 2  # a sandbox that breaks is tried once more


class CodeVerifier:
    """Runs the program of a response against the tests in `ground_truth`.

    sandbox: auto, bwrap, limits or none. code_reward: `all` gives 1 when every test passes and stops at the first
    that does not; `fraction` gives the part that passes. test_timeout: CPU seconds of one test; by the clock it may
    take twice that. program_timeout: seconds by the clock for all tests of a program. memory_mb: its address space.

    >>> task = Task("def f(x): return x + 1", '{"asserts": ["assert f(1) == 2"]}')
    >>> CodeVerifier(sandbox="limits").grade(task).verdict
    'correct'

    Raises UsageError where the sandbox cannot be had.
    """

    def __init__(
        self,
        sandbox: str = "auto",
        code_reward: str = "all",
        test_timeout: float = 6.0,
        program_timeout: float = 60.0,
        memory_mb: int = 1024,
    ) -> None:
        if code_reward not in REWARDS:
            raise UsageError(f"there is no code reward {code_reward!r}", f"known: {', '.join(REWARDS)}")
        if test_timeout <= 0 or program_timeout <= 0 or memory_mb < MIN_MEMORY_MB:
            raise UsageError(f"timeouts must be positive, and memory at least {MIN_MEMORY_MB} MB")
        self.sandbox = resolve_mode(sandbox)
        self.code_reward = code_reward
        self.program_timeout = program_timeout
        limits = Limits(cpu_seconds=max(1, round(test_timeout)), memory_bytes=memory_mb << 20)
        self._runner = Runner(self.sandbox, limits, test_timeout, program_timeout, stop=code_reward == "all")

    @property
    def notice(self) -> str | None:
        """What the chosen sandbox gives up, in one line; None for bubblewrap."""
        return NOTICES.get(self.sandbox)

    @property
    def pool_timeout(self) -> float:
        """The deadline that `GradingPool` sets for one program, longer than this verifier's own ones ever take.

        A program runs at most ATTEMPTS times; the rest is for sandboxes that are slow to start.
        """
        return ATTEMPTS * self.program_timeout + 90.0

    def close(self) -> None:
        """Ends the process that waits to run tests."""
        self._runner.referees.close()

    def grade(self, task: Task) -> Grade:
        """The grade of one response, within the timeouts."""
        try:
            truth = read_truth(task.ground_truth)
        except DataError as error:
            return Grade(None, "error", detail=str(error))
        if not task.response.strip():
            return Grade(0.0, "wrong")
        found = extract_code(task.response)
        if found is None:
            return Grade(0.0, "unparseable")
        sources = _sources(found, truth)
        failure = ""
        for _ in range(ATTEMPTS):
            try:
                return self._grade(found, self._runner.run(sources, truth))
            except DataError as error:
                return Grade(None, "error", found.text, str(error)[:MAX_FAILURE_CHARS])
            except SandboxFailed as error:
                failure = str(error)
        return Grade(None, "error", found.text, failure[:MAX_FAILURE_CHARS])

    def _grade(self, found: Found, outcome: Outcome) -> Grade:
        failure = outcome.failure
        if failure is not None and failure.syntax and not found.fenced:
            return Grade(0.0, "unparseable")
        counts = (len(outcome.passed), outcome.total)
        if failure is None and counts[0] == counts[1]:
            return Grade(1.0, "correct", found.text, None, *counts)
        assert failure is not None, "a test that did not pass failed"
        reward = counts[0] / counts[1] if self.code_reward == "fraction" else 0.0
        shown = f"test {failure.place + 1} of {outcome.total}: {failure.why}"[:MAX_FAILURE_CHARS]
        return Grade(reward, "timeout" if failure.timed_out else "wrong", found.text, None, *counts, shown)


def _sources(found: Found, truth: Truth) -> list[str]:
    """The programs that a response may mean, the likeliest first: the sandbox takes one that compiles.

    A HumanEval response is a whole function, to which the prompt's imports and helpers belong, or a completion of
    the prompt.
    """
    dedented = textwrap.dedent(found.text)
    sources = [found.text] if dedented == found.text else [found.text, dedented]
    if isinstance(truth, CheckTest) and truth.prompt:
        rest = "\n".join(ast.unparse(node) for node in helpers(truth.prompt, truth.entry_point))
        prompt = truth.prompt.rstrip("\r\n") + "\n"
        bodies = (found.text, "    " + found.text.lstrip(), textwrap.indent(found.text, "    "))
        sources = [*(f"{rest}\n{source}" for source in sources), *sources, *(prompt + body for body in bodies)]
    return sources
