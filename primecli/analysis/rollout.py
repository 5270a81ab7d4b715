"""One rollout as it is looked at: its tokens' texts, a value of each, and the steps that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from primecli.analysis.search import Place
from primecli.errors import InputError
from primecli.models.steps import last_of_steps
from primecli.models.token_text import Piece, Spellers, number_pieces
from primecli.shards import parquet, schema
from primecli.shards.streaming import read_row

RATIO = "ratio"
GAP = "logprob-gap"
AGAINST_MODEL = (RATIO, GAP)
"""Measures that compare a model's log-probabilities with the sampler's; the others are columns."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a response: its pieces [first, last), the sum of its tokens' values, and the sum up to its end."""

    first: int
    last: int
    total: float
    cumulative: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout with a value of each token.

    columns: those of its row that are one value, and its token ids. values: (T,) float64. spelled: whether the pieces
    are texts; without a tokenizer they are numbers.
    """

    place: Place
    columns: dict[str, Any]
    pieces: list[Piece]
    values: np.ndarray
    steps: list[Step]
    spelled: bool

    def piece_values(self) -> np.ndarray:
        """(pieces,): the sum of each piece's token values."""
        return np.array([self.values[piece.first : piece.last].sum() for piece in self.pieces])

    def text(self, step: Step) -> str:
        """The text of a step."""
        return "".join(piece.text for piece in self.pieces[step.first : step.last])

    def largest(self) -> float:
        """The largest size of a piece's value."""
        return float(np.abs(self.piece_values()).max(initial=0.0))


class Reader:
    """Reads rollouts, with what they need loaded once: tokenizers, and a model where the measure is of one.

    measure: the name of a per-token column, `ratio` or `logprob-gap`. separator: what stands between two steps.
    """

    def __init__(self, measure: str, *, separator: str, tokenizer: str | None = None, model: str | None = None) -> None:
        self.measure = measure
        self.separator = separator
        self.spellers = Spellers(tokenizer)
        self.model = model
        self._loaded: tuple[Any, Any] | None = None

    def read(self, place: Place) -> Rollout:
        """One rollout. Raises InputError where its shard lacks what the measure needs, or where its lists differ."""
        path, present = place.shard.path, place.shard.footer.columns
        against = self.measure in AGAINST_MODEL
        lists = [schema.RESPONSE_IDS]
        lists += [schema.PROMPT_IDS, schema.ROLLOUT_LOGPROBS] if against else [self.measure]
        parquet.require_columns(path, present, lists)
        skipped = {schema.PROMPT_IDS, *schema.PER_RESPONSE_TOKEN} - set(lists)
        columns = read_row(path, place.row, [name for name in present if name not in skipped])
        ids = columns[schema.RESPONSE_IDS]
        if not ids:
            raise InputError(f"{path}: response_ids is empty at row {place.row}", "see `primecli validate`")
        name = schema.ROLLOUT_LOGPROBS if against else self.measure
        if len(columns[name]) != len(ids):
            raise InputError(
                f"{path}: {name} has {len(columns[name])} values for {len(ids)} response tokens at row {place.row}",
                "see `primecli validate`",
            )
        values = np.asarray(self._against_model(columns) if against else columns[name], dtype=np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} is not finite at row {place.row}", "see `primecli validate`")
        speller = self.spellers.find(path, place.shard.footer.provenance)
        found = number_pieces(ids) if speller is None else speller.pieces(ids)
        steps = steps_of(found, values, self.separator)
        return Rollout(place, columns, found, values, steps, spelled=speller is not None)

    def _against_model(self, columns: dict[str, Any]) -> np.ndarray:
        """(T,) float32, nats: log of the model's to the sampler's probability of each token; for the gap its size."""
        from primecli.models import loading, scoring
        from primecli.models.device import resolve_dtype, resolve_placement
        from primecli.models.identity import resolve_model
        from primecli.shards.rollouts import Sequences

        if self._loaded is None:
            directory = resolve_model(str(self.model))
            place = resolve_placement("auto", resolve_dtype("auto", "auto"))
            self._loaded = loading.load_model(directory, place), place
        loaded, place = self._loaded
        heat = columns.get(schema.TEMPERATURE)
        sequences = Sequences(
            [np.array(columns[schema.PROMPT_IDS])],
            [np.array(columns[schema.RESPONSE_IDS])],
            np.array([heat or 1.0], dtype=np.float32),
        )
        found = scoring.score(loaded, place, sequences, micro_batch_tokens=1)
        difference = found - np.asarray(columns[schema.ROLLOUT_LOGPROBS], dtype=np.float32)
        return np.abs(difference) if self.measure == GAP else difference


def sampled_otherwise(columns: dict[str, Any]) -> str | None:
    """Why a row's rollout_logprobs are not of the model's own distribution, in words; None where they are."""
    plain = {schema.TOP_P: 1.0, schema.TOP_K: 0}
    odd = [f"{name} {columns[name]:g}" for name, value in plain.items() if columns.get(name, value) != value]
    odd += ["temperature 0"] if columns.get(schema.TEMPERATURE) == 0 else []
    return ", ".join(odd) or None


def steps_of(found: list[Piece], values: np.ndarray, separator: str) -> list[Step]:
    """The steps of a response, in pieces. values: (T,), one a token."""
    ends = np.flatnonzero(last_of_steps([piece.text for piece in found], separator)) + 1
    steps: list[Step] = []
    first, so_far = 0, 0.0
    for last in ends.tolist():
        total = float(values[found[first].first : found[last - 1].last].sum())
        so_far += total
        steps.append(Step(first, last, total, so_far))
        first = last
    return steps


def as_json(rollout: Rollout, measure: str) -> dict[str, Any]:
    """A rollout as `inspect --json` has it. The values of `ratio` are logs of it, in nats, so that they add up."""
    plain = {
        name: value
        for name, value in rollout.columns.items()
        if name not in (*schema.PER_RESPONSE_TOKEN, schema.PROMPT_IDS, schema.RESPONSE_IDS)
    }
    ids, values = rollout.columns[schema.RESPONSE_IDS], rollout.piece_values().tolist()
    return {
        "shard": str(rollout.place.shard.path),
        "row": rollout.place.row,
        **plain,
        "color": measure.replace("_", "-"),
        "spelled": rollout.spelled,
        "tokens": [
            {"text": piece.text, "ids": list(ids[piece.first : piece.last]), "value": value}
            for piece, value in zip(rollout.pieces, values, strict=True)
        ],
        "steps": [
            {"text": rollout.text(step), "sum": step.total, "cumulative": step.cumulative} for step in rollout.steps
        ],
    }
