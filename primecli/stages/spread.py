"""Over what a stage spreads its work: this process, child processes with a device each, or a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from primecli.errors import UsageError
from primecli.models.options import DeviceOptions
from primecli.pipeline import pipe
from primecli.pipeline.options import WorkerOptions

if TYPE_CHECKING:
    from primecli.pipeline.making import Elsewhere, Facts, Here, Maker
    from primecli.pipeline.stage_run import StageRun
    from primecli.pipeline.workers import Worker, Workers

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class SpreadOptions(DeviceOptions, WorkerOptions):
    """The options of every stage that computes with a model and can be spread."""


S = TypeVar("S", bound=SpreadOptions)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the children of a stage compute.

    variables: for each child the environment variables that differ from ours.
    device: what --device is for all of them: each sees only its own GPU.
    threads: CPU threads of each.
    """

    variables: tuple[Mapping[str, str], ...]
    device: str
    threads: int | None


def is_spread(options: WorkerOptions) -> bool:
    """Whether other processes do the work. A single worker without a device of its own is this process."""
    return options.ray is not None or options.devices is not None or (options.workers or 1) > 1


def places(options: SpreadOptions) -> Places:
    """The places of a stage's children. Raises UsageError where there are fewer GPUs than they need."""
    from primecli.models.device import count_gpus

    numbers = options.device_numbers()
    workers = options.workers or len(numbers)
    if ":" in options.device:
        raise UsageError(
            f"--device {options.device} is a single GPU, and there are {workers} workers",
            f"give --devices {options.device.partition(':')[2]},… instead",
        )
    gpus = count_gpus(options.device)
    if numbers and options.device == "cpu":
        raise UsageError("--devices names GPUs, and --device is cpu", "leave out one")
    if numbers and max(numbers) >= gpus:
        raise UsageError(f"--devices {options.devices}: there is no GPU {max(numbers)}", _how_many(gpus))
    if not numbers and gpus == 0:
        threads = options.threads or _threads_each(workers)
        return Places(({name: str(threads) for name in THREADS},) * workers, "cpu", threads)
    if not numbers and workers > gpus:
        shared = ",".join(str(worker * gpus // workers) for worker in range(workers))
        raise UsageError(
            f"--workers {workers}: {_how_many(gpus)}", f"if several are to share one, say so with --devices {shared}"
        )
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = [visible[number] if visible else str(number) for number in numbers or range(workers)]
    return Places(tuple({"CUDA_VISIBLE_DEVICES": name.strip()} for name in names), "cuda", options.threads)


def _how_many(gpus: int) -> str:
    return "there are none here" if gpus == 0 else "there is 1 GPU" if gpus == 1 else f"there are {gpus} GPUs"


def _threads_each(workers: int) -> int:
    """CPU threads of each worker: what the user's environment says, or an equal share of the cores."""
    from primecli.setup.doctor_checks import usable_cores

    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, usable_cores() // workers)


def for_workers(options: S) -> S:
    """The options as a worker has them, which spreads nothing again; the precision is that of the recipe.

    Raises UsageError as `places` does.
    """
    from primecli.models.options import Dtype

    settled = replace(options, dtype=Dtype(options.resolved_dtype()))
    if options.ray is not None:
        return replace(settled, ray=None, ray_workers=None, ray_resources=None)
    place = places(options)
    return replace(settled, device=place.device, threads=place.threads, workers=None, devices=None)


def open_workers(
    options: SpreadOptions,
    open_worker: Callable[[], Worker],
    *,
    advance: Callable[[int], None],
    warn: Callable[[str], None],
    check: Callable[[], None] = pipe.check_reader,
) -> Workers:
    """The workers of a stage that computes with a model. The arguments are as in `LocalWorkers`."""
    if options.ray is not None:
        from primecli.stages.on_ray import open_ray_workers

        return open_ray_workers(
            options, open_worker, gpus=options.device != "cpu", advance=advance, warn=warn, check=check
        )
    from primecli.pipeline.local_workers import LocalWorkers

    return LocalWorkers(open_worker, places(options).variables, advance=advance, warn=warn, check=check)


def open_making(
    run: StageRun, options: SpreadOptions, open_maker: Callable[[Any], Maker], facts: Facts
) -> Here | Elsewhere:
    """How a stage has its shards made, by its options.

    open_maker: makes the maker from the options, a function of a module or a functools.partial of one. facts: see
    `making.Here`.
    """
    from primecli.pipeline import making

    if not is_spread(options):
        return making.Here(run, open_maker(options), facts)
    open_worker = partial(making.open_making, partial(open_maker, for_workers(options)))
    workers = open_workers(options, open_worker, advance=run.progress.advance, warn=run.warn)
    return making.Elsewhere(run, workers, facts)
