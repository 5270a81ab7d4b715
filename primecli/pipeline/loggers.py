"""Loggers besides primecli's own files: TensorBoard and Weights & Biases, both optional, in one log directory.

    tensorboard/policy/, prm/, critic/    event files: the value of each metric at each optimizer step
    tensorboard/iterations/               those of `primecli watch --log`: a value at each iteration (iteration_log.py)
    wandb/                                wandb's own files; offline, everything that was logged
    wandb-run-id                          the id of the wandb run that all processes of a training run continue
    wandb-steps.json, wandb-iterations.json   the number of rows logged to wandb
    wandb-iterations-logged.json          the values that `watch` has logged to wandb

Every iteration is a new process, so step numbers come from the trainer's state. A stage that skips opens no logger.
An update that was killed and runs again logs its steps again, under the same numbers. In TensorBoard they replace the
old ones: an event file begins with the step at which it starts, and TensorBoard then discards whatever the directory
has from that step on. It discards for the directory as a whole, so each stage has its own. wandb never discards: its
charts show both values at such a step, the newer one last.

wandb's row numbers must increase over all processes of a run; otherwise it drops rows when a run is resumed, or when
its offline parts are synced into one run. So a file counts them. The x axis of the charts is the step.

If a logger fails, the process warns once and trains on without it. trainer/steps.jsonl in the checkpoint has every step
in any case.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shlex
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from primecli.catalog import COMMANDS
from primecli.errors import MissingFileError, UsageError
from primecli.files import lock, make_directory, read_bytes
from primecli.pipeline.summary import run_name
from primecli.structures import read_json

T = TypeVar("T")
PREFIXES = {command.name: command.trains for command in COMMANDS if command.trains}
"""The prefix of metric names by stage: the role of the model that it trains, such as "prm" for update-prm."""

DIRECTORY = "log"
LONGEST_ID = 1 << 10  # bytes of the file that holds the id of wandb's run
FINISH_SECONDS = 60.0  # for wandb to upload the rest; the checkpoint is complete by then, but the next stage waits


class LoggerName(StrEnum):
    """The loggers that --log may name."""

    tensorboard = "tensorboard"
    wandb = "wandb"


def default_directory(checkpoint: Path) -> Path:
    """The log directory of a run, given one of its checkpoints.

    >>> default_directory(Path("runs/a/policy/7")).as_posix()
    'runs/a/log'
    """
    return checkpoint.parent.parent / DIRECTORY


def check(names: Sequence[str]) -> None:
    """Raises UsageError for a logger that cannot work here: its package is missing, or wandb has no account."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is just a directory of this name
            raise UsageError(f"--log {name}: {name} is not installed", f"pip install {name}")
    if "wandb" in names:
        _check_account()


def _check_account() -> None:
    """Checks before training: wandb itself would prompt for a key in the middle of it, or fail without a terminal."""
    import wandb

    if wandb.setup().settings.mode not in ("online", "shared") or os.environ.get("WANDB_API_KEY"):
        return  # wandb verifies the key when the run is opened; to do it here would need the network
    try:
        logged_in, problem = wandb.login(prompt=False, verify=False), "no API key"
    except wandb.Error as error:
        logged_in, problem = False, str(error)
    if not logged_in:
        raise UsageError(
            f"--log wandb: {problem}",
            "run `wandb login`, set WANDB_API_KEY, or log to files with WANDB_MODE=offline",
        )


class Logger(Protocol):
    """One destination of metrics. It opens at its first row; `Log` handles whatever it raises."""

    name: str

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs one row: the values of some metrics at a step."""
        ...

    def close(self, *, ok: bool) -> None:
        """Closes the logger. ok: whether the work that was logged has finished without an error."""
        ...


class TensorBoard:
    """One event file in a directory; its events replace those of earlier files from its first step on.

    note: called with the directory to look at, once the first event is written.
    """

    name = "tensorboard"

    def __init__(self, directory: Path, note: Callable[[str], None]) -> None:
        self.directory = directory
        self.note = note
        self._file: IO[bytes] | None = None
        self._records: Any = None  # TensorBoard's writer of records to that file
        self._files = 0  # opened so far

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds an event and flushes it."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._records is None:
            self._open(step)
            self.note(f"logs to TensorBoard: tensorboard --logdir {shlex.quote(str(self.directory.parent))}")
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._put(step=step, summary=Summary(value=scalars))

    def _open(self, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        make_directory(self.directory)
        # TensorBoard reads files in the order of their names, so the time comes first
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
        """Closes the file; a later row would open another."""
        self._records = None
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class Wandb:
    """A wandb run, whose id is kept in the log directory.

    directory: the log directory.
    part: "steps", or "iterations" for the separate run that `watch` writes: a wandb run can have only one writer.
    axes: the metric on the x axis of a chart, by the pattern of the chart's name, such as {"prm/*": "prm/step"}.
    config: what wandb shows as the configuration of the run.
    note: called with the address of the run, once it is open.
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
        """The file that holds the number of rows logged so far."""
        return self.directory / f"wandb-{self.part}.json"

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands a row to wandb, whose own process stores and sends it."""
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
        self._rows = read_state(self.state_file, int).get("rows", 0)
        steps_id = run_id(self.directory)
        name = os.environ.get("WANDB_NAME") or run_name(self.directory.parent)
        # stdout carries shard paths, so wandb must not print; `note` and exceptions say what the user needs to know
        settings = wandb.Settings(console="off", silent=True)
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings.finish_timeout = FINISH_SECONDS
        settings.finish_timeout_raises = True
        self._run = wandb.init(
            dir=self.directory,
            id=steps_id if self.part == "steps" else f"{steps_id}-{self.part}",
            name=name if self.part == "steps" else f"{name}, {self.part}",
            group=os.environ.get("WANDB_RUN_GROUP") or name,
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
        address = f"{self._run.settings.sync_dir}, for `wandb sync` to upload" if offline else self._run.url
        self.note(f"logs to wandb: {address}")

    def close(self, *, ok: bool) -> None:
        """Waits until wandb has sent everything, for at most FINISH_SECONDS or WANDB_FINISH_TIMEOUT."""
        with self._stack:
            if self._run is not None:
                run, self._run = self._run, None
                run.finish(exit_code=0 if ok else 1)


def run_id(directory: Path) -> str:
    """The id of a training run's wandb run: WANDB_RUN_ID, else the one stored in the log directory, made if missing."""
    if os.environ.get("WANDB_RUN_ID"):
        return os.environ["WANDB_RUN_ID"]
    path = directory / "wandb-run-id"
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(secrets.token_hex(6) + "\n", encoding="utf-8")
        try:
            os.link(temporary, path)  # if two processes get here at once, the first one wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return read_bytes(path, LONGEST_ID).decode(errors="replace").strip()


def read_state(path: Path, kind: type[T]) -> dict[str, T]:
    """The values of a state file that an earlier process has written, of this kind, by name; empty if there is none.

    Raises InputError for a file that holds anything else.
    """
    try:
        return read_json(path, dict[str, kind], "remove it")  # type: ignore[valid-type]
    except MissingFileError:
        return {}


def replace_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a state file, whole or not at all; not synced to disk, because it is written at every step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class Log:
    """Hands rows to loggers. One that fails is dropped, with one warning.

    loggers: those that still work.
    warn: called with the message when one fails.
    """

    def __init__(self, loggers: Sequence[Logger], warn: Callable[[str], None]) -> None:
        self.loggers = list(loggers)
        self.warn = warn

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Hands a row to every logger."""
        for logger in list(self.loggers):
            try:
                logger.write(step, values)
            except Exception as error:  # these packages may raise anything, and no log is worth a training step
                self._drop(logger, error)

    def close(self, *, ok: bool) -> None:
        """Closes all loggers; none is left after that. ok: as in `Logger.close`."""
        for logger in list(self.loggers):
            try:
                logger.close(ok=ok)
                self.loggers.remove(logger)
            except Exception as error:
                self._drop(logger, error)

    def _drop(self, logger: Logger, error: Exception) -> None:
        self.loggers.remove(logger)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        self.warn(f"warning: logging to {logger.name} failed; continuing without it, nothing else is lost: {reason}")
        try:
            logger.close(ok=False)
        except Exception:  # the failure has been reported
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
    """The log of an update's optimizer steps. Raises UsageError for a logger that cannot work here.

    names: the loggers that the user named with --log. directory: the log directory. config: the options of the update.
    warn, note: called with messages for the user.
    """
    check(names)
    loggers: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == TensorBoard.name:
            loggers.append(TensorBoard(directory / name / PREFIXES[stage], note))
        else:
            # those of all stages: a process that resumes a run replaces all axes that were defined before
            axes = {f"{prefix}/*": f"{prefix}/step" for prefix in PREFIXES.values()}
            loggers.append(Wandb(directory, "steps", axes, {stage: dict(config)}, note))
    return Log(loggers, warn)


def with_prefix(stage: str, step: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an optimizer step, under the names that they have in the loggers.

    >>> with_prefix("update-prm", {"step": 3, "loss": 0.5})
    {'prm/loss': 0.5}
    """
    return {f"{PREFIXES[stage]}/{name}": value for name, value in step.items() if name != "step"}
