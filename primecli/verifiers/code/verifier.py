"""The verifier of programs: extracts the program of a response, runs it in a sandbox, and compares its output.

The program never sees the expected output, and nothing that it prints, returns or destroys is a verdict: its values
leave the sandbox as plain data and are compared outside. Whatever the program does is reward 0; a failure of the data
or of the sandbox is an error without a reward.
"""

from __future__ import annotations

import ast
import textwrap

from primecli.errors import UsageError
from primecli.verifiers import MAX_DETAIL_CHARS, Grade, Task
from primecli.verifiers.code.extract import Program, extract_program
from primecli.verifiers.code.ground_truth import CheckTest, DataError, Truth, read_truth
from primecli.verifiers.code.run import Outcome, Runner, count_tests
from primecli.verifiers.sandbox.names import prompt_helpers
from primecli.verifiers.sandbox.process import NOTICES, Limits, SandboxFailed, resolve_mode

REWARDS = ("all", "fraction")
MIN_MEMORY_MB = 64  # common modules of the standard library and a list of a million items need half of it
ATTEMPTS = 2  # a program whose sandbox breaks is run once more


class CodeVerifier:
    """Runs the program of a response against the tests in `ground_truth`.

    sandbox: auto, bwrap, limits or none.
    code_reward: `all` gives 1 when every test passes, and stops at the first that fails; `fraction` gives the fraction
        of the tests that pass.
    test_timeout: CPU seconds for one test, which may take twice that in wall-clock time.
    program_timeout: wall-clock seconds for all tests of a program.
    memory_mb: address space of the program.

    >>> task = Task("def f(x): return x + 1", '{"asserts": ["assert f(1) == 2"]}')
    >>> CodeVerifier(sandbox="limits").grade(task).verdict
    'correct'

    Raises UsageError for options that it does not know, or where the sandbox is not available.
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
        """What the sandbox does not protect, in one line; None for bubblewrap."""
        return NOTICES.get(self.sandbox)

    @property
    def pool_timeout(self) -> float:
        """The deadline that `GradingPool` sets for one program, longer than this verifier's own ones ever take.

        The 90 seconds are for sandboxes that are slow to start.
        """
        return ATTEMPTS * self.program_timeout + 90.0

    def close(self) -> None:
        """Ends the process that waits for tests to run."""
        self._runner.referees.close()

    def grade(self, task: Task) -> Grade:
        """Grades one response, within the timeouts."""
        try:
            truth = read_truth(task.ground_truth)
        except DataError as error:
            return Grade(None, "error", detail=str(error))
        if not task.response.strip():
            return Grade(0.0, "wrong")
        program = extract_program(task.response)
        if program is None:
            return Grade(0.0, "unparseable")
        sources = _sources(program, truth)
        failure = SandboxFailed("")
        for _ in range(ATTEMPTS):
            try:
                return self._grade(program, self._runner.run(sources, truth))
            except DataError as error:
                return Grade(None, "error", program.text, str(error)[:MAX_DETAIL_CHARS])
            except SandboxFailed as error:
                failure = error
        if failure.by_program:
            return Grade(0.0, "wrong", program.text, None, 0, count_tests(truth), str(failure)[:MAX_DETAIL_CHARS])
        return Grade(None, "error", program.text, str(failure)[:MAX_DETAIL_CHARS])

    def _grade(self, program: Program, outcome: Outcome) -> Grade:
        failure = outcome.failure
        if failure is not None and failure.syntax and not program.fenced:
            return Grade(0.0, "unparseable")
        counts = (len(outcome.passed), outcome.total)
        if failure is None and counts[0] == counts[1]:
            return Grade(1.0, "correct", program.text, None, *counts)
        assert failure is not None, "a test that did not pass failed"
        reward = counts[0] / counts[1] if self.code_reward == "fraction" else 0.0
        shown = f"test {failure.index + 1} of {outcome.total}: {failure.why}"[:MAX_DETAIL_CHARS]
        return Grade(reward, "timeout" if failure.timed_out else "wrong", program.text, None, *counts, shown)


def _sources(program: Program, truth: Truth) -> list[str]:
    """The ways to read a program, the likeliest first; the sandbox takes the first that compiles.

    A HumanEval response is a whole function, which needs the imports and helpers of the prompt, or a completion of the
    prompt.
    """
    text = program.text
    dedented = textwrap.dedent(text)
    sources = [text] if dedented == text else [text, dedented]
    if isinstance(truth, CheckTest) and truth.prompt:
        helpers = "\n".join(ast.unparse(node) for node in prompt_helpers(truth.prompt, truth.entry_point))
        prompt = truth.prompt.rstrip("\r\n") + "\n"
        bodies = (text, "    " + text.lstrip(), textwrap.indent(text, "    "))
        sources = [*(f"{helpers}\n{source}" for source in sources), *sources, *(prompt + body for body in bodies)]
    return sources
