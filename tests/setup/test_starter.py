"""Whether what `primecli init` writes fits together: options that exist, a Makefile that passes the others, prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from primecli import cli
from primecli.catalog import STAGES
from primecli.errors import UsageError
from primecli.setup import starter
from primecli.setup.config import SHARED, options, read_config
from tests.builders import rollout, write_shards
from tests.conftest import read_rows

COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]


def test_every_option_of_the_loop_is_in_the_file_or_passed_by_the_makefile() -> None:
    text = starter.options_file(COMMANDS)
    shared, *sections = re.split(r"^\[(.+)\]$", text, flags=re.MULTILINE)
    assert tuple(sections[::2]) == STAGES
    given = r"^# ([a-z-]+) ="
    assert set(re.findall(given, shared, flags=re.MULTILINE)) == set(SHARED) - {"seed"}
    for stage, body in zip(sections[::2], sections[1::2], strict=True):
        names = re.findall(given, body, flags=re.MULTILINE)
        wired = starter.WIRED.get(stage, frozenset())
        assert sorted([*names, *wired, *starter.OF_ONE_CALL & set(options(COMMANDS[stage]))]) == sorted(
            {*options(COMMANDS[stage])} - ({*SHARED} - wired)
        )


def test_uncommenting_every_option_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "primecli.toml"
    file.write_text(starter.options_file(COMMANDS))
    assert not any(read_config(file, COMMANDS).values())
    file.write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", file.read_text(), flags=re.MULTILINE))
    config = read_config(file, COMMANDS)  # raises for an unknown name and a wrong type
    assert sum(map(len, config.values())) > 60
    for stage in STAGES:
        for option in options(COMMANDS[stage]).values():
            if option.name in config[stage]:
                value, _ = config[stage][str(option.name)]
                default = getattr(option.default, "value", option.default)
                assert value == (list(default) if isinstance(default, tuple) else default or value)


def test_the_makefile_passes_the_options_that_the_file_leaves_out() -> None:
    text = (Path(starter.__file__).parent / "Makefile").read_text()
    for name in ("sampling", "logs", "shared"):
        (value,) = re.findall(rf"^{name} +:?= (.*)$", text, flags=re.MULTILINE)
        text = text.replace(f"$({name})", value)
    given: dict[str, set[str]] = {}
    for part in text.split("$(PRIMECLI) ")[1:]:
        stage, _, rest = part.partition(" ")
        given.setdefault(stage.split("\n")[0], set()).update(re.findall(r"--([a-z-]+)", rest.partition("\n\n")[0]))
    given["compute-advantages"].remove("process-coef")  # only without a PRM
    for stage in STAGES:
        assert given.get(stage, set()) - {"out"} == starter.WIRED.get(stage, set()), stage
        assert given.get(stage, set()) <= set(options(COMMANDS[stage]))


def test_the_example_prompts_are_graded_correctly(tmp_path: Path, primecli: Any) -> None:
    from primecli.generation.prompts import PromptColumns, read_prompts

    examples = starter.contents(COMMANDS, None, None)
    for name in (starter.PROMPTS, starter.HELDOUT):
        (tmp_path / name).write_text(examples[name])
    prompts = read_prompts([tmp_path / starter.PROMPTS, tmp_path / starter.HELDOUT], PromptColumns())
    assert {prompt.ability for prompt in prompts} == {"math", "code"}
    product = "a, b = map(int, input().split())\nprint(a * b)"
    programs = iter(["print(sum(map(int, input().split())))", "def double(x):\n    return x + x", product])
    rows = []
    for number, prompt in enumerate(prompts):
        right = rf"\boxed{{{prompt.ground_truth}}}" if prompt.ability == "math" else f"```python\n{next(programs)}\n```"
        for index, response in enumerate([right, r"\boxed{99999}"]):
            columns = {"response": response, "ground_truth": prompt.ground_truth, "ability": prompt.ability}
            rows.append(rollout(number, index, 2, **columns))
    (shard,) = primecli("verify", write_shards(tmp_path / "in", rows), "--sandbox", "limits", "--force").paths
    assert [row["outcome_reward"] for row in read_rows(shard)] == [1.0, 0.0] * len(prompts)


def test_a_name_that_make_cannot_handle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    with pytest.raises(UsageError, match="make cannot handle this name"):
        starter.contents(COMMANDS, str(tmp_path / "my model"), None)


def test_the_readme_lists_the_columns_of_the_examples() -> None:
    readme = starter.contents(COMMANDS, None, None)["README.md"]
    rows = starter.contents(COMMANDS, None, None)[starter.PROMPTS].splitlines()
    for column in {name for row in rows for name in json.loads(row)} - {"reward_model"}:
        assert f"| `{column}` |" in readme
    assert "| `reward_model.ground_truth` |" in readme
