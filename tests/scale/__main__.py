"""Everything about many processes that takes too long for the suite, with real ranks, workers and Ray clusters.

python -m tests.scale                 # all parts, one after the other
python -m tests.scale workers         # one of them; each is also a program: python -m tests.scale.workers --help
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def parts() -> list[str]:
    """The modules beside this one that are programs."""
    modules = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return [path.stem for path in modules if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


def main() -> None:
    """Runs the parts; exits with 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts())}; all by default")
    failed = []
    for name in parser.parse_args().parts or parts():
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", f"tests.scale.{name}"], cwd=ROOT, check=False).returncode
        print(f"{name}: {'failed' if code else 'ok'}, {time.monotonic() - started:.0f} s", flush=True)
        if code:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
