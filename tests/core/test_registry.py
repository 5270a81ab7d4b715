"""Names to functions: what the command line offers exists."""

from __future__ import annotations

import subprocess
import sys

import pytest

from primecli.core import advantages, process_rewards
from primecli.core.registry import (
    ESTIMATORS,
    PROCESS_FORMS,
    WHITENED,
    WITHOUT_BASELINE,
    choices_help,
    estimator,
    process_form,
)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_a_function_of_core(name: str) -> None:
    function = estimator(name)
    assert function.__module__ == advantages.__name__
    assert function.__doc__


@pytest.mark.parametrize("name", PROCESS_FORMS)
def test_every_form_is_a_function_of_core(name: str) -> None:
    function = process_form(name)
    assert function.__module__ == process_rewards.__name__
    assert function.__doc__


def test_what_is_said_of_estimators_is_said_of_existing_ones() -> None:
    assert {*WHITENED, *WITHOUT_BASELINE} <= {*ESTIMATORS}


def test_the_help_names_each_once() -> None:
    text = choices_help(ESTIMATORS)
    assert [part.split(": ")[0].strip() for part in text.split(";")] == list(ESTIMATORS)


def test_the_names_cost_no_import_of_torch() -> None:
    script = "import sys; import primecli.core.registry; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
