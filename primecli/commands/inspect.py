"""`primecli inspect`."""

from __future__ import annotations

from typing import Annotated

from primecli.analysis.heatmap import Theme
from primecli.analysis.rollout import Measure
from primecli.analysis.search import Criteria, Sort
from primecli.options import Option, Partial, Shards, StepSeparator, separator


def inspect(
    shards: Shards = (),
    row: Annotated[int | None, Option("The row in its shard, counted from 0.", min=0)] = None,
    group: Annotated[str | None, Option("A group_id, or the beginning of one.", metavar="ID")] = None,
    verdict: Annotated[str | None, Option("correct, wrong, unparseable, timeout or error.", metavar="NAME")] = None,
    sort: Annotated[
        Sort | None,
        Option(
            "Largest first. disagreement: wrong responses with a high reward and right ones with a low reward first; "
            "lowest-token: the token with the lowest reward first."
        ),
    ] = None,
    ascending: Annotated[bool, Option("Reverse the order.")] = False,
    limit: Annotated[int, Option("How many rollouts, or pairs, to show.", min=1)] = 1,
    color: Annotated[
        Measure | None,
        Option(
            "What to colour tokens by; ratio and logprob-gap need --model.  [default: process-rewards; in shards "
            "without them, advantages, values or rollout-logprobs]"
        ),
    ] = None,
    model: Annotated[
        str | None, Option("The model that ratio and logprob-gap compare with the sampler.", metavar="DIR|HUB_ID")
    ] = None,
    side_by_side: Annotated[bool, Option("Show a right and a wrong sample of one group beside each other.")] = False,
    step_separator: StepSeparator = "\\n",
    scale: Annotated[
        float | None, Option("The value at the end of the colour scale.  [default: the largest value shown]", min=0.0)
    ] = None,
    tokenizer: Annotated[
        str | None,
        Option(
            "What turns token ids into text.  [default: the tokenizer of the model that sampled, if it is still there]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    theme: Annotated[
        Theme, Option("The terminal's background; auto reads COLORFGBG, and takes dark if it is not set.")
    ] = Theme.auto,
    no_color: Annotated[bool, Option("Print marks instead of colours, as NO_COLOR does.")] = False,
    as_json: Annotated[bool, Option("Print JSON lines.", flags="--json")] = False,
    partial: Partial = False,
) -> None:
    """One line per step: its sum, the sum so far and its text. Blue is above 0, orange below. Without colours
    (--no-color, NO_COLOR, or in a pipe) marks below the tokens show the same. Only the rows that are shown are read in
    full; filters and --sort read the columns that they need.

    ratio is the logarithm of a model's probability of each token over the sampler's; logprob-gap is its absolute value.

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
