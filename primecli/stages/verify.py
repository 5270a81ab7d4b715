"""verify: grades responses with outcome rewards and verdicts."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from primecli.errors import QuarantineError, UsageError
from primecli.files import Json
from primecli.options import Force, Option, Out, Partial, Quiet, Shards, as_json
from primecli.pipeline.options import RayOptions, StageOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.pipeline.making import Elsewhere, Facts, Here, Product
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard
    from primecli.verifiers import Grade
    from primecli.verifiers.pool import GradingPool


class Sandbox(StrEnum):
    """What the programs in responses run in."""

    auto = "auto"
    bwrap = "bwrap"
    limits = "limits"
    none = "none"


class CodeReward(StrEnum):
    """How the tests that a program passes become its reward."""

    all = "all"
    fraction = "fraction"


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(RayOptions, StageOptions):
    """The options of `primecli verify`.

    The options that decide how rows are graded are recorded per verifier, and only for the verifiers that a shard's
    rows need (see `Graders.recipe`), so that an option of one verifier does not change the fingerprint of rows that
    another one grades.
    """

    shards: Shards = ()
    verifier: Annotated[
        tuple[str, ...],
        Option(
            "Grade the rows whose ability or data source is KEY, or all rows, with NAME: math, code, an installed "
            "verifier, or module:function (found in the current directory too); may be repeated.  [default: by "
            "ability, then data source, else math]",
            "call",
            metavar="[KEY=]NAME",
        ),
    ] = ()
    timeout: Annotated[float, Option("Time limit of one answer, in seconds.", "call", min=0.1)] = 5.0
    last_number: Annotated[
        bool,
        Option(
            "math: if there is neither a box nor a final-answer phrase, grade the last number.",
            "call",
            flags="--last-number/--no-last-number",
        ),
    ] = True
    sandbox: Annotated[
        Sandbox,
        Option(
            "code: auto uses bwrap (bubblewrap), and refuses to run without it; limits and none do not hide files.",
            "execution",
        ),
    ] = Sandbox.auto
    code_reward: Annotated[
        CodeReward, Option("code: reward 1 if all tests pass, or the fraction that passes.", "call")
    ] = CodeReward.all
    test_timeout: Annotated[float, Option("code: CPU time limit of one test, in seconds.", "call", min=0.1)] = 6.0
    program_timeout: Annotated[
        float, Option("code: time limit of all tests of a program, in seconds.", "call", min=0.1)
    ] = 60.0
    overlong: Annotated[
        tuple[int, int] | None,
        Option(
            "Lower the reward of long responses: by nothing up to BUFFER tokens before LIMIT, then in a straight line, "
            "and from LIMIT on by --overlong-penalty, but never below 0.  [default: off]",
            "call",  # recorded by `recipe` where it is on
            metavar="LIMIT BUFFER",
        ),
    ] = None
    overlong_penalty: Annotated[
        float,
        Option("With --overlong: what a response at the limit loses.", "call", min=0.0, max=1.0),
    ] = 1.0
    workers: Annotated[
        int | None,
        Option("Number of grading processes; with --ray, of each worker.  [default: one per core]", "execution", min=1),
    ] = None
    max_errors: Annotated[
        int, Option("Exit with code 4 if the verifier fails on more rows than this.", "execution", min=0)
    ] = 0
    out: Out = None
    force: Force = False
    partial: Partial = False
    quiet: Quiet = False

    def check(self) -> None:
        """Raises UsageError for an impossible limit, and for a penalty without one."""
        super().check()
        if self.overlong is None:
            if self.overlong_penalty != 1.0:
                raise UsageError("--overlong-penalty needs --overlong")
            return
        limit, buffer = self.overlong
        if not 0 < buffer <= limit:
            raise UsageError(
                f"--overlong {limit} {buffer}: the buffer must be between 1 and the limit, in tokens",
                "the limit is that of generate --max-tokens",
            )

    def recipe(self) -> dict[str, Json]:
        """Adds the penalty for long responses, if there is one."""
        recipe = super().recipe()
        if self.overlong is None:
            return recipe
        return {**recipe, "overlong": as_json(self.overlong), "overlong_penalty": self.overlong_penalty}

    def settings(self) -> dict[str, dict[str, Any]]:
        """The arguments of primecli's own verifiers, by name."""
        return {
            "math": {"last_number": self.last_number},
            "code": {
                "sandbox": "bwrap" if self.sandbox is Sandbox.auto else self.sandbox.value,
                "code_reward": self.code_reward.value,
                "test_timeout": self.test_timeout,
                "program_timeout": self.program_timeout,
            },
        }

    def chosen(self) -> dict[str, str]:
        """The verifiers that --verifier names, by key; "" is for all other rows.

        Raises UsageError for an unknown verifier, or for two with the same key.
        """
        from primecli.pipeline.invocation import working_directory
        from primecli.verifiers import verifier_identity

        chosen: dict[str, str] = {}
        for argument in self.verifier:
            key, _, name = argument.rpartition("=")
            if chosen.setdefault(key, name) != name:
                raise UsageError(f"--verifier {argument}: {key or 'all rows'} would have two verifiers")
            here = working_directory()
            if ":" in name and here is not None and here not in sys.path:
                sys.path.insert(0, here)  # so that modules in it are found, also by the workers
            verifier_identity(name)
        return chosen


def verify(options: VerifyOptions) -> None:
    """Grades every response of every shard. Raises QuarantineError if too many could not be graded."""
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards import schema

    first_errors: list[str] = []
    notices: set[str] = set()

    with StageRun("verify", options, finish=metrics) as run:

        def learn(facts: Mapping[str, Any]) -> None:
            first_errors.extend(facts["first_error"])
            for notice in facts["notices"]:
                if notice not in notices:
                    notices.add(notice)
                    run.warn(notice)

        choice = Choice(options)
        with _open_making(run, options, learn) as making:
            needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE, schema.GROUND_TRUTH]
            needs += [schema.RESPONSE_IDS] if options.overlong else []
            for shard in run.shards(needs, watched=making.watched):
                run.expect(shard)
                names = choice.names(shard)
                output = run.output(shard, extra={"verifiers": choice.recipe(names)})
                making.put(output, (shard, names), shard.footer.rows)
            making.finish()
    for key in sorted(set(choice.chosen) - choice.keys - {""}):
        run.warn(f"--verifier {key}={choice.chosen[key]}: no row has the ability or data source {key}")
    errors = int(run.counts.get("error", 0))
    if errors > options.max_errors:
        first_error = first_errors[0] if first_errors else "see the column verifier_detail"
        raise QuarantineError(
            f"{errors} rows could not be graded, and --max-errors allows {options.max_errors}",
            f"{first_error}; the shards in {run.directory} are complete",
        )


def _open_making(run: StageRun, options: VerifyOptions, facts: Facts) -> Here | Elsewhere:
    """Where the shards are graded: by processes of this one, or on a Ray cluster by processes of each worker."""
    from primecli.pipeline import making, pipe

    if options.ray is None:
        graders = Graders(options, options.workers or os.cpu_count() or 1, cancelled=pipe.reader_gone)
        return making.Here(run, graders, facts)
    from primecli.stages.on_ray import open_ray_workers

    settled = replace(options, shards=(), ray=None, ray_workers=None, ray_resources=None)
    open_worker = partial(making.open_making, partial(open_graders, settled))
    workers = open_ray_workers(
        options, open_worker, gpus=False, cpus=options.workers, advance=run.progress.advance, warn=run.warn
    )
    return making.Elsewhere(run, workers, facts)


def open_graders(options: VerifyOptions) -> Graders:
    """What grades shards in a worker on a Ray cluster: with --workers processes, or one for each of its CPUs."""
    from primecli.pipeline.ray_cluster import assigned_cpus

    return Graders(options, options.workers or assigned_cpus(), cancelled=lambda: False)


class Choice:
    """Which verifier grades which row.

    options: the options of the stage.
    chosen: the verifiers that --verifier names, by ability or data source.
    settings: the arguments of the verifiers, by name.
    keys: the abilities and data sources of the rows so far.
    """

    def __init__(self, options: VerifyOptions) -> None:
        self.options = options
        self.chosen = options.chosen()
        self.settings = options.settings()
        self.keys: set[str | None] = set()

    def names(self, shard: Shard) -> list[str]:
        """The name of the verifier for each row of a shard."""
        from primecli.shards import schema
        from primecli.shards.parquet import read_table
        from primecli.verifiers import choose_verifier

        columns = [name for name in (schema.ABILITY, schema.DATA_SOURCE) if name in shard.footer.columns]
        table = read_table(shard.path, [*columns, schema.GROUP_ID], expected=shard.footer)
        nothing = [None] * table.num_rows
        abilities, sources = (
            table[name].to_pylist() if name in columns else nothing for name in (schema.ABILITY, schema.DATA_SOURCE)
        )
        self.keys |= {*abilities, *sources}
        return [choose_verifier(*keys, self.chosen) for keys in zip(abilities, sources, strict=True)]

    def recipe(self, names: Sequence[str]) -> dict[str, Any]:
        """What the grades depend on, by verifier. names: of the verifiers, as `names` returns them."""
        from primecli.verifiers import verifier_identity

        return {
            name: {"version": verifier_identity(name), "timeout": self.options.timeout, **self.settings.get(name, {})}
            for name in sorted(set(names))
        }


class Graders:
    """Grades shards: a `making.Maker`. It has a pool of grading processes per verifier, started when a row needs it.

    options: the options of the stage.
    workers: how many processes each pool has.
    cancelled: called often while rows are graded; once it returns True, the rest is not.
    """

    def __init__(self, options: VerifyOptions, workers: int, *, cancelled: Callable[[], bool]) -> None:
        options.chosen()  # so that the modules of verifiers in the current directory are found
        self.options = options
        self.workers = workers
        self.cancelled = cancelled
        self.settings = options.settings()
        self._notices: list[str] = []
        self._pools: dict[str, GradingPool] = {}
        self._stack = ExitStack()

    def prepare(self, *, alone: bool) -> None:
        """Does nothing: which verifiers are needed, the rows tell."""

    def close(self) -> None:
        """Ends the grading processes."""
        self._stack.close()

    def pool(self, name: str) -> GradingPool:
        """The pool of a verifier."""
        from primecli.verifiers.pool import GradingPool

        if name not in self._pools:
            settings = self.settings.get(name, {})
            pool = self._stack.enter_context(GradingPool(name, self.workers, self.options.timeout, settings))
            notice = getattr(pool.verifier, "notice", None)
            if notice:
                self._notices.append(notice)
            self._pools[name] = pool
        return self._pools[name]

    def make(self, item: tuple[Shard, Sequence[str]], advance: Callable[[int], None]) -> Product:
        """The rows of a shard with the columns of verify. item: the shard, and the verifier for each of its rows."""
        from primecli.pipeline.making import Product
        from primecli.pipeline.orders import read_whole
        from primecli.shards import schema
        from primecli.verifiers import Task

        shard, names = item
        table = read_whole(shard)
        tasks = [
            Task(response, truth)
            for response, truth in zip(
                table[schema.RESPONSE].to_pylist(), table[schema.GROUND_TRUTH].to_pylist(), strict=True
            )
        ]
        by_row: dict[int, Grade] = {}
        for name in sorted(set(names)):
            rows = [row for row, chosen in enumerate(names) if chosen == name]
            for index, grade in self.pool(name).grade_all([tasks[row] for row in rows], cancelled=self.cancelled):
                by_row[rows[index]] = grade
                advance(1)
        advance(0)  # which ends the stage if its reader has gone, and the rows are not all graded
        assert len(by_row) == len(tasks), "a pool grades every task, unless it is cancelled"
        grades = [by_row[row] for row in range(len(tasks))]
        failures = (f"the first: {grade.detail}" for grade in grades if grade.verdict == "error")
        facts = {"first_error": [*itertools.islice(failures, 1)], "notices": tuple(self._notices)}
        table, counts = _with_grades(table, grades)
        if self.options.overlong is not None:
            table, penalised = _with_penalties(table, *self.options.overlong, self.options.overlong_penalty)
            counts |= penalised
        return Product(table, counts, facts)


def _with_grades(table: pa.Table, grades: Sequence[Grade]) -> tuple[pa.Table, dict[str, float]]:
    """The table with the grades of its rows as columns, and its counts."""
    from primecli.shards import schema
    from primecli.shards.columns import with_columns
    from primecli.verifiers import VERDICTS

    fields = {
        schema.OUTCOME_REWARD: "reward",
        schema.VERDICT: "verdict",
        schema.EXTRACTED_ANSWER: "extracted_answer",
        schema.VERIFIER_DETAIL: "detail",
        schema.TESTS_PASSED: "tests_passed",
        schema.TESTS_TOTAL: "tests_total",
        schema.FIRST_FAILURE: "first_failure",
    }
    table = with_columns(
        table, {name: [getattr(grade, attribute) for grade in grades] for name, attribute in fields.items()}
    )
    counts: dict[str, float] = {verdict: sum(grade.verdict == verdict for grade in grades) for verdict in VERDICTS}
    return table, {**counts, "reward": sum(grade.reward or 0.0 for grade in grades)}


def _with_penalties(table: pa.Table, limit: int, buffer: int, penalty: float) -> tuple[pa.Table, dict[str, float]]:
    """The table with the rewards of long responses lowered, and the counts of that. penalty: that of a whole one."""
    from primecli.core.overlong import overlong_penalty
    from primecli.shards import schema
    from primecli.shards.columns import flat_column, with_columns

    _, lengths = flat_column(table, schema.RESPONSE_IDS)
    lost = [penalty * overlong_penalty(length, limit, buffer) for length in lengths.tolist()]
    rewards = [
        None if reward is None else max(0.0, reward - loss)
        for reward, loss in zip(table[schema.OUTCOME_REWARD].to_pylist(), lost, strict=True)
    ]
    counts = {"overlong": sum(loss > 0 for loss in lost), "lowered": sum(reward or 0.0 for reward in rewards)}
    return with_columns(table, {schema.OUTCOME_REWARD: rewards}), counts


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    from primecli.verifiers import VERDICTS

    graded = sum(counts.get(verdict, 0) for verdict in VERDICTS if verdict != "error")
    accuracy = {"accuracy": counts["reward"] / graded} if graded else {}
    penalised = {"overlong": counts["overlong"]} if "overlong" in counts else {}
    if penalised and graded:
        penalised["reward_mean"] = counts["lowered"] / graded
    return {**accuracy, **{verdict: counts.get(verdict, 0) for verdict in VERDICTS}, **penalised}
