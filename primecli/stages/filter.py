"""filter: keeps the groups worth learning from, and stops the stages before it once it has enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from primecli.errors import UsageError
from primecli.options import Option, Shards
from primecli.pipeline.options import StageOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard

ACCURACY_ROUNDING = 1e-6  # rewards are float32: a mean of 0.2 may stand as 0.20000000298
REASONS = ("ungraded", "truncated", "too_hard", "too_easy")
"""Why a group is dropped, in the order in which they are looked at."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions(StageOptions):
    """The options of `primecli filter`."""

    shards: Shards = ()
    accuracy: Annotated[
        tuple[float, float],
        Option("Keep groups of a mean outcome reward within, ends included.", metavar="LO HI"),
    ] = (0.2, 0.8)
    groups: Annotated[
        int | None,
        Option("Stop when so many groups have passed, and close the input.  [default: take all]", min=1),
    ] = None
    allow_truncated: Annotated[bool, Option("Keep groups that hold a response cut at its length limit.")] = False

    def check(self) -> None:
        """Raises UsageError for bounds that no accuracy lies between."""
        super().check()
        low, high = self.accuracy
        if not 0 <= low <= high <= 1:
            raise UsageError(f"--accuracy {low} {high}: the bounds are within 0 and 1, the lower one first")


def filter(options: FilterOptions) -> None:
    """Writes shards of the groups that pass, until there are enough of them."""
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards import schema

    with StageRun("filter", options, finish=_metrics) as run:
        needs = [schema.GROUP_ID, schema.SAMPLE_INDEX, schema.OUTCOME_REWARD, schema.FINISH_REASON]
        passed = 0
        for shard in run.shards(needs):
            run.expect(shard)
            room = None if options.groups is None else options.groups - passed
            if run.skip(shard, extra={"groups_wanted_still": room}):
                passed = int(run.counts["kept"])
            else:
                passed += _filter_shard(run, shard, options, room)
            run.progress.advance(shard.footer.rows)
            if passed == options.groups:
                run.close_input()
                break
        if not run.counts.get("kept"):
            run.warn(f"no group has passed: {_advice(run.counts)}")
        elif options.groups is not None and passed < options.groups:
            run.note(f"the input has ended with {passed} of {options.groups} groups")


def _advice(counts: Mapping[str, int | float]) -> str:
    dropped = {reason: int(counts.get(reason, 0)) for reason in REASONS}
    if dropped["ungraded"] and dropped["ungraded"] == sum(dropped.values()):
        return "all are ungraded, and what `verify` said tells why"
    return "widen --accuracy, or sample more prompts or more responses of each"


def _filter_shard(run: StageRun, shard: Shard, options: FilterOptions, room: int | None) -> int:
    """Writes the groups of a shard that pass; returns how many. room: how many are still wanted, all when None."""
    import pyarrow as pa

    from primecli.shards import schema

    table = run.read(shard)
    kept: set[str] = set()
    counts = dict.fromkeys(("kept", *REASONS, "not_needed"), 0)
    for group, reason in judge_groups(table, options).items():
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


def judge_groups(table: pa.Table, options: FilterOptions) -> dict[str, str | None]:
    """Why each group is dropped, one of REASONS, or None where it is kept; in the order of the shard."""
    from primecli.shards import schema

    rewards: dict[str, list[float | None]] = {}
    truncated: set[str] = set()
    columns = (table[name].to_pylist() for name in (schema.GROUP_ID, schema.OUTCOME_REWARD, schema.FINISH_REASON))
    for group, reward, finish in zip(*columns, strict=True):
        rewards.setdefault(group, []).append(reward)
        if finish == "length":
            truncated.add(group)
    return {
        group: _reason(of_group, group in truncated and not options.allow_truncated, *options.accuracy)
        for group, of_group in rewards.items()
    }


def _reason(rewards: list[float | None], truncated: bool, low: float, high: float) -> str | None:
    """Why a group with these rewards is dropped; None where it is kept. A null reward is one that nobody knows."""
    graded = [reward for reward in rewards if reward is not None]
    mean = sum(graded) / len(rewards)
    if len(graded) < len(rewards):
        return "ungraded"
    if truncated:
        return "truncated"
    if mean < low - ACCURACY_ROUNDING:  # a NaN among the rewards makes the mean NaN, which no bound refuses
        return "too_hard"
    if mean > high + ACCURACY_ROUNDING:
        return "too_easy"
    return None


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    return {name: counts.get(name, 0) for name in ("kept", *REASONS, "not_needed")}
