"""The parts of README.md, CONTRIBUTING.md and docs/ that come from the code; `make docs` writes them.

- docs/columns.md, docs/cli.md and docs/inspect.svg, whole.
- `console` blocks: each line that begins with `$ ` is run in bash, in a copy of the run of `docs_run.py`, and its
  output is written below it. Likewise a `python` block and the `text` block that directly follows it. A `python` block
  that begins with a file name, as in `# my_verifier.py`, is not run but saved under that name, for later commands.

`sh` blocks are not run. Tests check their commands against the command line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from primecli.catalog import NAMES
from primecli.shards import schema
from tests.docs_run import make_docs_run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
WIDTH = "100"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
PROMPT = "$ "
FILE_NAME = re.compile(r"# (\w+\.py)\n")
PICTURE = DOCS / "inspect.svg"


class Block(NamedTuple):
    """A fenced block of a page: its language ("" without one), its text, and where that begins and ends in the page."""

    language: str
    text: str
    start: int
    end: int


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order.

    >>> [block[:2] for block in blocks("# A\\n\\n```sh\\nls\\n```\\n")]
    [('sh', 'ls\\n')]
    """
    for match in BLOCK.finditer(page):
        yield Block(match[1], match[2], match.start(2), match.end(2))


def columns_page() -> str:
    """docs/columns.md."""
    return f"""# What columns does a shard have?

<!-- Written by `make docs` from primecli/shards/schema.py. -->

```console
$ primecli query runs/1/compute-advantages \\
    "SELECT sample_index, extracted_answer, verdict, outcome_reward, list_min(process_rewards) AS lowest \\
     FROM rollouts LIMIT 4"
```

One row is one rollout: one response to one prompt. A stage keeps every column it was given and adds its own, so the
last shards of an iteration hold all of them. "null" marks a column that may be null. Every `list` but `prompt_ids`
and `step_ends` has one value per token of `response_ids`. Log-probabilities and process rewards are in nats.

{schema.markdown_table()}"""


def help_page(name: str) -> str:
    """A help page as docs/cli.md has it: 100 columns wide. name: of a command, or primecli."""
    command = [sys.executable, "-m", "primecli", *([] if name == "primecli" else [name]), "--help"]
    environment = {**os.environ, "COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def command_line_page() -> str:
    """docs/cli.md."""
    parts = [
        "# Which options does a command have?\n",
        "<!-- Written by `make docs` from the help pages. -->\n",
        "`primecli COMMAND --help` prints these pages.\n",
    ]
    for name in ("primecli", *NAMES):
        title = name if name == "primecli" else f"primecli {name}"
        parts.append(f"## {title}\n\n```text\n{help_page(name)}```\n")
    return "\n".join(parts)


def picture(directory: Path) -> str:
    """docs/inspect.svg, of a run of `make_docs_run`."""
    script = ROOT / "examples" / "arithmetic" / "inspect_svg.py"
    _run([sys.executable, str(script), "runs/1/score-prm", "inspect.svg"], directory)
    return (directory / "inspect.svg").read_text(encoding="utf-8")


def stable(text: str) -> str:
    """Output without what differs from one run to the next: times, durations, content hashes, blanks at line ends.

    >>> stable("12 rows, 0.3 s, 2026-01-02T03:04:05+00:00  (d9f139859976)  ")
    '12 rows, SECONDS, TIME  (HASH)'
    """
    text = re.sub(r"\d+(\.\d+)? s\b", "SECONDS", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+\d\d:\d\d", "TIME", text)
    text = re.sub(r"\((?=[0-9a-f]*\d)[0-9a-f]{12}\b", "(HASH", text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def commands_of(block: str) -> list[str]:
    r"""The commands of a console block, each with the lines that it goes on over.

    >>> commands_of("$ a \\\n    b\nprinted\n$ c\n")
    ['a \\\n    b', 'c']
    """
    found: list[str] = []
    goes_on = False
    for line in block.splitlines():
        if goes_on:
            found[-1] += "\n" + line
        elif line.startswith(PROMPT):
            found.append(line.removeprefix(PROMPT))
        else:
            continue
        goes_on = line.endswith("\\")
    return found


def run_console(block: str, directory: Path) -> str:
    """A console block with what its commands print now, in `directory`."""
    parts = []
    for command in commands_of(block):
        printed = _run(["bash", "-o", "pipefail", "-c", command], directory)
        parts.append(f"{PROMPT}{command}\n{printed}")
    return "".join(parts)


def _run(command: list[str], directory: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRIMECLI_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": WIDTH, "NO_COLOR": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{directory}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def refreshed(page: str, made: Path, scratch: Path) -> str:
    """A page with its printed parts as they are now; what differs in times alone stays as it stands.

    made: a run of `make_docs_run`. It is copied to `scratch` first, so that what one page does is not seen by another.
    """
    found = list(blocks(page))
    if any(block.language in ("console", "python") for block in found):
        shutil.copytree(made, scratch)
    parts, done = [], 0
    for number, block in enumerate(found):
        if block.language == "console":
            new = run_console(block.text, scratch)
            where = block
        elif block.language == "python" and (name := FILE_NAME.match(block.text)):
            (scratch / name[1]).write_text(block.text, encoding="utf-8")
            continue
        elif block.language == "python":
            new = _run([sys.executable, "-c", block.text], scratch)
            where = found[number + 1]
            assert page[block.end : where.start] == "```\n\n```text\n", f"no output follows {block.text}"
        else:
            continue
        parts += [page[done : where.start], where.text if stable(where.text) == stable(new) else new]
        done = where.end
    return "".join([*parts, page[done:]])


def main() -> None:
    (DOCS / "cli.md").write_text(command_line_page(), encoding="utf-8")
    columns = DOCS / "columns.md"
    with tempfile.TemporaryDirectory() as directory:
        made = make_docs_run(Path(directory) / "made")
        for page in sorted({*PAGES, columns}):
            text = columns_page() if page == columns else page.read_text(encoding="utf-8")
            page.write_text(refreshed(text, made, Path(directory) / page.stem), encoding="utf-8")
        PICTURE.write_text(picture(made), encoding="utf-8")


if __name__ == "__main__":
    main()
