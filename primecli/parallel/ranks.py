"""The ranks of a stage: processes that compute one result together, each with a share of the model and of the work.

They are started by `--nproc` (launch.py), by torchrun, or by srun. Rank 0 alone reads stdin, writes stdout, and has the
lock, the summary and the loggers; it tells the others what to do. All of them take part in every exchange below, in the
same order: one that is missing would leave the others waiting until it times out, or is found to have died.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError, UsageError
from primecli.files import Json
from primecli.warm.protocol import FAILURES, end_with_parent

if TYPE_CHECKING:
    import numpy as np

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in one exchange. A rank that has died is noticed at once on most networks."""
START_TIMEOUT = timedelta(minutes=10)
"""How long the first rank waits for the last to start: importing torch takes a minute on a busy file system."""
WAIT_FOR_WORK = timedelta(days=30)
"""How long the others wait for rank 0, which may itself be waiting for the stage before it in the pipe."""

PEER_HAS_GONE = ("closed by peer", "reset by peer", "gloo/transport", "NCCL", "Broken pipe")
"""Texts in errors of torch's backends that mean that another process has ended, or does not answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among the ranks, from its environment.

    rank: its number, from 0. world: how many there are. local_rank: its number among those of its machine.
    address, port: where rank 0, or the launcher, listens.
    """

    rank: int
    world: int
    local_rank: int
    address: str
    port: int


def place() -> Place | None:
    """This process's place among the ranks; None if it was not started as one of them.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. A task of srun is recognised by its step's
    variables, if the step has more than one task. Raises UsageError for variables that are no numbers.
    """
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Place(
            _number("RANK"),
            _number("WORLD_SIZE"),
            _number("LOCAL_RANK", "0"),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            _number("MASTER_PORT", "29500"),
        )
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return None
    # in the range that systems do not hand out by themselves; another for each step, since those of a pipe run at once
    port = 15000 + (100 * _number("SLURM_JOB_ID", "0") + _number("SLURM_STEP_ID", "0")) % 15000
    return Place(
        _number("SLURM_PROCID"),
        _number("SLURM_STEP_NUM_TASKS"),
        _number("SLURM_LOCALID"),
        environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1")),
        _number("MASTER_PORT", str(port)),
    )


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it.

    >>> first_host("gpu[07-09,12],login1"), first_host("a1,a2"), first_host("rack2-n[3,5]")
    ('gpu07', 'a1', 'rack2-n3')
    """
    first = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", nodes)
    return f"{first[1]}{first[2] or ''}" if first else nodes


def _number(name: str, default: str | None = None) -> int:
    text = os.environ.get(name) or default
    try:
        return int(text or "")
    except ValueError:
        raise UsageError(
            f"{name}={text or ''}: is not a number", "start the ranks with --nproc, torchrun or srun"
        ) from None


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ranks that compute one result.

    rank: its number, from 0. world: how many there are. local_rank: its number on this machine.
    store: torch's key-value store, through which rank 0 calls for work.
    """

    rank: int
    world: int
    local_rank: int
    store: Any
    _numbers: Iterator[int] = field(default_factory=itertools.count)  # of calls

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which speaks for all."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this rank. name: that of --device, such as cuda; auto is this rank's GPU if there are any."""
        import torch

        if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if ":" in name:
            raise UsageError(f"--device {name} is one GPU, and each rank takes its own", "leave --device out")
        return f"cuda:{self.local_rank % max(1, torch.cuda.device_count())}"

    def call(self, work: Mapping[str, Json] | None) -> None:
        """Calls the other ranks to some work, which each of them gets from `calls`; None says that there is no more.

        Rank 0 only.
        """
        self.store.set(f"call/{next(self._numbers)}", json.dumps(work))

    def calls(self) -> Iterator[dict[str, Any]]:
        """The work that rank 0 calls for, one after the other, as it comes. Raises LostRankError where it has gone."""
        import torch.distributed as dist

        while True:
            key = f"call/{next(self._numbers)}"
            try:
                self.store.wait([key], WAIT_FOR_WORK)
                work = json.loads(self.store.get(key))
            except (dist.DistNetworkError, dist.DistStoreError) as error:
                raise LostRankError("rank 0 has gone") from error
            if work is None:
                return
            yield work

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """The time in which rank 0 calls for work: at its end, also by an error, it says that there is no more."""
        try:
            yield
        finally:
            self.call(None)

    def gather(self, value: Any) -> list[Any]:
        """What every rank has given, by rank."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """What rank 0 has given."""
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over the ranks of arrays of one shape and dtype, added up in the order of the ranks."""
        import torch
        import torch.distributed as dist

        own = torch.from_numpy(values.copy())
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        result = parts[0]
        for part in parts[1:]:
            result += part
        return result.numpy()

    def wait_for_all(self) -> None:
        """Returns when every rank has called it."""
        self.gather(None)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The time of this rank's work. Raises LostRankError where an exchange fails because another rank has ended."""
        import torch.distributed as dist

        global _joined
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(mark in str(error) for mark in PEER_HAS_GONE):
                raise LostRankError("another rank has ended") from error
            raise
        finally:
            _joined = None
            if self.world > 1:
                _end_by_signals()  # everything is cleaned up, and handlers would raise in the middle of Python's exit
            if dist.is_initialized():
                dist.destroy_process_group()


class LostRankError(PrimecliError):
    """An exchange failed because another rank has ended; what ended it is said by that rank, or by its launcher."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "another rank says why, or was killed; no checkpoint was written")


class RankError(PrimecliError):
    """A rank has failed, in its own words and with its own exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code


_joined: Ranks | None = None
_joins = 0  # how often this process has joined: each time the keys in the store are others


def joined() -> Ranks | None:
    """The ranks that this process has joined; None if it computes alone."""
    return _joined


def join() -> Ranks | None:
    """Makes this process one of the ranks that its environment speaks of; None where it speaks of none.

    From then on, ranks other than 0 read nothing from stdin and write nothing to stdout, and all of them end when
    their launcher does. Raises PrimecliError where the ranks do not find each other.
    """
    global _joined, _joins
    found = place()
    if found is None or _joined is not None:
        return _joined
    _joins += 1
    if os.environ.get(FAILURES):
        end_with_parent()  # by torchrun or srun, that is its own affair
    if found.rank:
        _give_streams_up()
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(found.local_rank % torch.cuda.device_count())
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            found.address,
            found.port,
            found.world,
            is_master=found.rank == 0 and not hosted,
            timeout=START_TIMEOUT,
            wait_for_workers=False,
        )
        prefix = f"primecli/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_joins}"
        dist.init_process_group(
            backend,
            store=PrefixStore(f"{prefix}/group", store),
            rank=found.rank,
            world_size=found.world,
            timeout=COLLECTIVE_TIMEOUT,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise PrimecliError(
            f"rank {found.rank} of {found.world} does not find the others at {found.address}:{found.port}: "
            f"{str(error).splitlines()[0]}",
            "MASTER_ADDR and MASTER_PORT must be free and the same for all ranks",
        ) from error
    own = PrefixStore(f"{prefix}/said", store)
    _joined = Ranks(found.rank, found.world, found.local_rank, own)
    return _joined


def _give_streams_up() -> None:
    """Takes stdin and stdout from a rank other than 0: they are rank 0's, which inherits the same ones."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    _end_by_signals()  # nothing has to be cleaned up, and a handler in Python would not run while a collective waits


def _end_by_signals() -> None:
    """Makes signals end this process at once."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def report_failure(text: str, code: int, *, lost: bool) -> bool:
    """Leaves word of why this rank failed to the launcher, which prints one line for all; returns whether there is one.

    text: what to print; nothing where another stage has said it. lost: whether another rank had ended before.

    Where there is none, as under torchrun, the rank prints its own.
    """
    directory = os.environ.get(FAILURES)
    found = place()
    if not directory or found is None:
        return False
    record = {"code": code, "text": text, "lost": lost}
    partial = os.path.join(directory, f".{found.rank}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(record, file)
    os.rename(partial, os.path.join(directory, f"{found.rank}.json"))
    return True


def reduced(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums, by name, of what the ranks have counted, in the order of the ranks.

    >>> reduced([{"a": 1.0}, {"a": 2.0, "b": 3.0}])
    {'a': 3.0, 'b': 3.0}
    """
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
