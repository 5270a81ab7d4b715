"""The entry points: `primecli` and `python -m primecli` start here, and so does the helper of `primecli warm`."""

from __future__ import annotations

import os
import sys

from primecli.warm.protocol import VARIABLE


def main() -> None:
    """Runs the command line and exits with its code."""
    open_missing_descriptors()
    if os.environ.get(VARIABLE):
        from primecli.warm import front  # before importing anything slow

        code = front.run(sys.argv[1:])
        if code is not None:
            sys.exit(code)
    from primecli.warm.quick_exit import QuickExit

    quick_exit = QuickExit()
    from primecli import cli

    quick_exit.code = cli.run(sys.argv[1:])
    sys.exit(quick_exit.code)


def open_missing_descriptors() -> None:
    """Opens /dev/null as each of stdin, stdout and stderr that is closed.

    The next file or pipe to be opened would get the number, and with it what libraries and child processes write there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # the copy is inherited, as standard streams are
            if null != number:
                os.close(null)
            else:
                os.set_inheritable(number, True)
    if sys.stderr is None:  # `print` would write to stdout instead
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def serve() -> None:
    """Runs the helper of `primecli warm`; each child that it forks runs a command line."""
    from primecli.warm import helper

    def import_primecli() -> None:
        from primecli import cli

        cli.import_stages()

    def run(arguments: list[str]) -> int:
        from primecli import __main__, cli

        sys.modules["__main__"] = __main__  # where multiprocessing looks to start further processes
        return cli.run(arguments)

    helper.main(import_primecli, run)


if __name__ == "__main__":
    main()
