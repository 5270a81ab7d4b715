"""What `primecli inspect` prints: the rollouts that it was asked for, drawn on the terminal or as JSON lines."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from primecli.analysis.heatmap import PALETTES, Paint, Theme, background
from primecli.analysis.rollout import (
    UNASKED,
    Measure,
    Reader,
    Rollout,
    default_measure,
    rollout_fields,
    sampled_differently,
)
from primecli.analysis.search import Criteria, Sort, find, find_pairs
from primecli.analysis.terminal import safe_json
from primecli.errors import InputError, UsageError

if TYPE_CHECKING:
    from primecli.analysis.rollout_screen import Screen

PIPE_WIDTH = 100  # columns where there is no terminal
COLORS = {None: "none", "standard": "basic", "windows": "basic"}
"""How `Paint` names what rich calls the colours of a terminal; every other terminal has `full` colours."""


def show_rollouts(
    shards: Sequence[str],
    *,
    criteria: Criteria,
    sort: Sort | None,
    ascending: bool,
    side_by_side: bool,
    limit: int,
    measure: Measure | None,
    separator: str,
    tokenizer: str | None,
    model: str | None,
    scale: float | None,
    theme: Theme,
    no_color: bool,
    as_json: bool,
    partial: bool,
) -> None:
    """Prints the first rollouts, or pairs of a right and a wrong one, that meet the criteria.

    The arguments are the options of `primecli inspect`; a measure of None is `default_measure`. Raises UsageError where
    the measure needs a model, InputError where no rollout meets the criteria or a shard lacks what the measure needs.
    """
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    if measure is not None and measure.needs_model and model is None:
        raise UsageError(
            f"--color {measure.value} compares a model's log-probabilities with the sampler's", "name it with --model"
        )
    inputs = Inputs(shards, partial=partial, together=True, warn=lambda text: say("inspect", text))
    search = find_pairs if side_by_side else find
    matches = search(inputs, criteria, sort=sort, ascending=ascending)
    reader: Reader | None = None
    screen: Screen | None = None
    count = 0
    for match in itertools.islice(matches, min(limit, sys.maxsize)):
        locations = match if isinstance(match, tuple) else (match,)
        if measure is None:
            measure = default_measure(locations[0].shard.footer.columns)
            if measure is not UNASKED[0]:
                say("inspect", f"no process rewards yet: tokens are coloured by {measure.value}")
        if reader is None:
            reader = Reader(measure, separator=separator, tokenizer=tokenizer, model=model)
            screen = None if as_json else _screen(measure, theme, scale, no_color=no_color)
        rollouts = [reader.read(location) for location in locations]
        _warn(rollouts, measure)
        if screen is None:
            _print_json(rollouts, measure)
        else:
            if count:
                screen.rule()
            screen.show(rollouts)
        count += 1
    if not count and side_by_side:
        raise InputError("no group has both a right and a wrong sample", "try other shards, or drop --side-by-side")
    if not count:
        raise InputError("no rollout matches", "`primecli stats` shows what the shards hold; --row counts from 0")


def _warn(rollouts: Sequence[Rollout], measure: Measure) -> None:
    """Says on stderr what a reader of these rollouts has to know."""
    from primecli.pipeline.progress import say

    if not all(rollout.spelled for rollout in rollouts):
        say("inspect", "the tokenizer that sampled was not found: tokens are shown as ids (name it with --tokenizer)")
    if measure.needs_model:
        for reason in filter(None, {sampled_differently(rollout.columns) for rollout in rollouts}):
            say("inspect", f"sampled with {reason}: rollout_logprobs are of another distribution than the model's")


def _print_json(rollouts: Sequence[Rollout], measure: Measure) -> None:
    import json

    for rollout in rollouts:
        fields = rollout_fields(rollout, measure)
        print(safe_json(json.dumps(fields, ensure_ascii=False, allow_nan=False)))


def _screen(measure: Measure, theme: Theme, scale: float | None, *, no_color: bool) -> Screen:
    import shutil

    from rich.console import Console

    from primecli.analysis.rollout_screen import Screen

    width = None if sys.stdout.isatty() else shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    console = Console(highlight=False, width=width, no_color=no_color or None)
    colors = "none" if console.no_color else COLORS.get(console.color_system, "full")
    palette = PALETTES[background() if theme is Theme.auto else theme]
    return Screen(console, Paint(colors, palette), measure, scale)
