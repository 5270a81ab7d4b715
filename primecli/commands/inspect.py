"""`primecli inspect`."""

from __future__ import annotations

from typing import Annotated

from primecli.analysis.heatmap import Theme
from primecli.analysis.rollout import Measure
from primecli.analysis.search import Criteria, Sort
from primecli.options import Option, Partial, Shards, StepSeparator, separator


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
        Measure, Option("What tokens are coloured by; ratio and logprob-gap need --model.")
    ] = Measure.process_rewards,
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
    from primecli.analysis.rollout_view import show_rollouts

    show_rollouts(
        shards,
        criteria=Criteria(row=row, group=group, verdict=verdict),
        sort=sort,
        ascending=ascending,
        side_by_side=side_by_side,
        limit=limit,
        measure=color,
        separator=separator(step_separator),
        tokenizer=tokenizer,
        model=model,
        scale=scale,
        theme=theme,
        no_color=no_color,
        as_json=as_json,
        partial=partial,
    )
