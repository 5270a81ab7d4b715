"""Write a screen of `primecli inspect` as an SVG: a right and a wrong response of one group, by process reward.

Takes the group of the wrong response with the lowest score, so that there is something to see.

Example:
    python examples/arithmetic/inspect_svg.py work/rloo-process-seed0/1/score-prm ../../docs/inspect.svg
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 104


def inspect(*arguments: str, **environment: str) -> str:
    """What `primecli inspect` prints."""
    command = [sys.executable, "-m", "primecli", "inspect", *arguments]
    settings = {**os.environ, "COLUMNS": str(WIDTH), **environment}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("out", type=Path, metavar="SVG")
    arguments = parser.parse_args()
    worst = json.loads(inspect(arguments.shards, "--verdict", "wrong", "--sort", "reward", "--ascending", "--json"))
    options = [arguments.shards, "--group", worst["group_id"], "--side-by-side"]
    colours = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "NO_COLOR": ""}
    screen = inspect(*options, **colours)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(screen))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        console.save_svg(str(arguments.out), title=f"primecli inspect {' '.join(options[1:])}")


if __name__ == "__main__":
    main()
