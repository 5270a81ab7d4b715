"""Groups of prompts to the rows of shards: what stands between `generate` and an engine."""

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
        """Names this sampling of this prompt."""
        return f"{self.prompt.prompt_id}@{self.position}"


class Sampler:
    """Samples parts, each the groups of a shard, once. The engine is open from the first that is asked for to the last.

    All parts are handed to the engine at once, so that one that batches as it goes is never idle at the end of a
    shard. parts: groups by number. done: hears how many rollouts were sampled, of the part asked for and of others.
    """

    def __init__(
        self,
        engine: str,
        policy: Policy,
        options: EngineOptions,
        params: SamplingParams,
        parts: Mapping[int, Sequence[PromptGroup]],
        *,
        done: Callable[[int], None] = lambda rollouts: None,
        open_engine: Callable[[str, Policy, EngineOptions], Engine] = open_engine,
    ) -> None:
        self.name = engine
        self.policy = policy
        self.options = options
        self.params = params
        self.parts = parts
        self.done = done
        self._open = open_engine
        self._running: tuple[Engine, SampledGroups] | None = None
        self._places: list[tuple[int, int]] = []  # part and place in it, of each request
        self._found: dict[int, dict[int, list[Sample]]] = {number: {} for number in parts}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
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
        for number, groups in self.parts.items():
            for place, group in enumerate(groups):
                requests.append(Request(group.group_id, group.prompt_ids, number))
                self._places.append((number, place))
        return engine, engine.sample(requests, self.params, tick=pipe.check_reader)

    def samples(self, number: int) -> list[list[Sample]]:
        """The samples of each group of a part, by weights that are confirmed to be the policy's."""
        self._running = self._running or self._start()
        engine, groups = self._running
        mine = self._found[number]
        while len(mine) < len(self.parts[number]):
            request, samples = next(groups)
            part, place = self._places[request]
            self._found[part][place] = samples
            self.done(len(samples))
        engine.confirm()
        del self._found[number]
        if not self._found:
            self._end()  # before the last shard's path is out: then the next stage may begin, and want the GPU
        return [mine[place] for place in range(len(mine))]


def rollout_table(
    groups: Sequence[PromptGroup],
    samples: Sequence[Sequence[Sample]],
    params: SamplingParams,
    encoder: Encoder,
    fingerprint: str,
) -> pa.Table:
    """The rows of a shard, with all columns that `generate` makes. fingerprint: of the weights that sampled."""
    import pyarrow as pa

    rows = []
    for group, found in zip(groups, samples, strict=True):
        for index, sample in enumerate(found):
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
