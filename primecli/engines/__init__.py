"""How responses are sampled: engines behind one Protocol. A new engine is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

ENGINES: dict[str, str] = {
    "hf": "primecli.engines.hf:HfEngine",
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What responses are sampled with. temperature 0 is greedy; top_p 1 and top_k 0 truncate nothing."""

    n: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One group to sample: its id, from which with the seed its randomness comes, and its prompt's token ids."""

    group_id: str
    prompt_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One response. token_ids: the stop token included when it was sampled. logprobs: nats, of each of them,
    under the distribution sampled from. finish_reason: stop or length."""

    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str


class Engine(Protocol):
    """Samples groups of responses. Groups come back as they finish, each with its request's number."""

    def sample(
        self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yields (number of the request, its n samples). Calls `tick` often; what it raises ends the sampling."""
        ...
