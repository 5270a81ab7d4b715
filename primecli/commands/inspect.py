"""`primecli inspect`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from primecli.commands import _options as options

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
    shards: options.Shards = None,
    row: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--row", min=0, help="The row of its shard, from 0.", show_default=False),
    ] = None,
    group: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--group", metavar="ID", help="A group_id, or its beginning.", show_default=False),
    ] = None,
    verdict: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--verdict", metavar="NAME", help="correct, wrong, unparseable, timeout or error.", show_default=False
        ),
    ] = None,
    sort: Annotated[
        Optional[Sort],  # noqa: UP045
        typer.Option(
            "--sort",
            help="Largest first; disagreement: wrong of a high reward, right of a low; lowest-token: lowest first.",
            show_default=False,
        ),
    ] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Turns the order round.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many rollouts, or pairs, to show.")] = 1,
    color: Annotated[
        Color, typer.Option("--color", help="What tokens are coloured by; ratio and logprob-gap need --model.")
    ] = Color.process_rewards,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--model",
            metavar="DIR|HUB_ID",
            help="Its log-probabilities of the shown tokens, against the sampler's.",
            show_default=False,
        ),
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="A right and a wrong sample of one group beside each other.")
    ] = False,
    step_separator: options.StepSeparator = "\\n",
    scale: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--scale",
            min=0.0,
            help="Where the colour scale ends.  [default: the largest value shown]",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    tokenizer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--tokenizer",
            metavar="DIR|HUB_ID",
            help="Spells the tokens.  [default: that of the model that sampled, where it is still there]",
            show_default=False,
        ),
    ] = None,
    theme: Annotated[
        Theme, typer.Option("--theme", help="The terminal's background; auto looks at COLORFGBG, else dark.")
    ] = Theme.auto,
    no_color: Annotated[bool, typer.Option("--no-color", help="Marks in place of colours, as NO_COLOR does.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    partial: options.Partial = False,
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
    reader = Reader(measure, separator=options.separator(step_separator), tokenizer=tokenizer, model=model)
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
