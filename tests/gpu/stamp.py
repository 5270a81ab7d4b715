"""Passes lines on, and writes down when the first and the end of them came: python -S stamp.py FILE. Imports little."""

import sys
import time


def main() -> None:
    """Copies stdin to stdout; FILE gets a line for the first line and one for the end, seconds since 1970."""
    with open(sys.argv[1], "w") as times:
        first = True
        for line in sys.stdin:
            if first:
                times.write(f"first {time.time()}\n")
                times.flush()
                first = False
            sys.stdout.write(line)
            sys.stdout.flush()
        times.write(f"end {time.time()}\n")


if __name__ == "__main__":
    main()
