"""`primecli verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.stage import StageRun
    from primecli.verifiers.pool import GradingPool


def verify(
    shards: options.Shards = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds that one answer may take.", callback=options.finite)
    ] = 5.0,
    last_number: Annotated[
        bool,
        typer.Option(
            "--last-number/--no-last-number",
            help="Where there is neither a box nor a final-answer phrase, grade the last number.",
        ),
    ] = True,
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
    """Grade responses: outcome rewards.

    The answer is taken from the last \\boxed{}, else from a final-answer phrase, else it is the last number. What
    the model caused is reward 0, with the verdict wrong, unparseable or timeout. Where the verifier itself or the
    data failed (no ground truth, for one), the reward is null and the verdict error: such rows are counted,
    filter drops their groups, and with more of them than --max-errors the stage ends with exit code 4.

    Example:

      primecli verify --timeout 5 runs/1/generate
    """
    import os

    from primecli import schema
    from primecli.errors import QuarantineError
    from primecli.stage import StageOptions, StageRun
    from primecli.verifiers.pool import GradingPool

    run = StageRun(
        "verify",
        StageOptions(shards or (), out, force, partial, quiet),
        config={"timeout": timeout, "last_number": last_number},
        execution={"workers": workers, "max_errors": max_errors},
        finish=_metrics,
    )
    with run, GradingPool("math", workers or os.cpu_count() or 1, timeout, {"last_number": last_number}) as pool:
        for shard in run.shards([schema.GROUP_ID, schema.SAMPLE_INDEX, schema.RESPONSE, schema.GROUND_TRUTH]):
            run.expect(shard)
            if run.skip(shard):
                run.progress.advance(shard.footer.rows)
                continue
            run.commit(*_grade(run, run.read(shard), pool))
    errors = int(run.counts.get("error", 0))
    if errors > max_errors:
        raise QuarantineError(
            f"{errors} rows could not be graded, and --max-errors allows {max_errors}",
            f"column verifier_detail says why; the shards in {run.directory} are complete",
        )


def _grade(run: StageRun, table: pa.Table, pool: GradingPool) -> tuple[pa.Table, dict[str, float]]:
    from primecli import pipe, schema
    from primecli.shards import with_columns
    from primecli.verifiers import VERDICTS, Grade, Task

    tasks = [
        Task(response, truth)
        for response, truth in zip(
            table[schema.RESPONSE].to_pylist(), table[schema.GROUND_TRUTH].to_pylist(), strict=True
        )
    ]
    grades: list[Grade | None] = [None] * len(tasks)
    for index, grade in pool.grade_all(tasks, cancelled=pipe.reader_gone):
        grades[index] = grade
        run.progress.advance(1)
    pipe.check_reader()
    graded = [grade for grade in grades if grade is not None]
    assert len(graded) == len(tasks), "the pool grades every task unless it is cancelled"
    table = with_columns(
        table,
        {
            schema.OUTCOME_REWARD: [grade.reward for grade in graded],
            schema.VERDICT: [grade.verdict for grade in graded],
            schema.EXTRACTED_ANSWER: [grade.extracted_answer for grade in graded],
            schema.VERIFIER_DETAIL: [grade.detail for grade in graded],
        },
    )
    counts: dict[str, float] = {verdict: sum(grade.verdict == verdict for grade in graded) for verdict in VERDICTS}
    return table, {**counts, "reward": sum(grade.reward or 0.0 for grade in graded)}


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    from primecli.verifiers import VERDICTS

    graded = sum(counts.get(verdict, 0) for verdict in VERDICTS if verdict != "error")
    metrics = {"accuracy": counts["reward"] / graded} if graded else {}
    return {**metrics, **{verdict: counts.get(verdict, 0) for verdict in VERDICTS}}
