"""Sampling with running vLLM servers, over HTTP: token ids in, token ids and log-probabilities out.

A server may hold any weights. So before the first request, and again before each shard is committed, every server must
answer a probe as the checkpoint does; if its weights carry a mark, that must be the policy's. `reload` makes a server
load the checkpoint first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np

from primecli.errors import PrimecliError, UsageError
from primecli.generation.engines import (
    EngineOptions,
    Policy,
    Request,
    Sample,
    SampledGroups,
    SamplingParams,
    check_samples,
    copies,
    group_seed,
)
from primecli.generation.engines.reload import Probe, TiedHead, make_probe, reloadable
from primecli.generation.engines.stopping import stop_texts
from primecli.generation.engines.vllm import check_temperature, ending_at

# An hour to answer, since a long group may wait in a long queue; a server that has died drops the connection at once.
TIMEOUT = httpx.Timeout(3600.0, connect=10.0, pool=None)
FIRST_DELAY = 0.5  # seconds before the first retry; each further retry waits twice as long
TICK_SECONDS = 0.2  # between two calls of `tick` while no group finishes
MARK = "primecli:"  # comes before the fingerprint in the weight version that a server is told
RESTART = "see its log; once it runs again, the same command samples what is missing"


def open_engine(policy: Policy, options: EngineOptions) -> ServerEngine:
    """Connects to the servers, has them reload their weights where that was asked for, and proves the weights.

    Raises UsageError without a URL, and PrimecliError where a server cannot be reached or holds other weights.
    """
    if not options.urls:
        raise UsageError("--engine vllm-server needs --url, given once for each server")
    probe, tied = make_probe(policy, options)
    with contextlib.ExitStack() as connections:
        servers = []
        for url in options.urls:
            servers.append(Server(url, policy, probe))
            connections.callback(servers[-1].close)
        for server in servers:
            server.look()
            if options.reload:
                server.reload(tied)
            server.prove()
        connections.pop_all()
    return ServerEngine(servers, policy, options)


class Server:
    """One server, and all requests to it except sampling. url: with or without `/v1` at its end."""

    def __init__(self, url: str, policy: Policy, probe: Probe) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.policy = policy
        self.probe = probe
        self.model = ""
        self.in_flight = 0
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT, headers=_headers(), trust_env=False)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def look(self) -> None:
        """Finds out the name of the served model. Raises PrimecliError where its context is too short."""
        with _expecting_vllm(self.url):
            served = self._call("GET", "/v1/models")["data"][0]
            self.model = str(served["id"])
            limit = served.get("max_model_len")
        if limit is not None and limit < self.policy.max_length:
            raise PrimecliError(
                f"{self.url} takes {limit} tokens, but prompt and --max-tokens add up to {self.policy.max_length}",
                "start it with a larger --max-model-len, or lower --max-tokens",
            )

    def reload(self, tied: TiedHead | None) -> None:
        """Makes the server finish its requests and load the policy's checkpoint, then marks the weights."""
        self._develop("POST", "/pause", params={"mode": "wait"})
        try:
            self._mark("loading")
            with reloadable(self.policy.directory, tied) as links:
                self._develop(
                    "POST", "/collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(links)}}
                )
            # it holds keys and values that the old weights computed
            self._develop("POST", "/reset_prefix_cache")
        finally:
            with contextlib.suppress(httpx.TransportError):  # a server that has died was reported already
                self._client.post("/resume")
        self._mark(self.policy.fingerprint)

    def _mark(self, weights: str) -> None:
        self._develop("POST", "/update_weight_version", json={"new_version": f"{MARK}{weights}"})

    def prove(self) -> None:
        """Raises PrimecliError unless the served weights answer the probe as the checkpoint does."""
        answer = self._client_get("/weight_info")
        with _expecting_vllm(self.url):
            mark = str(answer.json()["weight_version"]) if answer.status_code == httpx.codes.OK else ""
        if mark.startswith(MARK) and mark != f"{MARK}{self.policy.fingerprint}":
            raise self._other_weights(f"they are those of {mark.removeprefix(MARK)}")
        ids = list(self.probe.token_ids)
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        with _expecting_vllm(self.url):
            choice = self._call("POST", "/v1/completions", json={"model": self.model, **body})["choices"][0]
            answers = choice["prompt_logprobs"][1:]
            served = np.array(
                [candidates[str(token)]["logprob"] for candidates, token in zip(answers, ids[1:], strict=True)],
                dtype=np.float64,
            )
        gap = float(np.abs(served - self.probe.logprobs).mean())
        if not gap <= self.probe.gap:
            raise self._other_weights(
                f"log-probabilities of the probe are off by {gap:.2g} nats on average, and rounding explains at most "
                f"{self.probe.gap:g}"
            )

    def _other_weights(self, how: str) -> PrimecliError:
        return PrimecliError(
            f"{self.url} serves other weights than {self.policy.directory} ({self.policy.fingerprint}): {how}",
            "pass --reload to make it load them, and the same --dtype as the server",
        )

    def check_processed(self) -> None:
        """Raises PrimecliError unless the server's log-probabilities are those after temperature and truncation.

        With top_k 1 only one token is left in the distribution, so its log-probability must be 0.
        """
        first = [self.probe.token_ids[0]]
        body = {"prompt": first, "max_tokens": 2, "temperature": 1.0, "top_p": 1.0, "top_k": 1, "logprobs": 0}
        with _expecting_vllm(self.url):
            answer = self._call("POST", "/v1/completions", json={"model": self.model, "ignore_eos": True, **body})
            untouched = any(answer["choices"][0]["logprobs"]["token_logprobs"])
        if untouched:
            raise PrimecliError(
                f"{self.url} gives log-probabilities from before temperature and truncation",
                "start it with --logprobs-mode processed_logprobs",
            )

    def _client_get(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path)
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error

    def _develop(self, method: str, path: str, **arguments: Any) -> None:
        self._call(method, path, missing="--reload needs a server started with VLLM_SERVER_DEV_MODE=1", **arguments)

    def _call(self, method: str, path: str, *, missing: str | None = None, **arguments: Any) -> Any:
        try:
            response = self._client.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error
        if response.status_code == httpx.codes.NOT_FOUND and missing:
            raise PrimecliError(f"{self.url} has no {path}", missing)
        if response.is_error:
            raise PrimecliError(f"{self.url}{path}: {problem(response)}", RESTART)
        return response.json() if response.content else None


class ServerEngine:
    """Samples from servers whose weights are proven; each request goes to the server with the fewest in flight."""

    def __init__(self, servers: Sequence[Server], policy: Policy, options: EngineOptions) -> None:
        self.servers = servers
        self.policy = policy
        self.stop_texts = stop_texts(policy)
        self.concurrency = options.concurrency
        self.retries = options.retries

    def sample(self, requests: Sequence[Request], params: SamplingParams, *, tick: Callable[[], None]) -> SampledGroups:
        """Yields each request's index and samples as they finish.

        Closing the generator drops the connections, upon which the servers abort what they are sampling.
        """
        check_temperature(params)
        if not params.plain() and params.temperature != 0:
            for server in self.servers:
                server.check_processed()
        todo = iter(enumerate(requests))
        done: asyncio.Queue[tuple[int, list[Sample]]] = asyncio.Queue()
        workers: list[asyncio.Task[None]] = []
        with asyncio.Runner() as runner:
            crew = runner.get_loop().create_task(self._work(todo, done, params, workers))
            try:
                for _ in range(len(requests)):
                    while (finished := runner.run(_next(done, crew))) is None:
                        tick()
                    tick()
                    yield finished
            except BaseException:
                deque(todo, maxlen=0)  # so that workers that have not begun find nothing to do
                # not the crew: cancelled while it closes the connections, it would leave some open
                for worker in workers:
                    worker.cancel()
                raise
            finally:
                runner.run(_end(crew))

    async def _work(
        self,
        todo: Iterator[tuple[int, Request]],
        done: asyncio.Queue[tuple[int, list[Sample]]],
        params: SamplingParams,
        workers: list[asyncio.Task[None]],
    ) -> None:
        """Sends all requests, with at most `concurrency` per server in flight on average.

        done: receives the finished groups. workers: receives the tasks that send the requests.
        """
        size = self.concurrency * len(self.servers)
        limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)

        async def worker() -> None:
            for number, request in todo:
                done.put_nowait((number, await self._ask(client, request, params)))

        async with (
            httpx.AsyncClient(limits=limits, timeout=TIMEOUT, headers=_headers(), trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            workers += [group.create_task(worker()) for _ in range(size)]

    async def _ask(self, client: httpx.AsyncClient, request: Request, params: SamplingParams) -> list[Sample]:
        body = _body(request, params, self.policy.stop_ids) | ending_at(self.stop_texts)
        failed: Server | None = None
        why = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(FIRST_DELAY * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            server = self._least_busy(failed)
            server.in_flight += 1
            try:
                response = await client.post(f"{server.url}/v1/completions", json={"model": server.model, **body})
            except httpx.TransportError as error:
                failed, why = server, _reason(error)
                continue
            finally:
                server.in_flight -= 1
            if response.is_server_error:
                failed, why = server, problem(response)
                continue
            if response.is_error:
                raise PrimecliError(f"{server.url}: refuses the request: {problem(response)}")
            answer = _answer(response, server.url)
            if any(choice.get("finish_reason") == "abort" for choice in answer["choices"]):
                failed, why = server, "it has aborted the request"
                continue
            return self._samples(answer, request, params, server.url)
        assert failed is not None, "a request without an answer has failed at some server"
        raise PrimecliError(f"{failed.url}: gave no samples in {self.retries + 1} attempts: {why}", RESTART)

    def _samples(self, answer: Any, request: Request, params: SamplingParams, url: str) -> list[Sample]:
        with _expecting_vllm(url):
            samples = [self.stop_texts.cut(sample) for sample in _samples(answer, request, params, url)]
        check_samples(samples, params, self.policy, prompt=request.group_id, source=url)
        return samples

    def _least_busy(self, failed: Server | None) -> Server:
        """The server with the fewest requests in flight; not the one that has just failed, if there is another."""
        others = [server for server in self.servers if server is not failed] or self.servers
        return min(others, key=lambda server: server.in_flight)

    def confirm(self) -> None:
        """Proves the weights of every server again, since one may have been restarted or reloaded."""
        for server in self.servers:
            server.prove()

    def close(self) -> None:
        """Closes the connections; the servers keep running."""
        for server in self.servers:
            server.close()


def _body(request: Request, params: SamplingParams, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The body of a request. It sets everything that a server's defaults could change."""
    return {
        "prompt": [int(token) for token in request.prompt_ids],
        "n": 1 if params.temperature == 0 else params.n,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": params.max_tokens,
        "seed": group_seed(params.seed, request.group_id),
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # stop_ids include the model's end-of-sequence tokens
        "logprobs": 0,
        "return_token_ids": True,
    }


def _samples(answer: Any, request: Request, params: SamplingParams, url: str) -> list[Sample]:
    """The samples in a server's answer. Raises PrimecliError where the answer is not what was asked for.

    It may raise anything that reading JSON of another form raises; `check_samples` comes next.
    """
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(len(choices))):
        raise PrimecliError(f"{url}: returned the samples {[choice['index'] for choice in choices]}", RESTART)
    sent = [int(token) for token in request.prompt_ids]
    samples = []
    for choice in choices:
        if choice.get("token_ids") is None:
            raise PrimecliError(f"{url}: its vLLM does not return token ids", "serve with vLLM 0.31 or newer")
        if choice.get("prompt_token_ids") != sent:
            raise PrimecliError(f"{url}: answered another prompt than the one that was sent")
        tokens = np.asarray(choice["token_ids"], dtype=np.int32)
        logprobs = np.asarray(choice["logprobs"]["token_logprobs"], dtype=np.float32)
        samples.append(Sample(tokens, logprobs, choice["finish_reason"]))
    return copies(samples[0], params.n) if params.temperature == 0 else samples


def _answer(response: httpx.Response, url: str) -> Any:
    """The JSON of a response. Raises PrimecliError unless it has a list of choices."""
    with _expecting_vllm(url):
        answer = response.json()
        if not isinstance(answer["choices"], list) or not all(isinstance(choice, dict) for choice in answer["choices"]):
            raise ValueError("choices is not a list of objects")
    return answer


@contextlib.contextmanager
def _expecting_vllm(url: str) -> Iterator[None]:
    """Turns what reading an answer of another form raises into a PrimecliError that names the server."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        why = " ".join(repr(error).split())[:200]
        raise PrimecliError(f"{url}: did not answer as a vLLM server does: {why}", RESTART) from error


async def _next(
    done: asyncio.Queue[tuple[int, list[Sample]]], crew: asyncio.Task[None]
) -> tuple[int, list[Sample]] | None:
    """The next finished group; None when none has come for a moment. Raises the error that the crew has failed with."""
    if done.empty():
        getter = asyncio.ensure_future(done.get())
        await asyncio.wait([getter, crew], timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if getter.done():
            return getter.result()
        getter.cancel()
        if crew.done() and (error := crew.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error
        return None
    return done.get_nowait()


async def _end(crew: asyncio.Task[None]) -> None:
    """Waits until the connections are closed. An error of the crew has been raised before."""
    await asyncio.wait([crew])


def _headers() -> dict[str, str]:
    key = os.environ.get("VLLM_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def unreachable(url: str, error: httpx.TransportError) -> PrimecliError:
    """The error to raise for a server that does not answer."""
    return PrimecliError(f"{url}: does not answer: {_reason(error)}", RESTART)


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def problem(response: httpx.Response) -> str:
    """What a server says is wrong, as one line."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(f"{response.status_code} {text}".split())[:300]
