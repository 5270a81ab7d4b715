"""The command line: registers the commands, and turns an error into one line and an exit code."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, Optional

import typer
from typer.main import get_command

from primecli import __version__, catalog
from primecli.errors import Interrupted, NothingCameError, PrimecliError, ReaderClosed, UsageError, is_out_of_memory
from primecli.parallel import ranks
from primecli.pipeline import pipe
from primecli.printable import clipped, one_line
from primecli.setup import config
from primecli.setup.command_line import typer_function
from primecli.warm.protocol import first_word

SETTINGS: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


class Commands(Mapping[str, Any]):
    """The commands of the catalog as Typer commands, by name; each is imported and built when it is looked up."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            command = catalog.command(name)
            if command is None:
                raise KeyError(name)
            function = getattr(import_module(f"primecli.commands.{command.module}"), command.module)
            single = typer.Typer(add_completion=False, **SETTINGS)
            page = f"{command.summary}\n\n{inspect.cleandoc(function.__doc__ or '')}"
            single.command(name, cls=config.Command, help=page, short_help=command.summary)(typer_function(function))
            self._built[name] = get_command(single)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return (command.name for command in catalog.COMMANDS)

    def __len__(self) -> int:
        return len(catalog.COMMANDS)


class Group(config.Group):
    """The group of all commands, which is `primecli` itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of the catalog."""
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands in `primecli --help`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.summary) for command in catalog.COMMANDS])


app = typer.Typer(
    name="primecli",
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
    **SETTINGS,
)


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
        bool, typer.Option("--debug", envvar="PRIMECLI_DEBUG", help="Show tracebacks; works anywhere.")
    ] = False,
    config_file: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--config",
            metavar="FILE.toml",
            envvar="PRIMECLI_CONFIG",
            help="Read options from this file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Reinforcement learning of language models with implicit process rewards (PRIME), as a shell pipeline.

    Each stage reads Parquet rollout shards and writes Parquet rollout shards. Only their paths go through the pipe;
    messages go to stderr. One online iteration:

    \b
      primecli generate --model ckpt/policy/0 --prompts train.jsonl --step 1 --batch-prompts 256 \\
          --out runs/1/generate \\
        | primecli verify \\
        | primecli filter --accuracy 0.2 0.8 --groups 64 \\
        | primecli update-prm --prm ckpt/prm/0 --ref ckpt/sft --checkpoint ckpt/prm/1 \\
        | primecli score-prm --prm ckpt/prm/1 --ref ckpt/sft \\
        | primecli compute-advantages \\
        | primecli update-policy --policy ckpt/policy/0 --checkpoint ckpt/policy/1

    Options can also come from environment variables, such as PRIMECLI_UPDATE_POLICY_LR for update-policy --lr, or from
    a TOML file, with --config before or after the command. The file has a section for each command:

    \b
      seed = 1                  # for all commands: beta, device, dtype, quiet, seed and threads
      [filter]
      accuracy = [0.2, 0.8]
      [update-policy]
      lr = 5e-7

    The command line takes precedence over the environment, and the environment over the file.

    A stage that is run again skips what is done. Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the input is corrupt,
    incomplete or lacks columns; 4 too many rows quarantined; 5 a condition you set was not met; 130 interrupted.
    """


OUTSIDE = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENFILE,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
    }
)
"""Errors of the operating system that say something about the machine or a path, wherever they come up."""

_interrupted: dict[int, float] = {}  # when each signal last came, by its number
TWICE_SECONDS = 1.0  # a signal that comes again within this time is the same interruption


def _interrupt(number: int, frame: FrameType | None) -> None:
    previous, _interrupted[number] = _interrupted.get(number), time.monotonic()
    if previous is not None and time.monotonic() - previous < TWICE_SECONDS:
        return  # timeout(1) signals a process and then its group; so may a front process of `primecli warm`
    raise Interrupted.by_signal(signal.Signals(number).name)


@functools.cache
def built_app() -> Any:
    """The Typer application as a command, built once."""
    return get_command(app)


IMPORTED_AHEAD = ("core", "shards", "pipeline", "models", "training", "generation", "stages")
"""The packages from which `import_stages` imports every module."""


def import_stages() -> None:
    """Imports and builds everything of primecli that forked commands need, for the helper of `primecli warm`."""
    for package in IMPORTED_AHEAD:
        for module in pkgutil.iter_modules(import_module(f"primecli.{package}").__path__):
            import_module(f"primecli.{package}.{module.name}")
    for name in (
        "generation.engines.hf",
        "generation.engines.policy_info",
        "verifiers.math.verifier",
        "verifiers.pool",
    ):
        import_module(f"primecli.{name}")
    for command in catalog.COMMANDS:
        if command.forked:
            built_app().commands[command.name]  # builds the command: Typer inspects the types of its options


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs one command, and returns its exit code. An error is one line on stderr."""
    debug = "--debug" in arguments or os.environ.get("PRIMECLI_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    name = " ".join(["primecli", *_command_of(arguments)])
    debug_variable = os.environ.get("PRIMECLI_DEBUG")
    if os.environ.get("_PRIMECLI_COMPLETE"):
        os.environ["COLUMNS"] = "1000"  # Typer wraps descriptions at this width, and shells complete with each line
    _interrupted.clear()
    try:
        os.environ["PRIMECLI_DEBUG"] = "1" if debug else ""  # for the processes that the command starts
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup(1) ignores it
            signal.signal(signal.SIGHUP, _interrupt)  # the terminal has gone
        with pipe.guarded_streams():
            code = _code_of(name, arguments, debug)
            return _last_flush(name, code, debug)
    finally:
        if debug_variable is None:
            os.environ.pop("PRIMECLI_DEBUG", None)
        else:
            os.environ["PRIMECLI_DEBUG"] = debug_variable


def _code_of(name: str, arguments: list[str], debug: bool) -> int:
    """Runs a command line and reports its error; returns the exit code."""
    try:
        _check_utf8(arguments)
        result = built_app()(args=arguments, prog_name="primecli", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ReaderClosed:  # the reader has seen enough
        return 0
    except NothingCameError as error:
        pipe.mark_said()
        ranks.report_failure("", error.exit_code, lost=False)
        return error.exit_code
    except PrimecliError as error:
        return _report(name, error, error.exit_code, debug)
    except typer.Exit as error:
        return error.exit_code
    except (Interrupted, KeyboardInterrupt) as error:
        return _report(name, error, Interrupted.exit_code, debug, str(error) or "interrupted")
    except OSError as error:
        text = _of_memory(error) or _outside(error)
        return _report_bug(name, error, debug) if text is None else _report(name, error, 1, debug, text)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # Typer's usage errors
            text = f"{config.origin(error)}{error.format_message()} (see `{name} --help`)"
            return _report(name, error, 2, debug, text)
        text = _of_memory(error)
        return _report_bug(name, error, debug) if text is None else _report(name, error, 1, debug, text)


def _of_memory(error: BaseException) -> str | None:
    """What an error says about a lack of memory; None where it is none."""
    if not is_out_of_memory(error):
        return None
    reason = str(error) and f": {clipped(str(error))}"
    return f"out of memory{reason} (free some memory, or raise the limit that `ulimit -v` shows)"


def _outside(error: OSError) -> str | None:
    """What an error says about the machine or a path; None where it can only be a bug."""
    if "No usable temporary directory" in str(error):  # of tempfile, which has tried them all
        return f"{error.strerror} (free some space, or set TMPDIR to a directory that can be written)"
    if error.errno not in OUTSIDE:
        return None
    where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{where}{os.strerror(error.errno)}"


def _report_bug(name: str, error: BaseException, debug: bool) -> int:
    text = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return _report(name, error, 1, debug, f"{text} (a bug in primecli: please report it, with the output of --debug)")


def _check_utf8(arguments: Sequence[str]) -> None:
    """Raises UsageError for a word that is not UTF-8: commands and paths are recorded as text, and DuckDB wants it."""
    variables = {name: value for name, value in os.environ.items() if name.startswith(f"{config.PREFIX}_")}
    for what, word in [*(("", word) for word in arguments), *variables.items()]:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{what or word}: has bytes that are not UTF-8", "rename the file") from None


def _last_flush(name: str, code: int, debug: bool) -> int:
    """Flushes stdout, and returns the exit code: that of an earlier error, if there was one."""
    try:
        sys.stdout.flush()
    except ReaderClosed:
        return code
    except PrimecliError as error:
        return _report(name, error, code or error.exit_code, debug)
    return code


def _command_of(arguments: list[str]) -> list[str]:
    """The name of the command, for error messages; empty if there is none."""
    word = first_word(arguments)
    return [word] if catalog.command(word) else []


def _report(name: str, error: BaseException, code: int, debug: bool, text: str | None = None) -> int:
    """Writes an error to stderr as one line, after its traceback if `debug`; returns the exit code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    words = text or str(error)
    if not ranks.report_failure(words, code, lost=isinstance(error, ranks.LostRankError)):
        print(f"{name}: {clipped(one_line(words))}", file=sys.stderr, flush=True)
    pipe.mark_said()
    return code
