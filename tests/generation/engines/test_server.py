"""The client side of vLLM servers. The server here answers at once; real ones are in tests/generation/engines/vllm."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from transformers import AutoTokenizer

from primecli.errors import PrimecliError
from primecli.generation.engines import Policy, Request, SamplingParams
from primecli.generation.engines.server import ServerEngine
from primecli.generation.engines.stopping import StopTexts
from primecli.setup.tiny_model import make_tokenizer


class Handler(BaseHTTPRequestHandler):
    """Answers every request with its first prompt token."""

    protocol_version = "HTTP/1.1"
    spoil: Callable[[Any], Any] = staticmethod(lambda answer: answer)
    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(asked)
        choice = {
            "index": 0,
            "token_ids": asked["prompt"][:1],
            "prompt_token_ids": asked["prompt"],
            "logprobs": {"token_logprobs": [-0.5]},
            "finish_reason": "stop",
        }
        choices = [{**choice, "index": index} for index in range(asked["n"])]
        answer = json.dumps(type(self).spoil({"choices": choices})).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def engine() -> Iterator[ServerEngine]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections that the client drops
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made: Any = ServerEngine.__new__(ServerEngine)  # skips the proof of weights, which needs a real server
        made.servers = [
            SimpleNamespace(
                url=f"http://127.0.0.1:{server.server_port}", model="policy", in_flight=0, close=lambda: None
            )
        ]
        made.policy = Policy(Path("nowhere"), "f", (1,), 100, 50)
        made.stop_texts = StopTexts()
        made.concurrency, made.retries = 4, 0
        yield made
        server.shutdown()


@pytest.mark.parametrize("taken", [0, 1, 3, 8])
def test_connections_are_closed_wherever_sampling_ends(engine: ServerEngine, taken: int) -> None:
    """Also between the last answer and the end of the client, as when the last shard is full.

    pytest fails a test that leaves a connection open.
    """
    params = SamplingParams(n=1, temperature=1.0, top_p=1.0, top_k=0, max_tokens=2, seed=0)
    requests = [Request(f"p{number}", [number + 5], 0) for number in range(8)]
    for _ in range(10):
        groups = engine.sample(requests, params, tick=lambda: None)
        found = dict(next(groups) for _ in range(taken))
        groups.close()
        assert all(samples[0].token_ids.tolist() == [number + 5] for number, samples in found.items())
        gc.collect()


def second(**changes: Any) -> Callable[[Any], Any]:
    """Changes the second of an answer's samples."""

    def spoil(answer: Any) -> Any:
        answer["choices"][1] |= changes
        return answer

    return spoil


SPOILED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "fewer": (lambda answer: {"choices": answer["choices"][:1]}, "1 of 2 samples"),
    "one twice": (second(index=0), "the samples [0, 0]"),
    "null": (second(logprobs={"token_logprobs": [None]}), "log-probability nan"),
    "nan": (second(logprobs={"token_logprobs": [float("nan")]}), "log-probability nan"),
    "-inf": (second(logprobs={"token_logprobs": [-9999.0]}), "log-probability -9999"),
    "positive": (second(logprobs={"token_logprobs": [0.3]}), "log-probability 0.3"),
    "unknown token": (second(token_ids=[151708]), "the token id 151708, and the model has 100 tokens"),
    "no tokens": (second(token_ids=[], logprobs={"token_logprobs": []}), "0 tokens and 0 log-probabilities"),
    "too many tokens": (second(token_ids=[5] * 3, logprobs={"token_logprobs": [-1.0] * 3}), "3 tokens"),
    "lengths that differ": (second(token_ids=[5, 5]), "2 tokens and 1 log-probabilities"),
    "another end": (second(finish_reason="repetition"), "ended by 'repetition'"),
    "another prompt": (second(prompt_token_ids=[9]), "answered another prompt"),
    "aborted": (second(finish_reason="abort"), "gave no samples in 1 attempts: it has aborted the request"),
    "another form": (lambda answer: {"choices": ["a", "b"]}, "did not answer as a vLLM server does"),
    "no choices": (lambda answer: [1], "did not answer as a vLLM server does"),
    "words for numbers": (second(logprobs={"token_logprobs": ["much"]}), "did not answer as a vLLM server does"),
    "no log-probabilities": (second(logprobs=None), "did not answer as a vLLM server does"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_an_answer_that_cannot_be_right_is_refused(
    name: str, engine: ServerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = SPOILED[name]
    monkeypatch.setattr(Handler, "spoil", staticmethod(spoil))
    with pytest.raises(PrimecliError) as info:
        list(engine.sample([Request("p7@0", [5])], SamplingParams(n=2, max_tokens=2), tick=lambda: None))
    assert message in str(info.value)
    assert engine.servers[0].url in str(info.value)


def test_a_greedy_answer_must_be_finite_too(engine: ServerEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = SamplingParams(n=2, temperature=0, max_tokens=2)
    ((_, samples),) = engine.sample([Request("p", [5])], greedy, tick=lambda: None)
    assert [sample.logprobs.tolist() for sample in samples] == [[0.0], [0.0]]

    def spoil(answer: Any) -> Any:
        answer["choices"][0]["logprobs"]["token_logprobs"] = [None]
        return answer

    monkeypatch.setattr(Handler, "spoil", staticmethod(spoil))
    with pytest.raises(PrimecliError, match="log-probability nan"):
        list(engine.sample([Request("p", [5])], greedy, tick=lambda: None))


def test_what_comes_after_a_stop_text_is_cut(
    engine: ServerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM is asked to end there; a server that hands over some tokens more is no problem."""
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    engine.policy = Policy(tmp_path, "f", (256,), 258, 50)
    engine.stop_texts = StopTexts(("END",), tokenizer)
    ids = tokenizer("So it ENDs here")["input_ids"]

    def spoil(answer: Any) -> Any:
        for choice in answer["choices"]:
            choice |= {"token_ids": ids, "logprobs": {"token_logprobs": [-0.5] * len(ids)}, "finish_reason": "length"}
        return answer

    monkeypatch.setattr(Handler, "spoil", staticmethod(spoil))
    monkeypatch.setattr(Handler, "asked", [])
    ((_, samples),) = engine.sample([Request("p", [5])], SamplingParams(n=2, max_tokens=15), tick=lambda: None)
    for sample in samples:
        assert tokenizer.decode(sample.token_ids) == "So it END"
        assert (len(sample.logprobs), sample.finish_reason) == (9, "stop")
    asked = Handler.asked[0]
    assert (asked["stop"], asked["include_stop_str_in_output"], asked["skip_special_tokens"]) == (["END"], True, False)
