"""`primecli export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from primecli.generation.layout import Layout
from primecli.options import Force, Option, Partial, Shards


def export(
    shards: Shards = (),
    *,
    layout: Annotated[
        Layout,
        Option(
            "The layout: for TRL a response with its label and reward, a right and a wrong response, or a response in "
            "labelled steps; for verl a prompt.",
            flags="--format",
        ),
    ],
    out: Annotated[Path, Option("The file to write, in JSON lines.", metavar="FILE.jsonl")],
    tokenizer: Annotated[
        str | None,
        Option(
            "The tokenizer, whose chat template made the prompts.  [default: that of the model that the shards name]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    force: Force = False,
    partial: Partial = False,
) -> None:
    """Prompts become messages again, because TRL and verl apply the chat template themselves: those messages that the
    template turns into exactly the prompt of the shard. trl-steps keeps the text after the template, since TRL's
    trainer of PRMs applies none. The file appears whole or not at all.

    \b
      trl             prompt, completion, and label and reward where it is graded
      trl-preference  prompt, chosen, rejected: the n-th right response of a group with its n-th wrong one
      trl-steps       prompt, completions, labels: the steps up to the first wrong one
      verl            data_source, prompt, ability, reward_model, extra_info with the pass rate

    Example:

      \b
      primecli export runs/1/verify --format trl --out sft.jsonl
    """
    from primecli.generation.export import export_rollouts

    export_rollouts(shards, layout=layout, out=out, tokenizer=tokenizer, force=force, partial=partial)
