"""`primecli verify`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard
    from primecli.verifiers import Grade
    from primecli.verifiers.pool import GradingPool


class Sandbox(StrEnum):
    """What programs run in."""

    auto = "auto"
    bwrap = "bwrap"
    limits = "limits"
    none = "none"


class CodeReward(StrEnum):
    """What a program is rewarded for."""

    all = "all"
    fraction = "fraction"


def verify(
    shards: options.Shards = None,
    verifier: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--verifier",
            metavar="[KEY=]NAME",
            help="NAME grades the rows whose ability or data source is KEY, or all rows: math, code, an installed "
            "one or module:function (also of the current directory); may be repeated.  [default: by ability, then "
            "data source, else math]",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for one answer.", callback=options.finite)
    ] = 5.0,
    last_number: Annotated[
        bool,
        typer.Option(
            "--last-number/--no-last-number",
            help="math: where there is neither a box nor a final-answer phrase, grade the last number.",
        ),
    ] = True,
    sandbox: Annotated[
        Sandbox,
        typer.Option("--sandbox", help="code: auto is bwrap (bubblewrap), or refuses; limits and none hide no files."),
    ] = Sandbox.auto,
    code_reward: Annotated[
        CodeReward, typer.Option("--code-reward", help="code: 1 when all tests pass, or the fraction that passes.")
    ] = CodeReward.all,
    test_timeout: Annotated[
        float, typer.Option("--test-timeout", min=0.1, help="code: CPU seconds of one test.", callback=options.finite)
    ] = 6.0,
    program_timeout: Annotated[
        float,
        typer.Option(
            "--program-timeout", min=0.1, help="code: seconds for all tests of a program.", callback=options.finite
        ),
    ] = 60.0,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--workers", min=1, help="Grading processes.  [default: all cores]", show_default=False),
    ] = None,
    max_errors: Annotated[
        int,
        typer.Option("--max-errors", min=0, help="Rows that the verifier may fail on before the exit code is 4."),
    ] = 0,
    out: options.Out = None,
    force: options.Force = False,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """math takes the answer from the last \\boxed{}, else from a final-answer phrase, else it is the last number.
    code runs the program of a response against its tests in a sandbox.

    What the model caused is reward 0, with the verdict wrong, unparseable or timeout. Where the verifier itself or the
    data failed (no ground truth, for one), the reward is null and the verdict error: such rows are counted,
    filter drops their groups, and with more of them than --max-errors the stage ends with exit code 4.

    Example:

      primecli verify --timeout 5 runs/1/generate
    """
    from primecli.errors import QuarantineError
    from primecli.pipeline.stage_run import StageOptions, StageRun
    from primecli.shards import schema

    run = StageRun(
        "verify",
        StageOptions(shards or (), out, force, partial, quiet),
        config={},
        execution={"workers": workers, "max_errors": max_errors, "sandbox": sandbox.value},
        finish=_metrics,
    )
    settings: dict[str, dict[str, Any]] = {
        "math": {"last_number": last_number},
        "code": {
            "sandbox": "bwrap" if sandbox is Sandbox.auto else sandbox.value,
            "code_reward": code_reward.value,
            "test_timeout": test_timeout,
            "program_timeout": program_timeout,
        },
    }
    with run, _Graders(run, _chosen(verifier or []), settings, timeout) as graders:
        for shard in run.shards([schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE, schema.GROUND_TRUTH]):
            run.expect(shard)
            names = graders.names(shard)
            if run.skip(shard, extra={"verifiers": graders.recipe(names)}):
                run.progress.advance(shard.footer.rows)
                continue
            run.commit(*graders.grade(run.read(shard), names))
    for key in sorted(set(graders.chosen) - graders.keys - {""}):
        run.warn(f"--verifier {key}={graders.chosen[key]}: no row has the ability or data source {key}")
    errors = int(run.counts.get("error", 0))
    if errors > max_errors:
        raise QuarantineError(
            f"{errors} rows could not be graded, and --max-errors allows {max_errors}",
            f"{graders.first_error or 'see column verifier_detail'}; the shards in {run.directory} are complete",
        )


def _chosen(arguments: Sequence[str]) -> dict[str, str]:
    """--verifier arguments as names by key, "" for all other rows; each checked to be known."""
    from primecli.errors import UsageError
    from primecli.verifiers import verifier_identity

    chosen: dict[str, str] = {}
    for argument in arguments:
        key, _, name = argument.rpartition("=")
        if chosen.setdefault(key, name) != name:
            raise UsageError(f"--verifier {argument}: {key or 'all rows'} would have two verifiers")
        if ":" in name and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # a module beside the prompts is found, also by the workers
        verifier_identity(name)
    return chosen


class _Graders:
    """The pools of the verifiers that the rows need, each started when the first row needs it."""

    def __init__(
        self, run: StageRun, chosen: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]], timeout: float
    ) -> None:
        self.run = run
        self.chosen = chosen
        self.settings = settings
        self.timeout = timeout
        self.keys: set[str | None] = set()  # abilities and data sources that there were
        self.first_error: str | None = None
        self._pools: dict[str, GradingPool] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Graders:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def names(self, shard: Shard) -> list[str]:
        """The verifier of each row of a shard."""
        from primecli.shards import schema
        from primecli.shards.parquet import read_table
        from primecli.verifiers import choose_verifier

        columns = [name for name in (schema.ABILITY, schema.DATA_SOURCE) if name in shard.footer.columns]
        table = read_table(shard.path, [*columns, schema.GROUP_ID])
        nothing = [None] * table.num_rows
        abilities, sources = (
            table[name].to_pylist() if name in columns else nothing for name in (schema.ABILITY, schema.DATA_SOURCE)
        )
        self.keys |= {*abilities, *sources}
        return [choose_verifier(*keys, self.chosen) for keys in zip(abilities, sources, strict=True)]

    def recipe(self, names: Sequence[str]) -> dict[str, Any]:
        """What the grades of these rows depend on."""
        from primecli.verifiers import verifier_identity

        return {
            name: {"version": verifier_identity(name), "timeout": self.timeout, **self.settings.get(name, {})}
            for name in sorted(set(names))
        }

    def pool(self, name: str) -> GradingPool:
        """The workers of a verifier."""
        from primecli.pipeline.progress import say
        from primecli.verifiers.pool import GradingPool

        if name not in self._pools:
            options = self.settings.get(name, {})
            # a verifier with deadlines of its own is stopped from outside only when they have failed
            timeout = 2 * options["program_timeout"] + 90 if "program_timeout" in options else self.timeout
            workers = self.run.execution["workers"] or os.cpu_count() or 1
            pool = self._stack.enter_context(GradingPool(name, workers, timeout, options))
            notice = getattr(pool.verifier, "notice", None)
            if notice:
                say("verify", notice)
            self._pools[name] = pool
        return self._pools[name]

    def grade(self, table: pa.Table, names: Sequence[str]) -> tuple[pa.Table, dict[str, float]]:
        """The table with the columns of this stage, and its counts."""
        from primecli.pipeline import pipe
        from primecli.shards import schema
        from primecli.verifiers import Task

        tasks = [
            Task(response, truth)
            for response, truth in zip(
                table[schema.RESPONSE].to_pylist(), table[schema.GROUND_TRUTH].to_pylist(), strict=True
            )
        ]
        found: dict[int, Grade] = {}
        for name in sorted(set(names)):
            rows = [row for row, chosen in enumerate(names) if chosen == name]
            for place, grade in self.pool(name).grade_all([tasks[row] for row in rows], cancelled=pipe.reader_gone):
                found[rows[place]] = grade
                self.run.progress.advance(1)
        pipe.check_reader()
        assert len(found) == len(tasks), "a pool grades every task unless it is cancelled"
        grades = [found[row] for row in range(len(tasks))]
        failures = (f"the first: {grade.detail}" for grade in grades if grade.verdict == "error")
        self.first_error = self.first_error or next(failures, None)
        return _with_grades(table, grades)


def _with_grades(table: pa.Table, grades: Sequence[Grade]) -> tuple[pa.Table, dict[str, float]]:
    from primecli.shards import schema
    from primecli.shards.parquet import with_columns
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


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    from primecli.verifiers import VERDICTS

    graded = sum(counts.get(verdict, 0) for verdict in VERDICTS if verdict != "error")
    metrics = {"accuracy": counts["reward"] / graded} if graded else {}
    return {**metrics, **{verdict: counts.get(verdict, 0) for verdict in VERDICTS}}
