"""What `import` makes of labelled responses: which of them form a group, what their labels mean, the rows of shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from primecli.errors import InputError
from primecli.files import Json, fingerprint
from primecli.generation.label_values import Scale, first_wrong_step, scale_of
from primecli.generation.labelled import LabelledResponse
from primecli.generation.responses import STEP_JOINT, ResponseEncoder
from primecli.shards import schema

if TYPE_CHECKING:
    import pyarrow as pa

UNUSABLE = {
    "unlabelled": "without a label",
    "outside_scale": "with a label outside the scale",
    "empty": "with an empty response or step",
    "inexact": "whose token ids do not decode to the text",
    "steps_unplaced": "whose steps are shorter than a token, or not found in the tokens",
    "step_labels_unclear": "whose step labels do not say which step is the first wrong one",
}
"""Why a response cannot be used, as the metrics name it and in words."""

TOO_LONG = "too_long"  # left out because an option says so, which is not an error


def grouped(labelled: Sequence[LabelledResponse]) -> list[list[LabelledResponse]]:
    """The responses to each prompt of each data source together, in the order in which the prompts are first seen."""
    groups: dict[tuple[str | None, str], list[LabelledResponse]] = {}
    for one in labelled:
        content: Json = [one.prompt.content, one.prompt.tools]
        groups.setdefault((one.prompt.data_source, fingerprint(content)), []).append(one)
    return list(groups.values())


class Labels:
    """What the labels of all responses mean.

    labelled: all of them. label_range: the labels that stand for wrong and right; None to tell it from the labels.
    unlabelled: whether labels of whole responses are left out.
    scale: of the labels of whole responses.
    has_steps: whether any response is given in steps.
    signed: whether a step is wrong below 0, rather than below 0.5.
    derived: responses whose outcome follows from their step labels.

    Raises InputError where no response has a label and none is asked for, and for labels on no known scale.
    """

    def __init__(
        self, labelled: Sequence[LabelledResponse], *, label_range: tuple[float, float] | None, unlabelled: bool
    ) -> None:
        outcomes = [one.outcome for one in labelled]
        self.unlabelled = unlabelled
        self.scale = Scale(*label_range) if label_range else scale_of(outcomes)
        self.has_steps = any(one.steps is not None for one in labelled)
        given = [label for one in labelled for label in one.step_labels or () if label is not None]
        self.signed = min(given, default=0) < 0
        self.given = len(given)
        self.derived = sum(one.outcome is None and one.steps is not None for one in labelled)
        if not unlabelled and not self.derived and all(outcome is None for outcome in outcomes):
            raise InputError(
                f"{labelled[0].prompt.where}: has no label, and neither has any other response",
                "name the column with --label-column, or pass --unlabelled and grade them with `primecli verify`",
            )
        outside = next((one for one in labelled if self._is_outside(one.outcome)), None)
        if outside is not None and label_range is None:
            raise InputError(
                f"{outside.prompt.where}: its label is {outside.outcome:g}; labels are from 0 to 1, or from -1 to 1",
                "--label-range LO HI says which labels stand for wrong and right",
            )

    def _is_outside(self, outcome: float | None) -> bool:
        return outcome is not None and self.scale.reward(outcome) is None

    def first_wrong(self, one: LabelledResponse) -> int | None:
        """The index of the first wrong step, -1 for none; None where nothing says it. Raises ValueError if unclear."""
        steps = one.steps or ()
        if one.first_wrong is not None:
            if one.first_wrong >= len(steps):
                raise ValueError
            return one.first_wrong
        if one.step_labels is None:
            return None
        first = first_wrong_step(one.step_labels, len(steps), signed=self.signed)
        if first is None or len(one.step_labels) > len(steps):
            raise ValueError
        return first


class Importer:
    """Makes the rows of shards.

    responses: encodes responses. labels: what the labels mean. max_length: of prompt and response; None for any.
    first: the first response that could not be used, such as "a.jsonl: row 3, without a label"; "" so far.
    ends_written: responses that had the text of the end token.
    """

    def __init__(self, responses: ResponseEncoder, labels: Labels, max_length: int | None) -> None:
        self.responses = responses
        self.labels = labels
        self.max_length = max_length
        self.first = ""
        self.ends_written = 0

    def table(self, groups: Sequence[tuple[int, Sequence[LabelledResponse]]]) -> tuple[pa.Table, dict[str, float]]:
        """The rows of some groups, each with its position, and their counts; only counts where none can be used."""
        import pyarrow as pa

        texts = [
            self._without_end(one.text) if one.steps is None else STEP_JOINT.join(one.steps)
            for _, group in groups
            for one in group
        ]
        encoded = iter(zip(texts, self.responses.encode(texts), strict=True))
        counts = dict.fromkeys((*UNUSABLE, TOO_LONG, "rollouts", "tokens", "reward", "rewarded"), 0.0)
        rows: list[dict[str, Any]] = []
        for position, group in groups:
            prompt = group[0].prompt
            text, prompt_ids = self.responses.encoder.encode(prompt)
            made = []
            for one in group:
                row, problem = self._row(one, *next(encoded), room=self._room(prompt_ids))
                if problem:
                    counts[problem] += 1
                    if problem != TOO_LONG:
                        self.first = self.first or f"{one.prompt.where}, {UNUSABLE[problem]}"
                else:
                    made.append(row)
            shared = {
                schema.PROMPT_ID: prompt.prompt_id,
                schema.GROUP_ID: f"{prompt.prompt_id}@{position}",
                schema.GROUP_SIZE: len(made),
                schema.PROMPT: text,
                schema.PROMPT_IDS: prompt_ids,
            }
            rows += [{**shared, schema.SAMPLE_INDEX: index, **row} for index, row in enumerate(made)]
        rewards = [row[schema.OUTCOME_REWARD] for row in rows if schema.OUTCOME_REWARD in row]
        counts["rollouts"], counts["tokens"] = len(rows), sum(len(row[schema.RESPONSE_IDS]) for row in rows)
        counts["reward"], counts["rewarded"] = sum(rewards), len(rewards)
        return pa.Table.from_pylist(rows, schema=schema.arrow_schema(self._names())), counts

    def _names(self) -> list[str]:
        graded = (schema.OUTCOME_REWARD, schema.VERDICT)
        names = [name for name in schema.IMPORTED if not self.labels.unlabelled or name not in graded]
        return [*names, *(schema.made_by("import") if self.labels.has_steps else ())]

    def _without_end(self, text: str) -> str:
        without = self.responses.without_end(text)
        self.ends_written += without != text
        return without

    def _room(self, prompt_ids: Sequence[int]) -> float:
        return float("inf") if self.max_length is None else self.max_length - len(prompt_ids)

    def _row(
        self, one: LabelledResponse, text: str, ids: list[int] | None, *, room: float
    ) -> tuple[dict[str, Any], str]:
        """The columns of a response that its group does not share, and "" or why it cannot be used. room: tokens."""
        if not text.strip() or not all(one.steps or ("some",)):
            return {}, "empty"
        if ids is None:
            return {}, "inexact"
        if len(ids) > room:
            return {}, TOO_LONG
        row: dict[str, Any] = {
            schema.DATA_SOURCE: one.prompt.data_source,
            schema.ABILITY: one.prompt.ability,
            schema.GROUND_TRUTH: one.prompt.ground_truth,
            schema.RESPONSE: text,
            schema.RESPONSE_IDS: ids,
            schema.FINISH_REASON: "stop",
        }
        first_wrong: int | None = None
        if one.steps is not None:
            ends = self.responses.step_ends(ids, one.steps)
            if ends is None:
                return {}, "steps_unplaced"
            try:
                first_wrong = self.labels.first_wrong(one)
            except ValueError:
                return {}, "step_labels_unclear"
            row |= {schema.STEP_ENDS: ends, schema.FIRST_WRONG_STEP: first_wrong}
        if self.labels.unlabelled:
            return row, ""
        reward = _reward(one, first_wrong, self.labels.scale)
        if reward is None:
            return {}, "unlabelled" if one.outcome is None else "outside_scale"
        return {**row, schema.OUTCOME_REWARD: reward, schema.VERDICT: "correct" if reward >= 1 else "wrong"}, ""


def _reward(one: LabelledResponse, first_wrong: int | None, scale: Scale) -> float | None:
    """The outcome reward: by the label of the response, else right if no step is wrong; None without either."""
    if one.outcome is not None:
        return scale.reward(one.outcome)
    return None if first_wrong is None else float(first_wrong < 0)
