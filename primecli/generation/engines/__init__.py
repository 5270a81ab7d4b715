"""How responses are sampled: engines behind one Protocol. A new engine is one file and one line in `ENGINES`.

The file of an engine has a function `open_engine(policy, options)`, which loads what the engine needs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from primecli.errors import PrimecliError

if TYPE_CHECKING:
    import numpy as np

ENGINES: dict[str, str] = {
    "hf": "primecli.generation.engines.hf",
    "vllm": "primecli.generation.engines.vllm",
    "vllm-server": "primecli.generation.engines.server",
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How responses are sampled.

    n: responses per prompt.
    temperature: what logits are divided by; 0 is greedy.
    top_p: mass of the most probable tokens that are sampled from, in (0, 1]; 1 is all of them.
    top_k: number of the most probable tokens that are sampled from; 0 is all of them.
    max_tokens: tokens of a response at most.
    seed: what all random numbers derive from.
    """

    n: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    seed: int = 0

    def plain(self) -> bool:
        """Whether responses are sampled from the model's own distribution."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k == 0


@dataclass(frozen=True, slots=True)
class Request:
    """One group of responses to sample.

    group_id: names the group; its random numbers derive from this and the seed.
    prompt_ids: token ids of the prompt.
    shard: number of the shard that it is for. Engines finish the shards in order, as far as they can control it.
    """

    group_id: str
    prompt_ids: Sequence[int]
    shard: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One response of T tokens.

    token_ids: (T,) int32, including the stop token where one was sampled, or the token that completes a stop text.
    logprobs: (T,) float32, nats, of each token under the distribution it was sampled from; 0 for greedy sampling.
    finish_reason: stop or length.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The model that samples.

    directory: its checkpoint.
    fingerprint: identity of its weights, 32 hex digits.
    stop_ids: ids of the tokens that end a response.
    vocabulary_size: number of tokens that its tokenizer knows.
    output_size: number of tokens that it gives a probability to; often some more, which stand for nothing.
    max_length: tokens of the longest sequence that can come up, prompt and response together.
    stop_texts: texts that end a response once its text has one in it, such as </answer>; see `stopping`.
    """

    directory: Path
    fingerprint: str
    stop_ids: tuple[int, ...]
    vocabulary_size: int
    max_length: int
    output_size: int = 0
    stop_texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine runs. Each engine uses the fields that concern it, which are named in brackets.

    device: auto, cpu, cuda or cuda:N.
    dtype: float32 or bfloat16.
    threads: CPU threads; None for OMP_NUM_THREADS or torch's own choice.
    micro_batch_tokens: [hf] tokens that the key-value cache of a batch may hold.
    tensor_parallel: [vllm] number of GPUs that the model is split over.
    gpu_memory: [vllm] share of a GPU's memory to use, in (0, 1]; None for vLLM's default.
    engine_args: [vllm] further arguments of vLLM's EngineArgs, by name.
    urls: [vllm-server] the servers, such as http://localhost:8000.
    reload: [vllm-server] whether to make the servers load the policy first.
    concurrency: [vllm-server] requests in flight at each server.
    retries: [vllm-server] how often a failed request is sent again.
    probe_gap: [vllm-server] largest mean gap of the probe, nats; None for what rounding in `dtype` explains.
    debug: whether to show the log of the engine's library.
    """

    device: str = "auto"
    dtype: str = "float32"
    threads: int | None = None
    micro_batch_tokens: int = 131072
    tensor_parallel: int = 1
    gpu_memory: float | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    reload: bool = False
    concurrency: int = 64
    retries: int = 6
    probe_gap: float | None = None
    debug: bool = False


SampledGroups: TypeAlias = "Generator[tuple[int, list[Sample]], None, None]"
"""The number of each request with its samples, in the order in which they finish."""


class Engine(Protocol):
    """Samples groups of responses with the weights of one policy."""

    def sample(self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]) -> SampledGroups:
        """Yields (index of the request, its n samples) for each request as it finishes.

        It calls `tick` often. An exception that `tick` raises ends the sampling, as does closing the generator:
        requests in flight are aborted at once.
        """
        ...

    def confirm(self) -> None:
        """Raises PrimecliError unless the engine's weights are still those of the policy."""
        ...

    def close(self) -> None:
        """Releases what the engine holds."""
        ...


def open_engine(name: str, policy: Policy, options: EngineOptions) -> Engine:
    """The engine of that name, loaded. Raises PrimecliError where it cannot be loaded."""
    from importlib import import_module

    engine: Engine = import_module(ENGINES[name]).open_engine(policy, options)
    return engine


def resolve_engine(name: str, device: str) -> str:
    """The engine that `auto` stands for: vllm if it is installed and there is a GPU to use, else hf."""
    if name != "auto":
        return name
    from importlib.util import find_spec

    if device == "cpu" or find_spec("vllm") is None:
        return "hf"
    import torch

    return "vllm" if torch.cuda.is_available() else "hf"


def group_seed(seed: int, group_id: str) -> int:
    """The seed of a group's first sample, from 0 to 2**62 - 1; vLLM counts up from it for the others."""
    import hashlib

    digest = hashlib.sha256(f"{seed}\0{group_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


LOWEST_LOGPROB = -9999.0  # what vLLM's server writes in place of -inf, which JSON does not have
ROUNDING = 1e-3  # nats by which a log-probability may exceed 0: that of bfloat16 logits is far smaller


def check_samples(
    samples: Sequence[Sample], params: SamplingParams, policy: Policy, *, prompt: str, source: str
) -> None:
    """Raises PrimecliError unless these are n whole samples of tokens that exist, with possible log-probabilities.

    prompt: the group_id. source: what sampled them, for the message.
    """
    import numpy as np

    def refuse(what: str) -> PrimecliError:
        return PrimecliError(
            f"{source} returned {what} for the prompt {prompt}",
            "nothing of this shard was written; check the weights and the precision of what samples",
        )

    if len(samples) != params.n:
        raise refuse(f"{len(samples)} of {params.n} samples")
    limit = max(policy.vocabulary_size, policy.output_size)
    for sample in samples:
        tokens, logprobs = sample.token_ids, sample.logprobs
        if not 0 < len(tokens) <= params.max_tokens or len(logprobs) != len(tokens):
            raise refuse(f"{len(tokens)} tokens and {len(logprobs)} log-probabilities")
        if sample.finish_reason not in ("stop", "length"):
            raise refuse(f"a sample that ended by {sample.finish_reason!r}")
        possible = np.isfinite(logprobs) & (logprobs > LOWEST_LOGPROB) & (logprobs <= ROUNDING)
        if not possible.all():
            raise refuse(f"the log-probability {logprobs[int(np.argmin(possible))]:g}")
        known = (tokens >= 0) & (tokens < limit)
        if not known.all():
            raise refuse(f"the token id {tokens[int(np.argmin(known))]}, and the model has {limit} tokens")


def copies(sample: Sample, n: int) -> list[Sample]:
    """The n samples of a greedy group, which are all the same; log-probabilities are 0, since greedy is certain.

    Those that are not finite become NaN, for `check_samples` to find.
    """
    certain = Sample(sample.token_ids, sample.logprobs * 0, sample.finish_reason)
    return [certain] * n
