"""Draw the picture of `primecli inspect` in docs/inspecting.md: a wrong response beside a right one of its group.

Runs the command on the shards of an iteration, as in a true-colour terminal, and writes its output as SVG.

Example:
    python examples/arithmetic/inspect_svg.py work/rloo-process-seed0/1/score-prm ../../docs/inspect.svg
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

DARK = TerminalTheme(
    (22, 24, 29),
    (214, 217, 224),
    [
        (22, 24, 29),
        (229, 83, 75),
        (87, 171, 90),
        (198, 144, 38),
        (83, 155, 245),
        (176, 131, 240),
        (57, 197, 207),
        (144, 157, 171),
    ],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS")
    parser.add_argument("out", type=Path, metavar="SVG")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--options", default="--side-by-side", help="options of inspect  [default: --side-by-side]")
    arguments = parser.parse_args()
    words = ["inspect", arguments.shards, *shlex.split(arguments.options)]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    environment["COLUMNS"] = str(arguments.width)
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "primecli", *words, "--theme", "dark"]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    console = Console(record=True, width=arguments.width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown.rstrip("\n")), soft_wrap=True)
    svg = console.export_svg(title=shlex.join(["primecli", *words]), theme=DARK)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # no fonts from a server: the viewer's own will do
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(svg, encoding="utf-8")
    print(f"{arguments.out}: {len(svg) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
