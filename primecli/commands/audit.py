"""`primecli audit`."""

from __future__ import annotations

from typing import Annotated

from primecli.options import Option, Partial, Seed, Shards, separator


def audit(
    shards: Shards = (),
    fail_on: Annotated[
        tuple[str, ...],
        Option(
            "End with exit code 5 if the condition holds, such as 'pair-accuracy<0.6'; may be repeated. Quote it: the "
            "shell takes < and > for redirections.",
            metavar="METRIC<VALUE|METRIC>VALUE",
        ),
    ] = (),
    top: Annotated[int, Option("How many of the groups with the strongest disagreement to show.", min=0)] = 5,
    step_separator: Annotated[
        str | None,
        Option(
            "Text between two steps, such as \\n, to find them in shards that do not say where they end.  [default: "
            "find none there, which is faster]"
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        Option(
            "For --step-separator: the tokenizer.  [default: that of the model that generate recorded in the shards]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    as_json: Annotated[bool, Option("Print JSON, including the bins of the calibration.", flags="--json")] = False,
    seed: Seed = 0,
    partial: Partial = False,
) -> None:
    """A response's score is the sum of its process rewards. The audit compares it with the outcome, within groups and
    over the batch, with the response's length, and with signs that the response repeats itself; it rates the metrics
    that have bounds ok, watch or bad. Last come the groups where score and outcome disagree most: those whose
    best-scored wrong response is furthest above their worst-scored right one. Intervals are 95%, from resampling whole
    groups. Responses without an outcome reward are left out and counted.

    Several directories are audited separately and shown side by side, in the order of their numbers: over-optimisation
    is a trend.

    \b
    Metrics, for --fail-on (on a wide terminal the table explains each):
      outcome  pair-accuracy group-auc group-correlation correlation spearman auc
               calibration-error brier reward-right reward-wrong last-lowest
      length   length-correlation group-length-correlation wrong-length-correlation
      repeats  repeats repeats-preferred duplicates distinct truncation
               truncation-preferred

    If a metric in a condition cannot be computed, for example because no group has both right and wrong responses, the
    exit code is 3, unless another condition holds.

    Example:

      \b
      primecli audit runs/*/score-prm \\
        --fail-on 'pair-accuracy<0.6' --fail-on 'group-length-correlation>0.5'
    """
    from primecli.analysis.audit_view import show_audit

    show_audit(
        shards,
        fail_on=fail_on,
        top=top,
        separator=None if step_separator is None else separator(step_separator),
        tokenizer=tokenizer,
        seed=seed,
        as_json=as_json,
        partial=partial,
    )
