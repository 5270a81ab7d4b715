from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Iterator, Sequence
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from primecli.setup import doctor
from primecli.verifiers.sandbox import process


@pytest.fixture(autouse=True)
def fresh_sandbox() -> Iterator[None]:
    yield
    process.bwrap_problem.cache_clear()


def by_name(found: Iterator[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in found}


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this installation require these lines, the named distributions being the only ones there are."""

    class Installed:
        def __init__(self, lines: list[str], extras: Sequence[str]) -> None:
            self.requires = lines
            self.metadata = Message()
            for extra in extras:
                self.metadata["Provides-Extra"] = extra

    def make(lines: list[str], there: dict[str, str], extras: Sequence[str] = ()) -> None:
        def version(name: str) -> str:
            if name not in there:
                raise metadata.PackageNotFoundError(name)
            return there[name]

        monkeypatch.setattr(doctor, "_distribution", lambda: Installed(lines, extras))
        monkeypatch.setattr(metadata, "version", version)

    return make


def test_a_package_that_is_missing_or_too_old_fails_and_says_how_to_get_it(requires: Any) -> None:
    lines = ["numpy>=2.0", "sympy<1.0", "nowhere>=1.5; python_version>='3'", "other>=1; extra == 'more'"]
    requires(lines, {"numpy": "2.4.6", "sympy": "1.14"})
    found = by_name(doctor.packages())
    assert found == {
        "numpy": doctor.Check("numpy", "ok", "2.4.6"),
        "sympy": doctor.Check("sympy", "failed", "1.14, and <1.0 is needed", "pip install 'sympy<1.0'"),
        "nowhere": doctor.Check("nowhere", "failed", "is not installed", "pip install 'nowhere>=1.5'"),
    }


def test_a_package_that_cannot_be_imported_fails_with_the_reason(
    requires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise OSError("libtorch.so:\n no such file")

    requires(["torch>=2"], {"torch": "2.13"})
    monkeypatch.setattr(importlib, "import_module", broken)
    (check,) = doctor.packages()
    assert (check.status, check.found) == ("failed", "cannot be imported: OSError: libtorch.so: no such file")


def test_extras_say_how_to_install_what_is_missing_of_them(requires: Any) -> None:
    lines = ["numpy", "a; extra == 'some'", "b>=1; extra == 'more'", "c; extra == 'more'", "d; extra == 'most'"]
    lines += ["e<3,>=2; extra == 'most'"]
    requires(lines, {"a": "1.0", "c": "2.0"}, ["dev", "some", "more", "most"])
    assert list(doctor.extras()) == [
        doctor.Check("[more]", "note", "b not installed", "pip install 'b>=1'"),
        doctor.Check("[most]", "note", "d, e not installed", "pip install d 'e<3,>=2'"),
        doctor.Check("[some]", "ok", "a 1.0"),
    ]


def test_it_is_looked_up_by_the_name_that_it_is_installed_by() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == doctor.DISTRIBUTION


def test_without_an_installation_requirements_are_unknown_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISTRIBUTION", "nothing-is-called-this")
    assert [check.status for check in doctor.packages()] == ["note"]
    assert list(doctor.extras()) == []


def test_without_an_installation_the_stages_are_those_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever directory they run in, and with what the user's PYTHONPATH adds."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "words.py").write_text("WORDS = 'the one beside it'\n")
    package = tmp_path / "checkout" / "primecli"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("from words import WORDS\nraise SystemExit(WORDS)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    monkeypatch.setattr(doctor, "DISTRIBUTION", "nothing-is-called-this")
    monkeypatch.setattr(doctor, "__file__", str(package / "doctor.py"))
    problem = doctor.run_pipeline([["stats"]], tmp_path / "elsewhere", 60)
    assert problem == "stats ended with exit code 1: the one beside it"


@pytest.mark.parametrize(
    ("threads", "status", "hint"),
    [(None, "note", "OMP_NUM_THREADS=1"), ("1", "ok", None), ("64", "note", "export OMP_NUM_THREADS=4")],
)
def test_threads_that_would_fight_for_cores_are_noted(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, status: str, hint: str | None
) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    (check,) = doctor.processor()
    assert (check.status, check.hint is None) == (status, hint is None)
    assert (hint or "") in (check.hint or "")


def test_cores_are_those_that_the_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for text, cores in (("400000 100000", 4), ("50000 100000", 1), ("max 100000", 64), ("", 64)):
        monkeypatch.setattr(doctor, "_read", lambda _, text=text: text)
        assert doctor.usable_cores() == cores


def test_little_memory_is_noted_and_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal:  67108864 kB\nMemAvailable:   33554432 kB", "/sys/fs/cgroup/memory.max": "max"}
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    assert list(doctor.memory()) == [doctor.Check("memory", "ok", "32.0 GiB free of 64.0")]
    files |= {"/sys/fs/cgroup/memory.max": str(8 << 30), "/sys/fs/cgroup/memory.current": str(5 << 30)}
    (check,) = doctor.memory()
    assert (check.status, check.found) == ("note", "3.0 GiB free of the container's 8.0")


def test_a_missing_sandbox_is_noted_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    process.bwrap_problem.cache_clear()
    (check,) = doctor.sandbox()
    assert (check.status, check.found) == ("note", "bwrap is not installed")
    assert process.INSTALL in str(check.hint)


def test_a_sandbox_that_the_kernel_refuses_says_what_refuses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    process.bwrap_problem.cache_clear()
    files = {"/proc/sys/user/max_user_namespaces": "0"}
    monkeypatch.setattr(doctor, "_read", lambda path: files.get(path, ""))
    (check,) = doctor.sandbox()
    assert (check.status, "No permissions to create new namespace" in check.found) == ("note", True)
    assert "sysctl user.max_user_namespaces" in str(check.hint)


def test_a_pipeline_that_fails_names_the_stage_and_its_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1", "answer": "1"}\n')
    stages = [["verify", "nothing-there"], ["filter"], ["stats"]]
    problem = doctor.run_pipeline(stages, tmp_path, 120)
    assert problem is not None
    assert problem.startswith("verify ended with exit code 3: primecli verify: nothing-there: no such file")


def test_a_pipeline_that_hangs_is_ended(tmp_path: Path) -> None:
    """`stats` waits for a reader of a named pipe that never writes."""
    os.mkfifo(tmp_path / "rollouts-00000-of-00001.parquet")
    problem = doctor.run_pipeline([["stats", "rollouts-00000-of-00001.parquet"]], tmp_path, 3)
    assert problem == "stats had not ended after 3 s"
