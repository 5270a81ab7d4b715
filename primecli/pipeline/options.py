"""The options for input and output that all stages share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated

from primecli.errors import UsageError
from primecli.files import Json
from primecli.options import Force, Option, Options, Out, Partial, Quiet, Shards


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The options of every stage that writes something."""

    force: Force = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """The options of every command that reads shards."""

    shards: Shards = ()
    partial: Partial = False
    quiet: Quiet = False


@dataclass(frozen=True, kw_only=True)
class StageOptions(InputOptions, RunOptions):
    """The options of every stage that makes shards from shards."""

    out: Out = None
    force: Force = False
    partial: Partial = False
    quiet: Quiet = False


def devices_problem(text: str) -> str | None:
    """What is wrong with a value of --devices; None if nothing is.

    >>> devices_problem("0,1"), devices_problem("cuda:0")
    (None, "'cuda:0' is not a list of GPU numbers, such as 0,1")
    """
    if all(part.strip().isdecimal() and len(part.strip()) <= 3 for part in text.split(",")):
        return None
    return f"{text!r} is not a list of GPU numbers, such as 0,1"


def resources_problem(text: str) -> str | None:
    """What is wrong with a value of --ray-resources; None if nothing is.

    >>> resources_problem('{"num_gpus": 1}'), resources_problem('{"num_gpus": "all"}')
    (None, "num_gpus is 'all', not an amount such as 1 or 0.5")
    """
    try:
        resources = json.loads(text)
    except (ValueError, RecursionError):
        resources = None
    if not isinstance(resources, dict):
        return f'{text!r} is not a JSON object, such as {{"num_gpus": 1}}'
    for name, amount in resources.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            return f"{name} is {amount!r}, not an amount such as 1 or 0.5"
    return None


@dataclass(frozen=True, kw_only=True)
class RayOptions(Options):
    """Whether a stage's shards are made on a Ray cluster."""

    ray: Annotated[
        str | None,
        Option(
            "Spread the shards over a Ray cluster: local starts one on this machine, auto finds the one that runs "
            "here; or its address.",
            "call",
            metavar="local|auto|HOST:PORT",
        ),
    ] = None
    ray_workers: Annotated[
        int | None,
        Option(
            "Workers on the cluster.  [default: one per GPU or, without GPUs, one per machine]",
            "call",
            min=1,
        ),
    ] = None
    ray_resources: Annotated[
        str | None,
        Option(
            'What each of them takes, such as \'{"num_gpus": 1, "num_cpus": 4}\'.  [default: a GPU or, without GPUs, '
            "its share of a machine's CPUs]",
            "call",
            metavar="JSON",
            check=resources_problem,
        ),
    ] = None

    def check(self) -> None:
        """Raises UsageError for options of a cluster without one."""
        super().check()
        for option, value in (("--ray-workers", self.ray_workers), ("--ray-resources", self.ray_resources)):
            if value is not None and self.ray is None:
                raise UsageError(f"{option} needs --ray")
        if self.ray == "":
            raise UsageError("--ray is empty", "give local, auto or an address")

    def execution(self) -> dict[str, Json]:
        """Adds the cluster and its workers where there are any, so that records are as before where not."""
        given = {"ray": self.ray, "ray_workers": self.ray_workers, "ray_resources": self.resources() or None}
        return {**super().execution(), **{name: value for name, value in given.items() if value is not None}}

    def resources(self) -> dict[str, float]:
        """What each worker on the cluster takes, by Ray's names; empty where that is left open."""
        return json.loads(self.ray_resources) if self.ray_resources else {}


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(RayOptions):
    """Whether a stage's shards are spread over processes: children on this machine, or workers on a Ray cluster."""

    workers: Annotated[
        int | None,
        Option(
            "Processes that share the shards, each with its own model: one per GPU of --devices or, on a CPU, with its "
            "share of the cores.  [default: 1, this one]",
            "call",
            min=1,
        ),
    ] = None
    devices: Annotated[
        str | None,
        Option(
            "GPUs of the workers, such as 0,1; repeat a number to have two share a GPU.  [default: the first ones]",
            "call",
            metavar="LIST",
            check=devices_problem,
        ),
    ] = None

    def check(self) -> None:
        """Raises UsageError for workers both here and on a cluster, and for another number of them than of devices."""
        super().check()
        here = [option for option, value in (("--workers", self.workers), ("--devices", self.devices)) if value]
        if here and self.ray is not None:
            raise UsageError(f"{here[0]} and --ray do not go together", "on a cluster, give --ray-workers")
        numbers = self.device_numbers()
        if numbers and self.workers is not None and self.workers != len(numbers):
            raise UsageError(
                f"--workers {self.workers}, but --devices names {len(numbers)}", "each worker has one: leave out one"
            )

    def execution(self) -> dict[str, Json]:
        """Adds the workers where there are any, so that records are as before where not."""
        given = {"workers": self.workers, "devices": self.devices}
        return {**super().execution(), **{name: value for name, value in given.items() if value is not None}}

    def device_numbers(self) -> list[int]:
        """The GPUs that --devices names, one for each worker; empty where it is not given."""
        return [int(part) for part in self.devices.split(",")] if self.devices else []
