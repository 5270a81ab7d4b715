"""Where a stage's shards are made: in this process, or by workers elsewhere. The stage commits them, in order.

    with Elsewhere(run, workers, facts) as making:    # or Here(run, maker, facts)
        for shard in run.shards(needs, watched=making.watched):
            making.put(run.output(shard), shard, rows=shard.footer.rows)
        making.finish()

The computation itself is a `Maker`: the same object, whether it stands in this process, in a child or on another
machine, so that the columns are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from primecli.files import remove_leftovers
from primecli.pipeline import pipe
from primecli.pipeline.orders import Made, Order
from primecli.pipeline.recipe import Moment

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.pipeline.stage_run import Output, StageRun
    from primecli.pipeline.workers import Workers

CHECK_SECONDS = 0.02  # between two looks at the reader of our stdout: a row may take far less

Facts = Callable[[Mapping[str, Any]], None]
"""Takes what a maker has found out besides its rows."""


class Product(NamedTuple):
    """What a maker makes.

    table: the rows of a shard.
    counts: sums over them, by name.
    facts: what else the stage wants to know, such as the peak memory.
    """

    table: pa.Table
    counts: Mapping[str, float]
    facts: Mapping[str, Any]


class Maker(Protocol):
    """Makes the rows of shards. What it loads stays loaded from shard to shard."""

    def prepare(self, *, alone: bool) -> None:
        """Loads what it can while there is nothing to make. alone: whether no other maker on this machine does too."""
        ...

    def make(self, item: Any, advance: Callable[[int], None]) -> Product:
        """The rows of one shard. item: what they are made from. advance: called with the number of rows just made.

        Where it is called with 0 rows, it only ends the work if nobody wants it any more, as it may always do.
        """
        ...

    def close(self) -> None:
        """Lets go of what it holds: models, processes."""
        ...


class Here:
    """Makes each shard in this process, before the next one is read.

    maker: what makes them. facts: called for each shard with the maker's facts.
    watched: what has to be handled while the stage waits for input: nothing.
    """

    watched = None

    def __init__(self, run: StageRun, maker: Maker, facts: Facts) -> None:
        self.run = run
        self.maker = maker
        self.facts = facts
        self._checked = 0.0  # when the reader was last looked at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Loads what can be loaded before the first shard is there."""
        self.maker.prepare(alone=True)

    def put(self, output: Output, item: Any, rows: int) -> None:
        """Makes and commits an output, unless it exists. item: what the maker gets. rows: in the output."""
        if output.existing:
            self.run.progress.advance(rows)
            self.run.pass_on(output)
            return
        product = self.maker.make(item, self._advance)
        self.facts(product.facts)
        self.run.commit_output(output, product.table, product.counts)

    def _advance(self, rows: int) -> None:
        now = time.monotonic()
        if not rows or now - self._checked > CHECK_SECONDS:
            pipe.check_reader()
            self._checked = now
        self.run.progress.advance(rows)

    def finish(self) -> None:
        """Does nothing: all that was put is committed."""

    def close(self) -> None:
        """Closes the maker."""
        self.maker.close()


class Elsewhere:
    """Has shards made by workers, each of which has been opened with `open_making`.

    workers: who makes them. facts: called for each shard with the maker's facts, in the order of the shards.
    """

    def __init__(self, run: StageRun, workers: Workers, facts: Facts) -> None:
        self.run = run
        self.workers = workers
        self.facts = facts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def watched(self) -> pipe.Watched:
        """What has to be handled while the stage waits for input: the workers."""
        return self.workers

    def prepare(self) -> None:
        """Starts the workers, so that they can load what they need before the first shard is there."""
        self.workers.prepare()

    def put(self, output: Output, item: Any, rows: int) -> None:
        """Has an output made, unless it exists, and commits it when all earlier ones are.

        item: what the maker gets. rows: in the output. Waits while too many shards are in flight.
        """
        if output.existing:
            self.run.progress.advance(rows)
            self.workers.pass_on(lambda: self.run.pass_on(output))
            return
        order = self.run.order(output)

        def deliver(result: tuple[Made, Mapping[str, Any]]) -> None:
            made, facts = result
            self.facts(facts)
            self.run.commit_staged(output.name, made)

        self.workers.submit(output.name, (order, item), deliver)

    def finish(self) -> None:
        """Returns when all that was put is committed."""
        self.workers.finish()

    def close(self) -> None:
        """Ends the workers, and removes what they have left half-written."""
        self.workers.close()
        if self.run.directory is not None:
            remove_leftovers(self.run.directory)


class _MakingWorker:
    """A maker as a worker: it writes the shard beside its name, and the stage renames it."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def prepare(self) -> None:
        self.maker.prepare(alone=False)

    def work(self, item: tuple[Order, Any], advance: Callable[[int], None]) -> tuple[Made, Mapping[str, Any]]:
        started = Moment.now()
        order, what = item
        product = self.maker.make(what, advance)
        return order.stage(product.table, product.counts, started), product.facts


def open_making(open_maker: Callable[[], Maker]) -> _MakingWorker:
    """The worker of a maker; as functools.partial(open_making, open_maker) it can be sent to another process."""
    return _MakingWorker(open_maker())
