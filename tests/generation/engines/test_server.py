"""The client side of vLLM servers. The server here answers at once; real ones are in tests/generation/engines/vllm."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from primecli.generation.engines import Request, SamplingParams
from primecli.generation.engines.server import ServerEngine


class Handler(BaseHTTPRequestHandler):
    """Answers every request with its first prompt token."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {
            "index": 0,
            "token_ids": asked["prompt"][:1],
            "prompt_token_ids": asked["prompt"],
            "logprobs": {"token_logprobs": [-0.5]},
            "finish_reason": "stop",
        }
        answer = json.dumps({"choices": [choice] * asked["n"]}).encode()
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
        made.policy = SimpleNamespace(stop_ids=[1])
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
