"""How a stage gets its workers on a Ray cluster. Apart from spread.py, because `verify` does without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from primecli.pipeline import pipe
from primecli.pipeline.options import RayOptions

if TYPE_CHECKING:
    from primecli.pipeline.workers import Worker, Workers


def open_ray_workers(
    options: RayOptions,
    open_worker: Callable[[], Worker],
    *,
    gpus: bool,
    cpus: int | None = None,
    advance: Callable[[int], None],
    warn: Callable[[str], None],
    check: Callable[[], None] = pipe.check_reader,
) -> Workers:
    """The workers of a stage on a Ray cluster. gpus: whether they use a GPU. cpus: as in `RayWorkers`."""
    from primecli.pipeline.ray_workers import RayWorkers

    assert options.ray is not None
    return RayWorkers(
        open_worker,
        options.ray,
        options.ray_workers,
        options.resources(),
        gpus=gpus,
        cpus=cpus,
        advance=advance,
        warn=warn,
        check=check,
    )
