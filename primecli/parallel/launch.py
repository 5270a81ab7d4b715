"""Starts the ranks of this machine by torch's elastic launcher, for --nproc."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from primecli.errors import Interrupted, NothingCameError, PrimecliError, UsageError
from primecli.parallel.ranks import RankError, place
from primecli.warm.protocol import FAILURES

GRACE_SECONDS = 10  # that ranks have to end by themselves once one has failed; torch 2.11, for one, does not read it
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def nproc_problem(text: str) -> str | None:
    """What is wrong with a value of --nproc; None if nothing is.

    >>> nproc_problem("8"), nproc_problem("0")
    (None, "'0' is not auto or a number of at least 1")
    """
    is_fine = text == "auto" or (text.isdecimal() and int(text) > 0)
    return None if is_fine else f"{text!r} is not auto or a number of at least 1"


def number_of_ranks(nproc: str) -> int:
    """How many ranks a value of --nproc stands for: `auto` is one for each GPU, or one where there is none."""
    if nproc != "auto":
        return int(nproc)
    import torch

    return max(1, torch.cuda.device_count())


def started_ranks(nproc: str | None) -> bool:
    """Starts the ranks that --nproc asks for, and returns when they are done; False where there are none to start.

    Raises UsageError for --nproc in a process that another launcher has made a rank.
    """
    if place() is not None:
        if nproc is not None and not os.environ.get(FAILURES):
            raise UsageError(f"--nproc {nproc}: torchrun or srun has started the ranks already", "leave --nproc out")
        return False
    if nproc is None:
        return False
    run_ranks(number_of_ranks(nproc))
    return True


def run_ranks(world: int) -> None:
    """Runs this very command line in `world` ranks, and returns when all of them are done.

    Rank 0 inherits stdin and stdout. Raises RankError with the words and the exit code of the rank that failed first,
    PrimecliError where one was killed, and Interrupted for a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what happened is said in one line of ours
    with tempfile.TemporaryDirectory(prefix="primecli-ranks-") as directory, _environment(directory, world):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world,
            logs_specs=DefaultLogsSpecs(log_dir=directory),
            run_id=Path(directory).name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
        )
        try:
            elastic_launch(config, sys.executable)("-c", _program(), *sys.argv[1:])
        except ChildFailedError as error:
            raise _failure(Path(directory), error.failures) from error
        except SignalException as error:
            raise Interrupted.by_signal(signal.Signals(error.sigval).name) from error


def _program() -> str:
    """What a rank's Python runs, with the flags of this one: this primecli, also where `primecli warm` forks it."""
    package = str(Path(__file__).parents[2])
    # in place of the working directory, which must not hold modules for it
    return f"import sys; sys.path[0] = {package!r}; from primecli.__main__ import main; main()"


class _environment:
    """The variables that the launcher reads and the ranks inherit, for as long as they run."""

    def __init__(self, failures: str, world: int) -> None:
        self._set = {
            FAILURES: failures,
            GRACE: str(GRACE_SECONDS),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // world)),
        }
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._set}
        os.environ.update(self._set)

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _failure(directory: Path, failures: Mapping[int, Any]) -> PrimecliError:
    """The error of the rank that failed first, as it put it, or that it was killed.

    failures: by rank, what the launcher saw of each that failed: its exit code, or minus its signal.
    """
    paths = sorted(directory.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    said = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for record in said:
        if not record["text"]:
            return NothingCameError("nothing came, and the stage before this one has said why")
        if not record["lost"] and record["code"] != Interrupted.exit_code:  # which the launcher has done to it
            return RankError(record["text"], record["code"])
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:
            name = signal.Signals(-failure.exitcode).name
            hint = "if memory ran out: more ranks, or a lower --micro-batch-tokens" if name == "SIGKILL" else None
            return PrimecliError(f"rank {rank} was killed by {name}", hint)
    for record in said:
        return RankError(record["text"], record["code"])
    rank, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    return PrimecliError(f"rank {rank} has ended with exit code {failure.exitcode}")
