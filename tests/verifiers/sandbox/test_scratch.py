import os
import time
from pathlib import Path

import pytest

from primecli.verifiers import Task
from primecli.verifiers.code.verifier import CodeVerifier
from primecli.verifiers.sandbox import scratch
from primecli.verifiers.sandbox.process import bwrap_problem


def test_a_directory_is_emptied_however_deep_and_whatever_its_rights(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    at = here
    for _ in range(40):  # longer than any path may be
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        if at != here:
            os.close(at)
        at = below
    os.close(at)
    os.close(here)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "link").symlink_to("/")
    (tmp_path / ".cleared-1").mkdir()
    (tmp_path / "a").chmod(0)
    tmp_path.chmod(0)
    scratch.clear(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    scratch.clear(str(tmp_path / "absent"))


@pytest.mark.skipif(bwrap_problem() is not None, reason=f"no sandbox: {bwrap_problem()}")
def test_the_number_of_files_is_bounded_and_each_test_has_all_of_them() -> None:
    program = """
count = 0
try:
    for count in range(10**6): open(str(count), 'w').close()
except OSError as error:
    print(count, error.errno)
"""
    verifier = CodeVerifier(sandbox="bwrap")
    start = time.monotonic()
    truth = '{"inputs": ["", ""], "outputs": ["9995 28", "9995 28"]}'  # its own, stdin, stdout and two stderr count
    assert verifier.grade(Task(f"```python\n{program}```", truth)).verdict == "correct"
    assert time.monotonic() - start < 10
    capabilities = "print([line for line in open('/proc/self/status') if line[:3] == 'Cap'][:4])"
    shown = verifier.grade(Task(capabilities, '{"inputs": [""], "outputs": [""]}')).first_failure or ""
    assert shown.count("0" * 16) >= 3, shown
