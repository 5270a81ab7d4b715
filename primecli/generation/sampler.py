"""What is between `generate` and an engine: prompts in groups go in, and the rows of shards come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from primecli.generation.encoder import Encoder
from primecli.generation.engines import (
    Engine,
    EngineOptions,
    Policy,
    Request,
    Sample,
    SampledGroups,
    SamplingParams,
    check_samples,
    open_engine,
)
from primecli.generation.prompts import Prompt
from primecli.pipeline import pipe
from primecli.shards import schema

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """One prompt to sample n responses to.

    position: its position in the stream of prompts, from 0; see `prompts.stream_positions`.
    prompt: as read from the prompt file.
    text: the prompt after the chat template.
    prompt_ids: token ids of the text.
    """

    position: int
    prompt: Prompt
    text: str
    prompt_ids: list[int]

    @property
    def group_id(self) -> str:
        """The id of this sampling of this prompt, such as gsm8k-17@3."""
        return f"{self.prompt.prompt_id}@{self.position}"


class Sampler:
    """Samples the groups of each shard. The engine is open from the first shard that is asked for to the last.

    All shards are handed to the engine at once, so that an engine with continuous batching is never idle at the end of
    a shard.

    shards: the groups of each shard, by the shard's number. done: called with the number of rollouts just sampled, of
    whichever shard.
    """

    def __init__(
        self,
        engine: str,
        policy: Policy,
        options: EngineOptions,
        params: SamplingParams,
        shards: Mapping[int, Sequence[PromptGroup]],
        *,
        done: Callable[[int], None] = lambda rollouts: None,
        open_engine: Callable[[str, Policy, EngineOptions], Engine] = open_engine,
    ) -> None:
        self.name = engine
        self.policy = policy
        self.options = options
        self.params = params
        self.shards = shards
        self.done = done
        self._open = open_engine
        self._running: tuple[Engine, SampledGroups] | None = None
        self._slots: list[tuple[int, int]] = []  # of each request: its shard, and its index in it
        self._samples: dict[int, dict[int, list[Sample]]] = {number: {} for number in shards}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._running is not None:
            engine, groups = self._running
            self._running = None
            groups.close()  # aborts what is in flight
            engine.close()

    def _start(self) -> tuple[Engine, SampledGroups]:
        if self.name == "vllm":
            pipe.keep_streams(show=self.options.debug)
        engine = self._open(self.name, self.policy, self.options)
        requests = []
        for number, groups in self.shards.items():
            for index, group in enumerate(groups):
                requests.append(Request(group.group_id, group.prompt_ids, number))
                self._slots.append((number, index))
        return engine, engine.sample(requests, self.params, tick=pipe.check_reader)

    def samples(self, number: int) -> list[list[Sample]]:
        """The samples of each group of a shard, after confirming that the weights that sampled are the policy's."""
        self._running = self._running or self._start()
        engine, groups = self._running
        finished = self._samples[number]
        while len(finished) < len(self.shards[number]):
            request, samples = next(groups)
            shard, index = self._slots[request]
            group_id = self.shards[shard][index].group_id
            check_samples(samples, self.params, self.policy, prompt=group_id, source=f"the engine {self.name}")
            self._samples[shard][index] = samples
            self.done(len(samples))
        engine.confirm()
        del self._samples[number]
        if not self._samples:
            self._close()  # before the last shard's path is out, since the next stage may want the GPU then
        return [finished[index] for index in range(len(finished))]


def rollout_table(
    groups: Sequence[PromptGroup],
    samples: Sequence[Sequence[Sample]],
    params: SamplingParams,
    encoder: Encoder,
    fingerprint: str,
) -> pa.Table:
    """The rows of a shard, with all columns that `generate` adds. fingerprint: that of the weights that sampled."""
    import pyarrow as pa

    rows = []
    for group, responses in zip(groups, samples, strict=True):
        for index, sample in enumerate(responses):
            rows.append(
                {
                    schema.PROMPT_ID: group.prompt.prompt_id,
                    schema.GROUP_ID: group.group_id,
                    schema.GROUP_SIZE: params.n,
                    schema.SAMPLE_INDEX: index,
                    schema.DATA_SOURCE: group.prompt.data_source,
                    schema.ABILITY: group.prompt.ability,
                    schema.GROUND_TRUTH: group.prompt.ground_truth,
                    schema.PROMPT: group.text,
                    schema.RESPONSE: encoder.decode(sample.token_ids),
                    schema.PROMPT_IDS: group.prompt_ids,
                    schema.RESPONSE_IDS: sample.token_ids,
                    schema.ROLLOUT_LOGPROBS: sample.logprobs,
                    schema.TEMPERATURE: params.temperature,
                    schema.TOP_P: params.top_p,
                    schema.TOP_K: params.top_k,
                    schema.FINISH_REASON: sample.finish_reason,
                    schema.POLICY_FINGERPRINT: fingerprint,
                }
            )
    return pa.Table.from_pylist(rows, schema=schema.arrow_schema(schema.made_by("generate")))


def sampled_counts(table: pa.Table) -> dict[str, float]:
    """The sums over the rows of a shard from which the metrics of `generate` are made."""
    import pyarrow.compute as pc

    return {
        "rollouts": table.num_rows,
        "tokens": pc.sum(pc.list_value_length(table[schema.RESPONSE_IDS])).as_py(),
        "truncated": pc.sum(pc.equal(table[schema.FINISH_REASON], "length")).as_py(),
    }
