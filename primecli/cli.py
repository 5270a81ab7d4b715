"""The command line: registers the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import Annotated, Any

import typer

from primecli import __version__
from primecli.commands.compute_advantages import compute_advantages
from primecli.commands.filter import filter_
from primecli.commands.generate import generate
from primecli.commands.score_prm import score_prm
from primecli.commands.update_policy import update_policy
from primecli.commands.update_prm import update_prm
from primecli.commands.verify import verify
from primecli.commands.warm import warm
from primecli.errors import Interrupted, PrimecliError

app = typer.Typer(
    name="primecli",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)

COMMANDS: dict[str, Any] = {
    "generate": generate,
    "verify": verify,
    "filter": filter_,
    "score-prm": score_prm,
    "update-prm": update_prm,
    "compute-advantages": compute_advantages,
    "update-policy": update_policy,
    "warm": warm,
}

for _name, _command in COMMANDS.items():
    app.command(_name, short_help=(_command.__doc__ or "").partition("\n")[0])(_command)


def _print_version(value: bool) -> None:
    if value:
        print(f"primecli {__version__}")
        raise typer.Exit


@app.callback()
def primecli(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="PRIMECLI_DEBUG", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """Reinforcement learning of language models with implicit process rewards (PRIME), as a shell pipeline.

    Each stage reads Parquet rollout shards and writes Parquet rollout shards. Their paths go through the pipe;
    words go to stderr. One online iteration:

    \b
      primecli generate --model ckpt/policy/0 --prompts train.jsonl --step 1 --batch-prompts 256 \\
          --out runs/1/generate \\
        | primecli verify \\
        | primecli filter --accuracy 0.2 0.8 --groups 64 \\
        | primecli update-prm --prm ckpt/prm/0 --ref ckpt/sft --checkpoint ckpt/prm/1 \\
        | primecli score-prm --prm ckpt/prm/1 --ref ckpt/sft \\
        | primecli compute-advantages \\
        | primecli update-policy --policy ckpt/policy/0 --checkpoint ckpt/policy/1

    A stage that is run again skips what is done. Exit codes: 0 done; 1 failed; 2 usage; 3 the input is corrupt,
    incomplete or lacks columns; 4 too many rows quarantined; 5 a gate was not met; 130 interrupted.
    """


_interrupted: dict[int, float] = {}  # when a signal last came
TWICE_SECONDS = 1.0


def _interrupt(number: int, frame: FrameType | None) -> None:
    before, _interrupted[number] = _interrupted.get(number), time.monotonic()
    if before is not None and time.monotonic() - before < TWICE_SECONDS:
        return  # timeout(1) signals a process and then its group; so may a front process of `primecli warm`
    raise Interrupted(f"interrupted by {signal.Signals(number).name} (run the same command again to go on)")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs one command; returns its exit code. Errors are one line on stderr."""
    debug = "--debug" in arguments or os.environ.get("PRIMECLI_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    name = " ".join(["primecli", *arguments[:1]]) if arguments and arguments[0] in COMMANDS else "primecli"
    _interrupted.clear()
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        result = app(args=arguments, prog_name="primecli", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except PrimecliError as error:
        return _report(name, error, error.exit_code, debug)
    except typer.Exit as error:
        return error.exit_code
    except (Interrupted, KeyboardInterrupt) as error:
        return _report(name, error, Interrupted.exit_code, debug, str(error) or "interrupted")
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # Typer's usage errors
            return _report(name, error, 2, debug, f"{error.format_message()} (see `{name} --help`)")
        text = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return _report(name, error, 1, debug, f"{text} (a defect of primecli: please report it, with --debug)")


def _report(name: str, error: BaseException, code: int, debug: bool, text: str | None = None) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    line = " ".join((text or str(error)).split())
    print(f"{name}: {line}", file=sys.stderr, flush=True)
    return code
