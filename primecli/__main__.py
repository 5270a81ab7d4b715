"""What the shell starts, as `primecli` and as `python -m primecli`."""

from __future__ import annotations

import os
import sys

from primecli.warm import VARIABLE


def main() -> None:
    """Runs the command line and exits with its code."""
    if os.environ.get(VARIABLE):
        from primecli import warm_front  # before all that is slow to import

        code = warm_front.run(sys.argv[1:])
        if code is not None:
            sys.exit(code)
    from primecli.ending import QuickEnd

    ending = QuickEnd()
    from primecli import cli

    ending.code = cli.run(sys.argv[1:])
    sys.exit(ending.code)


if __name__ == "__main__":
    main()
