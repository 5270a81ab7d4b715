"""Runs command lines one after the other in the ranks of one launcher, which start only once.

    python -m tests.in_ranks 2 commands.json

The file holds a list of lists of words. Prints the exit codes of rank 0 as JSON, on the last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_in_ranks(world: int, commands: Sequence[Sequence[object]], *, timeout: float = 600) -> list[int]:
    """The exit codes, at rank 0, of commands that run in this many ranks, with nothing on stdin."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "commands.json"
        path.write_text(json.dumps([[str(word) for word in command] for command in commands]))
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world), "--master-port", "0",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1",
             "-m", "tests.in_ranks", str(path)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Runs the commands of the file as one of the ranks."""
    from primecli import cli

    codes = [cli.run(command) for command in json.loads(Path(sys.argv[1]).read_text())]
    if os.environ["RANK"] == "0":
        print(json.dumps(codes))


if __name__ == "__main__":
    main()
