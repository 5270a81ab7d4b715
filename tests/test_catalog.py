"""The catalog names every command, and nothing else does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import grimp
import pytest

import primecli
from primecli.catalog import COMMANDS, NAMES, SHARD_STAGES, STAGES, Command, command
from primecli.options import declarations
from primecli.setup.command_line import options_type

PACKAGE = Path(primecli.__file__).parent


def test_every_command_has_a_file_and_every_file_a_command() -> None:
    files = {path.stem for path in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
    assert files == {one.module for one in COMMANDS}


@pytest.mark.parametrize("one", [one for one in COMMANDS if one.writes], ids=lambda one: one.name)
def test_every_stage_has_a_file_with_a_function_of_its_options(one: Command) -> None:
    stage = import_module(f"primecli.stages.{one.module}")
    function = getattr(stage, one.module)
    kind = options_type(function)
    assert kind is options_type(getattr(import_module(f"primecli.commands.{one.module}"), one.module))
    assert kind is not None
    assert kind.__module__ == stage.__name__


@pytest.mark.parametrize("one", [one for one in COMMANDS if one.writes], ids=lambda one: one.name)
def test_the_models_of_a_stage_are_recorded_under_the_names_that_the_catalog_has(one: Command) -> None:
    kind = options_type(getattr(import_module(f"primecli.stages.{one.module}"), one.module))
    assert kind is not None
    declared = declarations(kind)
    for recorded in one.models.values():
        assert recorded.removesuffix("_model") in declared


def test_stages_are_in_the_order_of_an_iteration() -> None:
    assert STAGES.index("update-prm") == STAGES.index("score-prm") - 1  # so that rewards come from the updated PRM
    assert ["import", *(stage for stage in STAGES if not stage.startswith("update-"))] == list(SHARD_STAGES)
    assert STAGES[-1] == "update-policy"


def test_names_are_found_and_others_are_not() -> None:
    assert [one.name for one in COMMANDS] == list(NAMES)
    found = command("update-critic")
    assert found is not None
    assert (found.module, found.trains, found.forked) == ("update_critic", "critic", True)
    assert command("verl") is None
    forked = {one.name for one in COMMANDS if one.forked}
    assert forked == {*STAGES, "import", "check-logprobs"}


def test_forked_commands_have_a_stage_and_those_with_torch_import_it() -> None:
    graph = grimp.build_graph("primecli", include_external_packages=True)
    modules = {each.name: f"primecli.stages.{each.module}" for each in COMMANDS}
    forked = {each.name for each in COMMANDS if each.forked}
    assert forked == {name for name, module in modules.items() if module in graph.modules}
    needs_torch = {name for name in forked if graph.chain_exists(importer=modules[name], imported="torch")}
    assert needs_torch == {each.name for each in COMMANDS if each.torch}
