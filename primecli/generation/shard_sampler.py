"""Sampling one shard after the other, for `generate` in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from primecli.generation.encoder import Encoder
from primecli.generation.engines import (
    Engine,
    EngineOptions,
    Policy,
    Request,
    Sample,
    SamplingParams,
    check_samples,
    open_engine,
)
from primecli.generation.sampler import PromptGroup, rollout_table, sampled_counts
from primecli.pipeline import pipe
from primecli.pipeline.making import Product


class ShardSampler:
    """Samples the groups of a shard: a `making.Maker`. The engine is open from the first shard on.

    What it samples is what `sampler.Sampler` samples: a group's random numbers depend on nothing but the group.

    engine: its name. policy: the model that samples. options: how the engine runs. params: how to sample.
    """

    def __init__(self, engine: str, policy: Policy, options: EngineOptions, params: SamplingParams) -> None:
        self.name = engine
        self.policy = policy
        self.options = options
        self.params = params
        self.encoder = Encoder(policy.directory)
        self._engine: Engine | None = None

    def prepare(self, *, alone: bool) -> None:
        """Does nothing: the prompts are there before the first worker is."""

    def _opened(self) -> Engine:
        if self._engine is None:
            if self.name == "vllm":
                pipe.keep_streams(show=self.options.debug)
            self._engine = open_engine(self.name, self.policy, self.options)
        return self._engine

    def make(self, item: tuple[int, Sequence[PromptGroup]], advance: Callable[[int], None]) -> Product:
        """The rows of a shard. item: its number, and its groups."""
        number, groups = item
        engine = self._opened()
        requests = [Request(group.group_id, group.prompt_ids, number) for group in groups]
        samples: dict[int, list[Sample]] = {}
        for index, found in engine.sample(requests, self.params, tick=lambda: None):
            prompt = groups[index].group_id
            check_samples(found, self.params, self.policy, prompt=prompt, source=f"the engine {self.name}")
            samples[index] = found
            advance(len(found))
        engine.confirm()
        ordered = [samples[index] for index in range(len(groups))]
        table = rollout_table(groups, ordered, self.params, self.encoder, self.policy.fingerprint)
        return Product(table, sampled_counts(table), {})

    def close(self) -> None:
        """Closes the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
