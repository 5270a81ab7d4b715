"""filter: keeps the groups worth learning from, and stops the stages before it once there are enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from primecli.errors import UsageError
from primecli.files import Json
from primecli.options import Option, Shards, positive
from primecli.pipeline.options import StageOptions

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.pipeline.stage_run import StageRun
    from primecli.shards.parquet import Shard

ACCURACY_ROUNDING = 1e-6  # rewards are float32, so a mean of 0.2 may be stored as 0.20000000298
TOO_UNIFORM = "too_uniform"
REASONS = ("ungraded", "truncated", "too_hard", "too_easy", TOO_UNIFORM)
"""The reasons to drop a group, in the order in which they are checked."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions(StageOptions):
    """The options of `primecli filter`."""

    shards: Shards = ()
    accuracy: Annotated[
        tuple[float, float],
        Option("Keep groups whose mean outcome reward is within these bounds, inclusive.", metavar="LO HI"),
    ] = (0.2, 0.8)
    min_std: Annotated[
        float | None,
        Option(
            "Keep groups whose outcome rewards have at least this standard deviation, such as 0.05. For fractional "
            "rewards: a group that is half right throughout teaches nothing.  [default: off]",
            max=0.5,
            check=positive,
        ),
    ] = None
    groups: Annotated[
        int | None,
        Option("Stop and close the input once this many groups have passed.  [default: take all]", min=1),
    ] = None
    allow_truncated: Annotated[bool, Option("Keep groups with a response that was cut off at the length limit.")] = (
        False
    )

    def check(self) -> None:
        """Raises UsageError for impossible bounds."""
        super().check()
        low, high = self.accuracy
        if not 0 <= low <= high <= 1:
            raise UsageError(f"--accuracy {low} {high}: give two bounds between 0 and 1, the lower one first")

    def reasons(self) -> tuple[str, ...]:
        """The reasons that can drop a group."""
        return tuple(reason for reason in REASONS if reason != TOO_UNIFORM or self.min_std is not None)

    def recipe(self) -> dict[str, Json]:
        """Leaves --min-std out where it is off, so that results from before it existed stay valid."""
        recipe = super().recipe()
        return recipe if self.min_std is not None else {key: recipe[key] for key in recipe if key != "min_std"}


def filter(options: FilterOptions) -> None:
    """Writes the groups that pass, shard by shard, until there are enough of them."""
    from primecli.pipeline import pipe
    from primecli.pipeline.stage_run import StageRun
    from primecli.shards import schema

    with StageRun("filter", options, finish=metrics) as run:
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
            pipe.mark_said()
            return
        if run.counts.get("truncated", 0) > _judged(run.counts) / 2:
            run.warn(_cut_off(run.counts))
        if options.groups is not None and passed < options.groups:
            run.note(f"the input ended after {passed} of {options.groups} groups")


def _advice(counts: Mapping[str, int | float]) -> str:
    """What to do if no group has passed."""
    judged = _judged(counts)
    if counts.get("ungraded") and counts["ungraded"] == judged:
        return "all are ungraded; the messages of `verify` say why"
    if counts.get("truncated", 0) > judged / 2:
        return _cut_off(counts)
    if counts.get(TOO_UNIFORM, 0) > judged / 2:
        return "lower --min-std, or sample more prompts or more responses to each"
    return "widen --accuracy, or sample more prompts or more responses to each"


def _judged(counts: Mapping[str, int | float]) -> int:
    """How many groups were judged: kept, or dropped for a reason."""
    return sum(int(counts.get(outcome, 0)) for outcome in ("kept", *REASONS))


def _cut_off(counts: Mapping[str, int | float]) -> str:
    """Says that most groups were dropped for truncation; without them a policy cannot learn to end its responses."""
    return (
        f"{int(counts['truncated'])} of {_judged(counts)} groups are dropped, since a response was cut off at the "
        "length limit: raise --max-tokens of generate, or keep them with --allow-truncated"
    )


def _filter_shard(run: StageRun, shard: Shard, options: FilterOptions, room: int | None) -> int:
    """Writes the groups of a shard that pass, and returns how many. room: how many may pass; None for all."""
    import pyarrow as pa

    from primecli.shards import schema

    table = run.read(shard)
    kept: set[str] = set()
    counts = dict.fromkeys(("kept", *options.reasons(), "not_needed"), 0)
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
    """For each group, in the order of the shard: the reason to drop it, one of REASONS, or None to keep it."""
    from primecli.shards import schema

    rewards: dict[str, list[float | None]] = {}
    truncated: set[str] = set()
    columns = (table[name].to_pylist() for name in (schema.GROUP_ID, schema.OUTCOME_REWARD, schema.FINISH_REASON))
    for group, reward, finish in zip(*columns, strict=True):
        rewards.setdefault(group, []).append(reward)
        if finish == "length":
            truncated.add(group)
    return {
        group: _reason(group_rewards, group in truncated and not options.allow_truncated, options)
        for group, group_rewards in rewards.items()
    }


def _reason(rewards: list[float | None], truncated: bool, options: FilterOptions) -> str | None:
    """The reason to drop a group with these rewards; None to keep it. A reward of None is unknown."""
    low, high = options.accuracy
    graded = [reward for reward in rewards if reward is not None]
    mean = sum(graded) / len(rewards)
    if len(graded) < len(rewards):
        return "ungraded"
    if truncated:
        return "truncated"
    if mean < low - ACCURACY_ROUNDING:
        return "too_hard"
    if mean > high + ACCURACY_ROUNDING:
        return "too_easy"
    if options.min_std is not None and _deviation(graded) < options.min_std - ACCURACY_ROUNDING:
        return TOO_UNIFORM
    return None


def _deviation(rewards: list[float]) -> float:
    """The standard deviation of a group's rewards, as of a population: 0.5 for half right and half wrong."""
    mean = sum(rewards) / len(rewards)
    return math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    names = [name for name in ("kept", *REASONS, "not_needed") if name != TOO_UNIFORM or name in counts]
    return {name: counts.get(name, 0) for name in names}
