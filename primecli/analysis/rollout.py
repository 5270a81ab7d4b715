"""One rollout to look at: the text of each token, its value, and the steps that the tokens make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from primecli.analysis.search import Location
from primecli.errors import InputError
from primecli.models.token_text import Piece, Spellers, number_pieces
from primecli.shards import parquet, schema
from primecli.shards.steps import problem_of_ends
from primecli.shards.streaming import read_row

if TYPE_CHECKING:
    import numpy as np

    from primecli.models.device import Placement

SEE_VALIDATE = "see `primecli validate`"


class Measure(StrEnum):
    """What tokens are coloured by.

    The last two compare a model's log-probabilities with the sampler's; each other is the column of its member's name.
    """

    process_rewards = "process-rewards"
    advantages = "advantages"
    outcome_advantages = "outcome-advantages"
    process_advantages = "process-advantages"
    returns = "returns"
    values = "values"
    rollout_logprobs = "rollout-logprobs"
    ratio = "ratio"
    logprob_gap = "logprob-gap"

    @property
    def needs_model(self) -> bool:
        """Whether it compares a model with the sampler."""
        return self in (Measure.ratio, Measure.logprob_gap)

    @property
    def column(self) -> str:
        """The column that it is computed from."""
        return schema.ROLLOUT_LOGPROBS if self.needs_model else self.name


UNASKED = (Measure.process_rewards, Measure.advantages, Measure.values, Measure.rollout_logprobs)
"""What tokens are coloured by if nothing is asked for: the first of these that a shard has."""


def default_measure(columns: Sequence[str]) -> Measure:
    """The first of UNASKED among the columns; the very first where there is none of them."""
    return next((measure for measure in UNASKED if measure.column in columns), UNASKED[0])


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a response.

    first, last: its pieces [first, last).
    total: the sum of its tokens' values.
    cumulative: the sum of the values up to its end.
    """

    first: int
    last: int
    total: float
    cumulative: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout with a value for each of its T tokens.

    location: its shard and row.
    columns: its row: the columns of one value, its token ids, and the lists that the measure needs.
    pieces: its response as texts, each of one token or of several that make a character together.
    values: (T,) float64, in the measure's unit.
    steps: in order; together they are all pieces.
    spelled: whether the pieces are texts; without a tokenizer they are token ids.
    """

    location: Location
    columns: dict[str, Any]
    pieces: list[Piece]
    values: np.ndarray
    steps: list[Step]
    spelled: bool

    def piece_values(self) -> np.ndarray:
        """The sum of each piece's token values, one a piece."""
        import numpy as np

        return np.array([self.values[piece.first : piece.last].sum() for piece in self.pieces])

    def text(self, step: Step) -> str:
        """The text of a step."""
        return "".join(piece.text for piece in self.pieces[step.first : step.last])

    def largest(self) -> float:
        """The largest absolute value of a piece."""
        import numpy as np

        return float(np.abs(self.piece_values()).max(initial=0.0))


class Reader:
    """Reads rollouts; loads the tokenizers, and the model where the measure needs one, once.

    separator: the text between two steps, for rollouts without `step_ends`.
    tokenizer: a directory or hub id; None looks for the one that sampled.
    model: a directory or hub id; None where the measure needs no model.
    """

    def __init__(
        self, measure: Measure, *, separator: str, tokenizer: str | None = None, model: str | None = None
    ) -> None:
        self.measure = measure
        self.separator = separator
        self.spellers = Spellers(tokenizer)
        self.model = model
        self._loaded: tuple[Any, Placement] | None = None

    def read(self, location: Location) -> Rollout:
        """One rollout. Raises InputError where its shard lacks what the measure needs, or where its lists differ."""
        import numpy as np

        path, row, footer = location.shard.path, location.row, location.shard.footer
        name = self.measure.column
        lists = [schema.RESPONSE_IDS, *([schema.PROMPT_IDS] if self.measure.needs_model else []), name]
        parquet.require_columns(path, footer.columns, lists)
        skipped = {schema.PROMPT_IDS, *schema.PER_RESPONSE_TOKEN} - set(lists)
        columns = read_row(path, row, [column for column in footer.columns if column not in skipped])
        ids = columns[schema.RESPONSE_IDS]
        if not ids:
            raise InputError(f"{path}: response_ids is empty at row {row}", SEE_VALIDATE)
        if len(columns[name]) != len(ids):
            raise InputError(
                f"{path}: {name} has {len(columns[name])} values for {len(ids)} response tokens at row {row}",
                SEE_VALIDATE,
            )
        if problem := problem_of_ends(columns.get(schema.STEP_ENDS), len(ids)):
            raise InputError(f"{path}: {schema.STEP_ENDS} {problem} at row {row}", SEE_VALIDATE)
        values = np.asarray(
            self._against_sampler(columns) if self.measure.needs_model else columns[name], dtype=np.float64
        )
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} is not finite at row {row}", SEE_VALIDATE)
        speller = self.spellers.find(path, footer.provenance)
        pieces = number_pieces(ids) if speller is None else speller.pieces(ids)
        steps = steps_of(pieces, values, self.separator, columns.get(schema.STEP_ENDS))
        return Rollout(location, columns, pieces, values, steps, spelled=speller is not None)

    def _against_sampler(self, columns: dict[str, Any]) -> np.ndarray:
        """(T,) float32, nats: the log of the model's over the sampler's probability of each token, or its size."""
        import numpy as np

        from primecli.models import scoring
        from primecli.shards.rollouts import Sequences

        model, placement = self._load_model()
        temperature = columns.get(schema.TEMPERATURE) or 1.0  # greedy sampling (0) divides nothing
        sequences = Sequences(
            [np.array(columns[schema.PROMPT_IDS])],
            [np.array(columns[schema.RESPONSE_IDS])],
            np.array([temperature], dtype=np.float32),
        )
        logprobs = scoring.score(model, placement, sequences, micro_batch_tokens=1)
        log_ratio = logprobs - np.asarray(columns[schema.ROLLOUT_LOGPROBS], dtype=np.float32)
        return np.abs(log_ratio) if self.measure is Measure.logprob_gap else log_ratio

    def _load_model(self) -> tuple[Any, Placement]:
        from primecli.models.device import resolve_dtype, resolve_placement
        from primecli.models.identity import resolve_model
        from primecli.models.loading import load_model

        if self._loaded is None:
            directory = resolve_model(str(self.model))
            placement = resolve_placement("auto", resolve_dtype("auto", "auto"))
            self._loaded = load_model(directory, placement), placement
        return self._loaded


def sampled_differently(columns: dict[str, Any]) -> str | None:
    """Why a row's rollout_logprobs are not of the model's own distribution, in words; None where they are."""
    untouched = {schema.TOP_P: 1.0, schema.TOP_K: 0}
    reasons = [f"{name} {columns[name]:g}" for name, value in untouched.items() if columns.get(name, value) != value]
    reasons += ["temperature 0"] if columns.get(schema.TEMPERATURE) == 0 else []
    return ", ".join(reasons) or None


def steps_of(
    pieces: Sequence[Piece], values: np.ndarray, separator: str, given: Sequence[int] | None = None
) -> list[Step]:
    """The steps of a response.

    values: (T,), one a token. given: the index of the last token of each step, where the shard says it; else the
    separator tells the steps.
    """
    import numpy as np

    from primecli.models.steps import last_of_steps

    if given is None:
        ends = np.flatnonzero(last_of_steps([piece.text for piece in pieces], separator)) + 1
    else:  # a step may end within a piece of several tokens, which then is its last one
        ends = np.unique(np.searchsorted([piece.last for piece in pieces], np.array(given), side="right")) + 1
    steps: list[Step] = []
    first, cumulative = 0, 0.0
    for last in ends.tolist():
        total = float(values[pieces[first].first : pieces[last - 1].last].sum())
        cumulative += total
        steps.append(Step(first, last, total, cumulative))
        first = last
    return steps


def rollout_fields(rollout: Rollout, measure: Measure) -> dict[str, Any]:
    """A rollout as `inspect --json` prints it, for json.dumps.

    Values of `ratio` are its logarithm, in nats, so that they add up.
    """
    lists = (*schema.PER_RESPONSE_TOKEN, schema.PROMPT_IDS, schema.RESPONSE_IDS, schema.STEP_ENDS)
    ids, values = rollout.columns[schema.RESPONSE_IDS], rollout.piece_values().tolist()
    return {
        "shard": str(rollout.location.shard.path),
        "row": rollout.location.row,
        **{name: value for name, value in rollout.columns.items() if name not in lists},
        "color": measure.value,
        "spelled": rollout.spelled,
        "tokens": [
            {"text": piece.text, "ids": list(ids[piece.first : piece.last]), "value": value}
            for piece, value in zip(rollout.pieces, values, strict=True)
        ],
        "steps": [
            {"text": rollout.text(step), "sum": step.total, "cumulative": step.cumulative} for step in rollout.steps
        ],
    }
