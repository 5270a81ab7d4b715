"""`primecli filter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard

ACCURACY_ROUNDING = 1e-6  # rewards are float32: a mean of 0.2 may stand as 0.20000000298
REASONS = ("ungraded", "truncated", "too_hard", "too_easy")


def filter(
    shards: options.Shards = None,
    accuracy: Annotated[
        tuple[float, float],
        typer.Option("--accuracy", metavar="LO HI", help="Keep groups of a mean outcome reward within, ends included."),
    ] = (0.2, 0.8),
    groups: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--groups",
            min=1,
            help="Stop when so many groups have passed, and close the input.  [default: take all]",
            show_default=False,
        ),
    ] = None,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Keep groups that hold a response cut at its length limit.")
    ] = False,
    out: options.Out = None,
    force: options.Force = False,
    partial: options.Partial = False,
    quiet: options.Quiet = False,
) -> None:
    """A group passes when its accuracy is within the bounds and no response of it was cut short. A group with
    an ungraded response never passes. _summary.json counts why groups were dropped.

    With --groups N this stage behaves like head: after N groups it closes its input, and generate, which
    sees the closed pipe, samples no more. A shard of which no group passes is not written.

    Example:

      primecli filter --accuracy 0.2 0.8 --groups 64 runs/1/verify
    """
    from primecli.errors import UsageError
    from primecli.pipeline.progress import say
    from primecli.pipeline.stage_run import StageOptions, StageRun
    from primecli.shards import schema

    low, high = accuracy
    if not 0 <= low <= high <= 1:
        raise UsageError(f"--accuracy {low} {high}: the bounds are within 0 and 1, the lower one first")
    run = StageRun(
        "filter",
        StageOptions(shards or (), out, force, partial, quiet),
        config={"accuracy": [low, high], "groups": groups, "allow_truncated": allow_truncated},
        finish=_metrics,
    )
    with run:
        needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.OUTCOME_REWARD, schema.FINISH_REASON]
        passed = 0
        for shard in run.shards(needs):
            run.expect(shard)
            extra = {"groups_wanted_still": None if groups is None else groups - passed}
            if run.skip(shard, extra=extra):
                passed = int(run.counts["kept"])
            else:
                passed += _filter_shard(
                    run, shard, low, high, allow_truncated, None if groups is None else groups - passed
                )
            run.progress.advance(shard.footer.rows)
            if passed == groups:
                run.close_input()
                break
        if not run.counts.get("kept"):
            run.warn(f"no group has passed: {_advice(run.counts)}")
        elif groups is not None and passed < groups and not quiet:
            say("filter", f"the input has ended with {passed} of {groups} groups")


def _advice(counts: Mapping[str, int | float]) -> str:
    dropped = {reason: int(counts.get(reason, 0)) for reason in REASONS}
    if dropped["ungraded"] and dropped["ungraded"] == sum(dropped.values()):
        return "all are ungraded, and what `verify` said tells why"
    return "widen --accuracy, or sample more prompts or more responses of each"


def _filter_shard(run: StageRun, shard: Shard, low: float, high: float, allow_truncated: bool, room: int | None) -> int:
    import pyarrow as pa

    from primecli.shards import schema

    table = run.read(shard)
    verdicts = judge_groups(table, low, high, allow_truncated)
    kept: set[str] = set()
    counts = dict.fromkeys(("kept", *REASONS, "not_needed"), 0)
    for group, reason in verdicts.items():
        if reason is None and (room is None or len(kept) < room):
            kept.add(group)
            counts["kept"] += 1
        else:
            counts[reason or "not_needed"] += 1
    if not kept:
        run.count(counts)
        return 0
    mask = pa.array([group in kept for group in table[schema.GROUP_ID].to_pylist()])
    run.commit(table.filter(mask), counts)
    return len(kept)


def judge_groups(table: pa.Table, low: float, high: float, allow_truncated: bool) -> dict[str, str | None]:
    """Why each group is dropped, one of REASONS, or None where it is kept; in the order of the shard."""
    from primecli.shards import schema

    rewards: dict[str, list[float | None]] = {}
    truncated: set[str] = set()
    columns = (table[name].to_pylist() for name in (schema.GROUP_ID, schema.OUTCOME_REWARD, schema.FINISH_REASON))
    for group, reward, finish in zip(*columns, strict=True):
        rewards.setdefault(group, []).append(reward)
        if finish == "length":
            truncated.add(group)
    verdicts: dict[str, str | None] = {}
    for group, found in rewards.items():
        graded = [reward for reward in found if reward is not None]
        mean = sum(graded) / len(found)
        if len(graded) < len(found):
            verdicts[group] = "ungraded"
        elif group in truncated and not allow_truncated:
            verdicts[group] = "truncated"
        elif mean < low - ACCURACY_ROUNDING:
            verdicts[group] = "too_hard"
        elif mean > high + ACCURACY_ROUNDING:
            verdicts[group] = "too_easy"
        else:
            verdicts[group] = None
    return verdicts


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    return {name: counts.get(name, 0) for name in ("kept", *REASONS, "not_needed")}
