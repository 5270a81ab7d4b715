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

from primecli.setup import doctor_checks
from primecli.setup.doctor_checks import Check
from primecli.verifiers.sandbox import process


@pytest.fixture(autouse=True)
def fresh_sandbox() -> Iterator[None]:
    """Forgets what a test made of the sandbox."""
    yield
    process.bwrap_problem.cache_clear()


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this installation require these lines, with the named distributions as the only installed ones."""

    class Installed:
        def __init__(self, lines: list[str], extras: Sequence[str]) -> None:
            self.requires = lines
            self.metadata = Message()
            for extra in extras:
                self.metadata["Provides-Extra"] = extra

    def make(lines: list[str], installed: dict[str, str], extras: Sequence[str] = ()) -> None:
        def version(name: str) -> str:
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(metadata, "distribution", lambda name: Installed(lines, extras))
        monkeypatch.setattr(metadata, "version", version)

    return make


def test_a_missing_or_outdated_package_fails_with_the_command_that_installs_it(requires: Any) -> None:
    lines = ["numpy>=2.0", "sympy<1.0", "nowhere>=1.5; python_version>='3'", "other>=1; extra == 'more'"]
    requires(lines, {"numpy": "2.4.6", "sympy": "1.14"})
    found = by_name(doctor_checks.packages())
    assert found == {
        "numpy": Check("numpy", "ok", "2.4.6"),
        "sympy": Check("sympy", "failed", "1.14, but <1.0 is required", "pip install 'sympy<1.0'"),
        "nowhere": Check("nowhere", "failed", "not installed", "pip install 'nowhere>=1.5'"),
    }


def test_a_package_that_cannot_be_imported_fails_with_the_reason(
    requires: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise OSError("libtorch.so:\n no such file")

    requires(["torch>=2"], {"torch": "2.13"})
    monkeypatch.setattr(importlib, "import_module", broken)
    (check,) = doctor_checks.packages()
    assert (check.status, check.found) == ("failed", "cannot be imported: OSError: libtorch.so: no such file")


def test_an_incomplete_extra_says_how_to_install_the_rest(requires: Any) -> None:
    lines = ["numpy", "a; extra == 'some'", "b>=1; extra == 'more'", "c; extra == 'more'", "d; extra == 'most'"]
    lines += ["e<3,>=2; extra == 'most'"]
    requires(lines, {"a": "1.0", "c": "2.0"}, ["dev", "some", "more", "most"])
    assert list(doctor_checks.extras()) == [
        Check("[more]", "note", "b not installed", "pip install 'b>=1'"),
        Check("[most]", "note", "d, e not installed", "pip install d 'e<3,>=2'"),
        Check("[some]", "ok", "a 1.0"),
    ]


def test_the_distribution_has_the_name_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == doctor_checks.DISTRIBUTION


def test_without_an_installation_a_note_says_that_requirements_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "DISTRIBUTION", "nothing-is-called-this")
    assert [check.status for check in doctor_checks.packages()] == ["note"]
    assert list(doctor_checks.extras()) == []


@pytest.mark.parametrize(
    ("threads", "status", "hint"),
    [(None, "note", "OMP_NUM_THREADS=1"), ("1", "ok", None), ("64", "note", "export OMP_NUM_THREADS=4")],
)
def test_too_many_threads_are_noted(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, status: str, hint: str | None
) -> None:
    monkeypatch.setattr(doctor_checks, "usable_cores", lambda: 4)
    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    (check,) = doctor_checks.processor()
    assert (check.status, check.hint is None) == (status, hint is None)
    assert (hint or "") in (check.hint or "")


def test_the_limit_of_the_container_counts_for_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for text, cores in (("400000 100000", 4), ("50000 100000", 1), ("max 100000", 64), ("", 64)):
        monkeypatch.setattr(doctor_checks, "kernel_file", lambda _, text=text: text)
        assert doctor_checks.usable_cores() == cores


def test_little_memory_is_noted_within_the_limit_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal:  67108864 kB\nMemAvailable:   33554432 kB", "/sys/fs/cgroup/memory.max": "max"}
    monkeypatch.setattr(doctor_checks, "kernel_file", lambda path: files.get(path, ""))
    assert list(doctor_checks.memory()) == [Check("memory", "ok", "32.0 GiB free of 64.0")]
    files |= {"/sys/fs/cgroup/memory.max": str(8 << 30), "/sys/fs/cgroup/memory.current": str(5 << 30)}
    (check,) = doctor_checks.memory()
    assert (check.status, check.found) == ("note", "3.0 GiB free of the container's 8.0")


def test_a_missing_sandbox_is_noted_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    process.bwrap_problem.cache_clear()
    (check,) = doctor_checks.sandbox()
    assert (check.status, check.found) == ("note", "bwrap is not installed")
    assert process.INSTALL in str(check.hint)


def test_a_sandbox_that_the_kernel_refuses_is_noted_with_the_setting_to_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    process.bwrap_problem.cache_clear()
    files = {"/proc/sys/user/max_user_namespaces": "0"}
    monkeypatch.setattr(doctor_checks, "kernel_file", lambda path: files.get(path, ""))
    (check,) = doctor_checks.sandbox()
    assert (check.status, "No permissions to create new namespace" in check.found) == ("note", True)
    assert "sysctl user.max_user_namespaces" in str(check.hint)


def test_the_backend_of_collectives_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (check,) = doctor_checks.collectives()
    assert (check.status, check.found) == ("ok", "gloo, between processes on the CPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    (check,) = doctor_checks.collectives()
    assert (check.status, "this torch has no NCCL" in check.found) == ("note", True)


def test_ray_is_named_with_its_version_or_the_command_that_installs_it(requires: Any) -> None:
    requires([], {"ray": "2.60.0"})
    assert list(doctor_checks.ray_cluster()) == [Check("ray", "ok", "2.60.0, for --ray")]
    requires([], {})
    (check,) = doctor_checks.ray_cluster()
    assert (check.status, check.hint) == ("note", "pip install ray")
