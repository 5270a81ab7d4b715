"""An engine without a model, for tests of the code around engines: its tokens depend only on the seed and the group."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from primecli.generation.engines import Request, Sample, SampledGroups, SamplingParams, group_seed
from primecli.generation.engines.stopping import NO_STOP_TEXTS, StopTexts


class FakeEngine:
    """Samples uniformly random tokens below `vocabulary_size`, each with its true log-probability.

    stop_texts: what finds the texts that end responses.
    backwards: yields groups from the last to the first, as an engine may. finished: number of groups yielded so far.
    aborted: whether sampling ended before its last group. confirmed: how often `confirm` was called.
    """

    def __init__(
        self, *, vocabulary_size: int = 256, backwards: bool = False, stop_texts: StopTexts = NO_STOP_TEXTS
    ) -> None:
        self.vocabulary_size = vocabulary_size
        self.backwards = backwards
        self.stop_texts = stop_texts
        self.finished = 0
        self.aborted = False
        self.confirmed = 0
        self.closed = False

    def sample(self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]) -> SampledGroups:
        """Yields each request's number and samples."""
        numbers = list(range(len(requests)))
        left = len(numbers)
        try:
            for number in reversed(numbers) if self.backwards else numbers:
                tick()
                rng = np.random.default_rng(group_seed(params.seed, requests[number].group_id))
                lengths = rng.integers(1, params.max_tokens + 1, size=params.n)
                left -= 1
                self.finished += 1
                yield number, [self._one(rng, int(length), params) for length in lengths]
        finally:
            self.aborted = left > 0

    def _one(self, rng: np.random.Generator, length: int, params: SamplingParams) -> Sample:
        tokens = rng.integers(0, self.vocabulary_size, size=length).astype(np.int32)
        logprobs = np.full(length, -np.log(self.vocabulary_size), dtype=np.float32)
        sample = Sample(tokens, logprobs, "length" if length == params.max_tokens else "stop")
        return self.stop_texts.cut(sample)

    def confirm(self) -> None:
        """Only counts the call, since there are no weights that could have changed."""
        self.confirmed += 1

    def close(self) -> None:
        """Only notes the call, since nothing is held."""
        self.closed = True
