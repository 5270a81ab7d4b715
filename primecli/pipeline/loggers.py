"""Where numbers go besides files: TensorBoard and Weights & Biases, both optional, below one log directory.

    tensorboard/policy/, prm/, critic/    event files: a value of each metric at each optimizer step
    tensorboard/iterations/               those of `primecli watch --log`: a value at each iteration (iteration_log.py)
    wandb/                                what wandb keeps: its log files; offline, all of what was logged
    wandb-run-id                          the id of the one wandb run that every process of a training run goes on with
    wandb-steps.json, wandb-iterations.json   how many rows wandb was given
    wandb-iterations-logged.json          the values that `watch` has given to wandb

Every iteration is a new process, so step numbers are those of the trainer's state. A stage that skips opens nothing.
An update that was killed and is run again logs its steps again, under the same numbers. In TensorBoard they replace
the others: an event file begins by saying at which step it starts, which takes back what stood there from that step
on; the stages have directories of their own, since that is said of a directory as a whole. wandb takes nothing back:
its charts have both values at such a step, the later one last.

wandb's own row numbers have to grow over all processes of a run, or rows are dropped when it is resumed, or when
offline parts of it are synced into one: they are counted in a file. The x axis of the charts is the step.

A logger that fails is not tried again by its process: it is said once, and training goes on. trainer/steps.jsonl of
each checkpoint has every step in any case.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Protocol

from primecli.catalog import COMMANDS
from primecli.errors import InputError, UsageError
from primecli.files import lock, make_directory

SPACES = {command.name: command.trains for command in COMMANDS if command.trains}
"""What stands before the name of a metric, by stage: the role of the model that it trains."""

DIRECTORY = "log"
FINISH_SECONDS = 60.0  # for wandb to upload what is left; the checkpoint is complete by then, the next stage waits


class LoggerName(StrEnum):
    """Where numbers go besides files."""

    tensorboard = "tensorboard"
    wandb = "wandb"


def default_directory(checkpoint: Path) -> Path:
    """The log directory of a run, from one of its checkpoints.

    >>> default_directory(Path("runs/a/policy/7")).as_posix()
    'runs/a/log'
    """
    return checkpoint.parent.parent / DIRECTORY


def check(names: Sequence[str]) -> None:
    """Raises UsageError for a logger that cannot work here: its package is missing, or wandb knows no account."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a directory that happens to have this name
            raise UsageError(f"--log {name}: {name} is not installed", f"pip install {name}")
    if "wandb" in names:
        _check_account()


def _check_account() -> None:
    """Asked here, since wandb asks a terminal for the key in the middle of training, and fails where there is none."""
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared") or os.environ.get("WANDB_API_KEY"):
        return  # a key that is there is looked at when the run is opened: here it would take a network
    try:
        known, problem = wandb.login(prompt=False, verify=False), "no API key"
    except wandb.Error as error:
        known, problem = False, str(error)
    if not known:
        raise UsageError(
            f"--log wandb: {problem}",
            "run `wandb login`, set WANDB_API_KEY, or log to files with WANDB_MODE=offline",
        )


class Logger(Protocol):
    """Where numbers go. Opens at its first row; whatever it raises is dealt with by `Log`."""

    name: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A row: the values of some metrics at a step."""
        ...

    def close(self, *, ok: bool) -> None:
        """Ends what was opened. ok: whether the work that was logged came to its end."""
        ...


class TensorBoard:
    """One event file in a directory, whose events from its first step on replace those of earlier files."""

    name = "tensorboard"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file: IO[bytes] | None = None
        self._records: Any = None
        self._files = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds an event and hands it to the operating system."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._records is None:
            self._open(step)
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._put(step=step, summary=Summary(value=scalars))

    def _open(self, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        make_directory(self.directory)
        # read in the order of their names, so that the time stands first
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}.{self._files}"
        self._file = open(self.directory / name, "xb")  # noqa: SIM115 (held open while events come)
        self._files += 1
        self._records = RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        self._put(step=first, session_log=SessionLog(status=SessionLog.START))

    def _put(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def close(self, *, ok: bool) -> None:
        """Closes the file; a row after that opens another."""
        self._records = None
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class Wandb:
    """A part of a wandb run, whose id is kept in the log directory.

    part: `steps`, or `iterations` for the run beside it that `watch` writes, since one run has one writer at a time.
    axes: the x axis of the charts, by the pattern of their names. note: told where the run is, once it is open.
    """

    name = "wandb"

    def __init__(
        self,
        directory: Path,
        part: str,
        axes: Mapping[str, str],
        config: Mapping[str, Any],
        note: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.part = part
        self.axes = axes
        self.config = config
        self.note = note
        self._stack = ExitStack()
        self._run: Any = None
        self._rows = 0

    @property
    def state_file(self) -> Path:
        """Where the number of rows is kept."""
        return self.directory / f"wandb-{self.part}.json"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Gives a row to wandb, which writes and sends it in a process of its own."""
        if self._run is None:
            self._open()
        axes = {axis: step for pattern, axis in self.axes.items() if self._applies(pattern, values)}
        self._run.log({**axes, **values}, step=self._rows)
        self._rows += 1
        replace_state(self.state_file, {"rows": self._rows})

    @staticmethod
    def _applies(pattern: str, values: Mapping[str, float]) -> bool:
        return pattern == "*" or any(name.startswith(pattern.removesuffix("*")) for name in values)

    def _open(self) -> None:
        import wandb

        make_directory(self.directory)
        self._stack.enter_context(lock(self.directory / f".wandb-{self.part}.lock", str(self.state_file)))
        self._rows = int(read_state(self.state_file).get("rows", 0))
        own = run_id(self.directory)
        run_name = os.environ.get("WANDB_NAME") or self.directory.absolute().parent.name
        # stdout carries shard paths: wandb is not to touch it. What it has to say `note` says, or an exception
        settings = wandb.Settings(console="off", silent=True)
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings.finish_timeout = FINISH_SECONDS
        settings.finish_timeout_raises = True
        self._run = wandb.init(
            dir=self.directory,
            id=own if self.part == "steps" else f"{own}-{self.part}",
            name=run_name if self.part == "steps" else f"{run_name}, {self.part}",
            group=os.environ.get("WANDB_RUN_GROUP") or run_name,
            project=os.environ.get("WANDB_PROJECT") or "primecli",
            resume="allow",
            settings=settings,
        )
        for pattern, axis in self.axes.items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(pattern, step_metric=axis)
        if self.config:
            self._run.config.update(dict(self.config), allow_val_change=True)
        offline = self._run.settings.mode in ("offline", "dryrun")
        here = f"{self._run.settings.sync_dir}, for `wandb sync` to upload" if offline else self._run.url
        self.note(f"logs to wandb: {here}")

    def close(self, *, ok: bool) -> None:
        """Waits until wandb has sent everything, no longer than FINISH_SECONDS or WANDB_FINISH_TIMEOUT."""
        with self._stack:
            if self._run is not None:
                run, self._run = self._run, None
                run.finish(exit_code=0 if ok else 1)


def run_id(directory: Path) -> str:
    """The id of a training run's wandb run: WANDB_RUN_ID, else that of the log directory, made where there is none."""
    if os.environ.get("WANDB_RUN_ID"):
        return os.environ["WANDB_RUN_ID"]
    path = directory / "wandb-run-id"
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(secrets.token_hex(6) + "\n", encoding="utf-8")
        try:
            os.link(temporary, path)  # the first of two processes at once wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return path.read_text(encoding="utf-8").strip()


def read_state(path: Path) -> dict[str, Any]:
    """What a process before has left in a state file; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}", "remove it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: is no JSON object", "remove it")
    return found


def replace_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a state file, whole; not synced to the disk, as it is written at every step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class Log:
    """Gives rows to loggers. One that fails is dropped, and `warn` is told, once."""

    def __init__(self, loggers: Sequence[Logger], warn: Callable[[str], None]) -> None:
        self.loggers = list(loggers)
        self.warn = warn

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """A row for every logger."""
        for logger in list(self.loggers):
            try:
                logger.write(step, values)
            except Exception as error:  # the packages raise anything, and none of it is worth a training step
                self._drop(logger, error)

    def close(self, *, ok: bool) -> None:
        """Ends all loggers; after that none is left."""
        for logger in list(self.loggers):
            try:
                logger.close(ok=ok)
                self.loggers.remove(logger)
            except Exception as error:
                self._drop(logger, error)

    def _drop(self, logger: Logger, error: Exception) -> None:
        self.loggers.remove(logger)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        self.warn(f"warning: {logger.name} fails, and is left out from here on; nothing else is lost: {reason}")
        try:
            logger.close(ok=False)
        except Exception:  # it has failed, which was said
            return


def step_log(
    stage: str,
    names: Sequence[str],
    directory: Path,
    config: Mapping[str, Any],
    *,
    warn: Callable[[str], None],
    note: Callable[[str], None],
) -> Log:
    """The log of an update's optimizer steps. Raises UsageError for a logger that cannot work here."""
    check(names)
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == TensorBoard.name:
            loggers.append(TensorBoard(directory / name / SPACES[stage]))
        else:
            # all of them in every process: who resumes a run replaces what was said of its axes
            axes = {f"{space}/*": f"{space}/step" for space in SPACES.values()}
            loggers.append(Wandb(directory, "steps", axes, {stage: dict(config)}, note))
    return Log(loggers, warn)


def named(stage: str, step: Mapping[str, float]) -> dict[str, float]:
    """A step's metrics under the names that loggers have.

    >>> named("update-prm", {"step": 3, "loss": 0.5})
    {'prm/loss': 0.5}
    """
    return {f"{SPACES[stage]}/{name}": value for name, value in step.items() if name != "step"}
