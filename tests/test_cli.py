from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from primecli.catalog import COMMANDS, NAMES
from primecli.errors import PrimecliError


def imported(*arguments: str) -> set[str]:
    """The modules that a command line imports."""
    script = (
        f"import sys; sys.argv = ['primecli', *{list(arguments)!r}]\nfrom primecli import cli\ncli.run(sys.argv[1:])\n"
    )
    script += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


HEAVY = {"torch", "transformers", "vllm", "pyarrow", "numpy", "sympy", "rich"}


@pytest.mark.parametrize("name", [None, *NAMES])
def test_help_imports_nothing_heavy_and_no_other_command(name: str | None) -> None:
    modules = imported(*([] if name is None else [name]), "--help")
    assert not HEAVY & modules
    commands = {module.rpartition(".")[2] for module in modules if module.startswith("primecli.commands.")}
    assert commands == {one.module for one in COMMANDS if one.name == name}


def test_verify_imports_neither_torch_nor_transformers(tmp_path: Any) -> None:
    from tests.builders import rollouts, write_shards

    directory = write_shards(tmp_path / "generate", rollouts(2, 2))
    modules = imported("verify", str(directory), "--quiet")
    assert "pyarrow" in modules
    assert not {"torch", "transformers", "vllm"} & modules


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help_page_with_an_example(name: str, primecli: Any, capfd: Any) -> None:
    from primecli import cli

    assert cli.run([name, "--help"]) == 0
    page = capfd.readouterr().out
    assert "Example:" in page
    assert f"primecli {name} " in page.partition("Example:")[2]
    options = page.partition("Options:")[2]
    for option in re.findall(r"^  (--\S+)[^\n]*?(\S*)$", options, flags=re.MULTILINE):
        assert option[1], f"{option[0]} has no help"


def test_usage_errors_are_one_line_and_code_2(primecli: Any) -> None:
    for arguments in (["nonsense"], ["verify", "--timeout", "soon"], ["filter", "--accuracy", "1"], ["generate"]):
        result = primecli(*arguments, check=False)
        assert result.code == 2
        assert "--help" in result.line()


def test_a_bug_is_one_line_and_debug_shows_the_traceback(primecli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("primecli.pipeline.inputs.Inputs.__init__", broken)
    result = primecli("verify", "x", check=False)
    assert (result.code, "unexpected ZeroDivisionError: two lines" in result.line()) == (1, True)
    assert "Traceback" in primecli("verify", "x", "--debug", check=False).err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_lack_of_memory_is_no_bug_wherever_it_shows(
    error: Exception, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("primecli.pipeline.inputs.Inputs.__init__", broken)
    result = primecli("verify", "x", check=False)
    line = result.line()
    assert (result.code, line.startswith("primecli verify: out of memory"), "ulimit -v" in line) == (1, True, True)
    assert error.args[-1:] == () or str(error.args[-1]) in line


def test_exit_codes_are_those_documented() -> None:
    from primecli import errors

    kinds: list[type[PrimecliError]] = [PrimecliError, *PrimecliError.__subclasses__()]
    codes = {kind.exit_code for kind in kinds}
    codes.add(errors.Interrupted.exit_code)
    documented = {int(code) for code in re.findall(r"^\| (\d+)", errors.__doc__ or "", flags=re.MULTILINE)}
    assert codes == documented - {0}


def test_no_library_can_swallow_an_interrupt() -> None:
    from primecli.errors import Interrupted

    assert not issubclass(Interrupted, Exception)


def test_metrics_of_no_shards_are_zero_or_missing() -> None:
    from primecli.stages import compute_advantages, filter, generate, score_prm, score_values, verify

    for module in (compute_advantages, filter, generate, score_prm, score_values, verify):
        assert not any(module.metrics({}).values())


def test_version(primecli: Any, capfd: Any) -> None:
    from primecli import __version__, cli

    assert cli.run(["--version"]) == 0
    assert capfd.readouterr().out == f"primecli {__version__}\n"


def test_layers_are_kept() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
