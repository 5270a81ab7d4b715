"""Reads what an evaluation needs from graded shards: each prompt's outcomes, answers and scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from primecli.analysis.evaluation import NO_SOURCE, Key, PromptSamples, Samples
from primecli.analysis.select import Select
from primecli.errors import InputError
from primecli.shards import parquet, schema
from primecli.shards.columns import flat_column, list_sums
from primecli.shards.parquet import Shard
from primecli.shards.streaming import stream
from primecli.verifiers import Task, choose_verifier

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.models.steps import StepFinder

BATCH_ROWS = 256  # in memory at once, with their process rewards


def read_samples(
    shards: Iterable[Shard], *, select: Select | None = None, separator: str = "\n", tokenizer: str | None = None
) -> Samples:
    """The graded samples of the shards, by prompt, their answers not yet told apart (see `tell_answers_apart`).

    select: None for `sum` where every shard has process rewards, and no scores else. separator: the
    text between two steps, for shards without `step_ends`. tokenizer: finds the separators; None for that of the model
    that sampled.

    Raises InputError if a shard has not been through `verify`, if no sample is graded, for process rewards that are
    missing although `select` asks for a score, and for steps that cannot be found.
    """
    from primecli.models.steps import StepFinder
    from primecli.models.token_text import Spellers

    prompts: dict[Key, PromptSamples] = {}
    ungraded, scored = 0, True
    by_step = select not in (None, Select.sum)
    finder = StepFinder(separator, Spellers(tokenizer), f"--select {select}") if by_step else None
    for shard in shards:
        parquet.require_columns(shard.path, shard.footer.columns, [schema.GROUP_ID, schema.OUTCOME_REWARD])
        scored = scored and (select is not None or schema.PROCESS_REWARDS in shard.footer.columns)
        for first_row, table in _tables(shard, scored, steps=by_step):
            scores = _scores(table, shard, first_row, select or Select.sum, finder) if scored else None
            ungraded += _add(prompts, table, scores)
    if not prompts:
        raise InputError(
            f"no sample is graded: the outcome reward is null in all {ungraded:,} rows",
            "the verifier could not grade them; see the column verifier_detail",
        )
    if not scored:
        for prompt in prompts.values():
            prompt.scores.clear()
    return Samples(prompts, ungraded, (select or Select.sum) if scored else None)


def _tables(shard: Shard, scored: bool, *, steps: bool) -> Iterator[tuple[int, pa.Table]]:
    needed = [schema.GROUP_ID, schema.OUTCOME_REWARD]
    needed += [schema.PROCESS_REWARDS] if scored else []
    needed += [schema.RESPONSE_IDS] if steps else []
    optional = [schema.PROMPT_ID, schema.DATA_SOURCE, schema.ABILITY, schema.EXTRACTED_ANSWER]
    optional += [schema.STEP_ENDS] if steps else []
    names = [*needed, *(name for name in optional if name in shard.footer.columns)]
    return stream(shard.path, names, rows=BATCH_ROWS)


def _add(prompts: dict[Key, PromptSamples], table: pa.Table, scores: np.ndarray | None) -> int:
    """Adds the graded rows of a table to their prompts, and returns how many are not graded."""
    present = table.column_names
    rows = table.num_rows
    columns: dict[str, list[Any]] = {
        name: table[name].to_pylist() if name in present else [None] * rows
        for name in (schema.PROMPT_ID, schema.DATA_SOURCE, schema.ABILITY, schema.EXTRACTED_ANSWER)
    }
    ids = columns[schema.PROMPT_ID] if schema.PROMPT_ID in present else table[schema.GROUP_ID].to_pylist()
    ungraded = 0
    for row, outcome in enumerate(table[schema.OUTCOME_REWARD].to_pylist()):
        if outcome is None:
            ungraded += 1
            continue
        source, ability = columns[schema.DATA_SOURCE][row], columns[schema.ABILITY][row]
        prompt = prompts.setdefault(Key(source or NO_SOURCE, ids[row]), PromptSamples())
        prompt.outcomes.append(outcome)
        if schema.EXTRACTED_ANSWER in present and choose_verifier(ability, source, {}) != "code":
            prompt.answers.append(columns[schema.EXTRACTED_ANSWER][row])
        if scores is not None:
            prompt.scores.append(float(scores[row]))
    return ungraded


def _scores(table: pa.Table, shard: Shard, first_row: int, select: Select, finder: StepFinder | None) -> np.ndarray:
    """(B,) float64: the score of each response. finder: None where the score is the sum, which needs no steps."""
    sums, lengths = list_sums(table, schema.PROCESS_REWARDS)
    if finder is None:
        return sums
    from primecli.models.steps import step_sums

    rewards, _ = flat_column(table, schema.PROCESS_REWARDS)
    scores = np.zeros(table.num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for row, ends in enumerate(finder.ends(table, shard, first_row=first_row)):
        if len(ends):
            steps = step_sums(rewards[starts[row] : starts[row + 1]].astype(np.float64), ends)
            scores[row] = {Select.min: steps.min(), Select.mean: steps.mean(), Select.last: steps[-1]}[select]
    return scores


def tell_answers_apart(samples: Samples) -> None:
    """Numbers each prompt's answers, so that those which the math verifier calls equal have the same number.

    All right answers are one answer: each of them equals the ground truth.
    """
    from primecli.verifiers.pool import GradingPool

    compared: list[tuple[dict[str, str], str, str]] = []
    parents: list[dict[str, str]] = []
    for prompt in samples.prompts.values():
        right = {
            answer
            for answer, outcome in zip(prompt.answers, prompt.outcomes, strict=False)
            if answer is not None and outcome >= 1
        }
        wrong = sorted({answer for answer in prompt.answers if answer is not None} - right)
        parent = {answer: answer for answer in wrong}  # of a forest, in which the trees are equal answers
        parent |= dict.fromkeys(right, min(right, default=""))
        parents.append(parent)
        compared += [(parent, first, second) for first, second in combinations(wrong, 2)]
    if compared:
        tasks = [Task(f"\\boxed{{{second}}}", first) for _, first, second in compared]
        with GradingPool("math") as pool:
            for (parent, first, second), grade in zip(compared, pool.grade_list(tasks), strict=True):
                if grade is not None and grade.reward == 1:
                    parent[_root(parent, second)] = _root(parent, first)
    for prompt, parent in zip(samples.prompts.values(), parents, strict=True):
        prompt.classes = _numbered(prompt.answers, parent)


def _root(parent: dict[str, str], answer: str) -> str:
    while parent[answer] != answer:
        answer = parent[answer]
    return answer


def _numbered(answers: Sequence[str | None], parent: dict[str, str]) -> list[int | None]:
    numbers: dict[Any, int] = {}
    return [None if answer is None else numbers.setdefault(_root(parent, answer), len(numbers)) for answer in answers]
