"""`primecli evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from primecli.analysis.select import Select
from primecli.options import Option, Partial, Seed, Shards, StepSeparator, separator


def evaluate(
    shards: Shards = (),
    k: Annotated[
        tuple[int, ...],
        Option("Show pass@k, maj@k and best@k for this k; may be repeated.  [default: 1, 2, 4, … up to n]", min=1),
    ] = (),
    select: Annotated[
        Select | None,
        Option(
            "How best@k scores a response by its process rewards: their sum, or the least, mean or last over steps.  "
            "[default: sum, if the shards have process rewards]",
        ),
    ] = None,
    step_separator: StepSeparator = "\\n",
    tokenizer: Annotated[
        str | None,
        Option(
            "The tokenizer, which finds the steps.  [default: that of the model that generate recorded in the shards]",
            metavar="DIR|HUB_ID",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        Option("Shards of another run on the same prompts, to compare with prompt by prompt.", metavar="SHARDS"),
    ] = None,
    as_json: Annotated[bool, Option("Print JSON, with every k from 1 to n.", flags="--json")] = False,
    csv: Annotated[
        Path | None,
        Option("Also add a row for each input to this file, or replace the row that it has there.", metavar="FILE"),
    ] = None,
    seed: Seed = 0,
    partial: Partial = False,
) -> None:
    """For graded samples of held-out prompts, with 95% intervals from resampling prompts, by data source where there
    are several. avg@n is the mean outcome reward of a prompt's n samples. pass@k is the chance that one of k samples is
    right, maj@k that the most frequent answer among k is (answers that the verifier calls equal are one answer, of
    equally frequent ones one is drawn), best@k the mean outcome of the sample with the highest score among k; each is
    exact, over all choices of k of the n samples. weighted-maj@n is the majority of all samples, each with the weight
    sigmoid(score). Programs have no majority. Several directories are evaluated separately.

    The result stays beside the shards as _evaluation.json, which the report and `watch` show.

    Example:

      \b
      primecli generate --model ckpt/policy/3 --prompts aime.parquet --n 16 --out runs/eval/3/generate \\
        | primecli verify | primecli evaluate --csv runs/leaderboard.csv
      primecli evaluate runs/eval/3/verify --baseline runs/eval/0/verify
    """
    from primecli.analysis.evaluation_view import show_evaluation

    show_evaluation(
        shards,
        ks=sorted(set(k)),
        select=select,
        separator=separator(step_separator),
        tokenizer=tokenizer,
        baseline=baseline,
        seed=seed,
        as_json=as_json,
        csv_file=csv,
        partial=partial,
    )
