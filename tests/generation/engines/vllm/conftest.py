"""Real vLLM: tiny models, and servers on the loopback. Run by `make vllm-cpu test-vllm`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from primecli.setup.tiny_model import make_model

SMALL_ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 28}
START_SECONDS = 180


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints whose embeddings are their head (tied-0, tied-1), and two with a head of its own."""
    place = tmp_path_factory.mktemp("models")
    return {
        f"{kind}-{seed}": make_model(place / f"{kind}-{seed}", seed=seed, scale=0.3, tied=kind == "tied", heads=2)
        for kind in ("tied", "untied")
        for seed in (0, 1)
    }


class VllmServer:
    """`vllm serve` of one model, in a process group of its own."""

    def __init__(self, model: Path, log: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.model, self.log, self.arguments = model, log, arguments
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        # the `vllm` command looks for a distribution of that name, which the one for CPUs does not have
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "policy"]
        command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "512", *self.arguments]
        command += ["--kv-cache-memory-bytes", str(SMALL_ENGINE["kv_cache_memory_bytes"])]
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                time.sleep(0.3)
        self.kill()
        pytest.fail(f"vLLM did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """Ends it at once, with its children."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        """A request as another client of the server would make it."""
        return httpx.post(self.url + path, timeout=60, trust_env=False, **arguments).raise_for_status()


def serving(model: Path, log: Path, *arguments: str) -> Iterator[VllmServer]:
    """A server for as long as it is needed."""
    server = VllmServer(model, log, *arguments)
    server.start()
    try:
        yield server
    finally:
        server.kill()
