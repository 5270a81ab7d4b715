"""`primecli inspect`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from primecli.options import Option, Partial, Shards, StepSeparator, separator

if TYPE_CHECKING:
    from rich.console import Console

    from primecli.analysis.rollout import Rollout


class Sort(StrEnum):
    """What comes first."""

    reward = "reward"
    disagreement = "disagreement"
    lowest_token = "lowest-token"
    length = "length"
    outcome = "outcome"


class Color(StrEnum):
    """What tokens are coloured by."""

    process_rewards = "process-rewards"
    advantages = "advantages"
    outcome_advantages = "outcome-advantages"
    process_advantages = "process-advantages"
    returns = "returns"
    values = "values"
    rollout_logprobs = "rollout-logprobs"
    ratio = "ratio"
    logprob_gap = "logprob-gap"


class Theme(StrEnum):
    """What the terminal's background is like."""

    auto = "auto"
    dark = "dark"
    light = "light"


PIPE_WIDTH = 100  # columns where there is no terminal


def inspect(
    shards: Shards = (),
    row: Annotated[int | None, Option("The row of its shard, from 0.", min=0)] = None,
    group: Annotated[str | None, Option("A group_id, or its beginning.", metavar="ID")] = None,
    verdict: Annotated[str | None, Option("correct, wrong, unparseable, timeout or error.", metavar="NAME")] = None,
    sort: Annotated[
        Sort | None,
        Option("Largest first; disagreement: wrong of a high reward, right of a low; lowest-token: lowest first."),
    ] = None,
    ascending: Annotated[bool, Option("Turns the order round.")] = False,
    limit: Annotated[int, Option("How many rollouts, or pairs, to show.", min=1)] = 1,
    color: Annotated[
        Color, Option("What tokens are coloured by; ratio and logprob-gap need --model.")
    ] = Color.process_rewards,
    model: Annotated[
        str | None, Option("Its log-probabilities of the shown tokens, against the sampler's.", metavar="DIR|HUB_ID")
    ] = None,
    side_by_side: Annotated[bool, Option("A right and a wrong sample of one group beside each other.")] = False,
    step_separator: StepSeparator = "\\n",
    scale: Annotated[
        float | None, Option("Where the colour scale ends.  [default: the largest value shown]", min=0.0)
    ] = None,
    tokenizer: Annotated[
        str | None,
        Option(
            "Spells the tokens.  [default: that of the model that sampled, where it is still there]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    theme: Annotated[Theme, Option("The terminal's background; auto looks at COLORFGBG, else dark.")] = Theme.auto,
    no_color: Annotated[bool, Option("Marks in place of colours, as NO_COLOR does.")] = False,
    as_json: Annotated[bool, Option("Print JSON lines.", flags="--json")] = False,
    partial: Partial = False,
) -> None:
    """A line a step: its sum, the sum so far, its text. Blue is above 0, orange below. Without colour (--no-color,
    NO_COLOR, a pipe) marks stand under the tokens instead. Reads the rows that it shows; filters and orders
    read the columns that they need.

    ratio is a model's probability of each token over the sampler's, as a logarithm; logprob-gap the size of that.

    Example:

      \b
      primecli inspect runs/1/score-prm --verdict wrong --sort disagreement --limit 3
      primecli inspect runs/1/compute-advantages --color advantages --side-by-side
      primecli inspect runs/1/generate --color ratio --model ckpt/policy/1
    """
    import itertools

    from primecli.analysis.rollout import AGAINST_MODEL, Reader
    from primecli.analysis.search import Wanted, find, find_pairs
    from primecli.errors import InputError, UsageError
    from primecli.pipeline.inputs import Inputs
    from primecli.pipeline.progress import say

    if color.value in AGAINST_MODEL and model is None:
        raise UsageError(
            f"--color {color.value} compares a model's log-probabilities with the sampler's", "name it with --model"
        )
    inputs = Inputs(shards or (), partial=partial, together=True, warn=lambda text: say("inspect", text))
    search = find_pairs if side_by_side else find
    found = search(inputs, Wanted(row, group, verdict), sort=sort and sort.value, ascending=ascending)
    measure = color.value if color.value in AGAINST_MODEL else color.value.replace("-", "_")
    reader = Reader(measure, separator=separator(step_separator), tokenizer=tokenizer, model=model)
    shown = 0
    for shown, places in enumerate(itertools.islice(found, limit), start=1):
        rollouts = [reader.read(place) for place in (places if isinstance(places, tuple) else (places,))]
        _tell(rollouts, measure)
        if as_json:
            _print_json(rollouts, measure)
        else:
            _draw(rollouts, measure, theme, scale, no_color=no_color, first=shown == 1)
    if not shown and side_by_side:
        raise InputError("no group here has a right and a wrong sample", "look at other shards, or drop --side-by-side")
    if not shown:
        raise InputError("no rollout is like that", "see `primecli stats` for what there is; --row counts from 0")


def _tell(rollouts: list[Rollout], measure: str) -> None:
    """What has to be known of what is shown, a line each."""
    from primecli.analysis.rollout import AGAINST_MODEL, sampled_otherwise
    from primecli.pipeline.progress import say

    if not all(rollout.spelled for rollout in rollouts):
        say("inspect", "the tokenizer that sampled is not here: tokens stand as their numbers (name it by --tokenizer)")
    if measure in AGAINST_MODEL:
        for reason in filter(None, {sampled_otherwise(rollout.columns) for rollout in rollouts}):
            say("inspect", f"sampled with {reason}: rollout_logprobs are of another distribution than the model's")


def _print_json(rollouts: list[Rollout], measure: str) -> None:
    import json

    from primecli.analysis.rollout import as_json
    from primecli.models.token_text import safe_json

    for rollout in rollouts:
        print(safe_json(json.dumps(as_json(rollout, measure), ensure_ascii=False, allow_nan=False)))


def _draw(
    rollouts: list[Rollout], measure: str, theme: Theme, scale: float | None, *, no_color: bool, first: bool
) -> None:
    from primecli.analysis import heatmap
    from primecli.analysis.rollout_view import Screen

    console = _console(no_color)
    colors = {None: "none", "standard": "basic", "windows": "basic"}.get(console.color_system, "full")
    shade = heatmap.background() if theme is Theme.auto else theme.value
    screen = Screen(
        console, heatmap.Paint("none" if console.no_color else colors, heatmap.THEMES[shade]), measure, scale
    )
    if not first:
        screen.rule()
    screen.show(rollouts)


def _console(no_color: bool) -> Console:
    import shutil

    from rich.console import Console

    width = None if sys.stdout.isatty() else shutil.get_terminal_size((PIPE_WIDTH, 24)).columns
    return Console(highlight=False, width=width, no_color=no_color or None)
