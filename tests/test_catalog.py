from __future__ import annotations

import grimp

from primecli.catalog import COMMANDS


def test_commands_are_forked_if_they_run_a_stage_and_need_torch_if_they_import_it() -> None:
    graph = grimp.build_graph("primecli", include_external_packages=True)
    modules = {command.name: f"primecli.commands.{command.module}" for command in COMMANDS}
    stages = {module for module in graph.modules if module.startswith("primecli.stages.")}
    runs_stage = {name for name, module in modules.items() if graph.find_modules_directly_imported_by(module) & stages}
    assert runs_stage == {command.name for command in COMMANDS if command.forked}
    needs_torch = {name for name in runs_stage if graph.chain_exists(importer=modules[name], imported="torch")}
    assert needs_torch == {command.name for command in COMMANDS if command.torch}
