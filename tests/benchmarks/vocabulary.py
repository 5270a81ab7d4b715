"""What a large vocabulary costs: memory beside a small one's, time beside the way that makes all logits.

Memory: how far a process's peak rises while a model scores, or makes gradients for, the same number of tokens, with
151,936 words and with 1,000. Left out are the weights, which are there before, and, in training, one gradient of the
embedding, the size of the embedding itself. What else grows with the vocabulary counts: logits, their gradients,
further copies of the embedding's gradient.

Time: scoring, and forward and backward, by primecli's chunks and by model(...).logits.log_softmax(-1) of all tokens at
once, in the same process in turn, on fewer tokens, so that all logits fit. Both must give the same.

    python tests/benchmarks/vocabulary.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import (  # noqa: E402
    Figure,
    check_close,
    in_turn,
    peak_mib,
    ratio,
    reset_peak,
    resident_mib,
    run_process,
    show,
)

SIZES = SMALL, LARGE = 1000, 151_936
KINDS = ("scoring", "training")
ATOL = 2e-4  # nats


def load(directory: Path) -> tuple[Any, Any]:
    """A model in float32 on the CPU as the stages have it, and its placement."""
    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model
    from primecli.training.memory import accumulate_embedding_gradient

    place = resolve_placement("cpu", "float32")
    model = load_model(directory, place)
    accumulate_embedding_gradient(model)
    return model, place


def sequences_of(rows: int, tokens: int, words: int) -> Any:
    """Rows of one prompt token and tokens - 1 of a response, at random."""
    import numpy as np

    from primecli.shards.rollouts import Sequences

    ids = np.random.default_rng(0).integers(0, words, (rows, tokens)).astype(np.int32)
    return Sequences(list(ids[:, :1]), list(ids[:, 1:]))


def chunked(model: Any, place: Any, sequences: Any, kind: str) -> Any:
    """The log-probabilities (N,) as the stages take them, with gradients left in the model where training."""
    import torch

    from primecli.models.scoring import plan, score, sequence_logprobs

    rows = len(sequences.prompt_ids)
    budget = sum(sequences.lengths())
    if kind == "scoring":
        return score(model, place, sequences, micro_batch_tokens=budget)
    model.zero_grad(set_to_none=True)
    (batch,) = plan(model, place, sequences, range(rows), budget)
    found = sequence_logprobs(model, place, sequences, batch, with_entropy=False).logprobs
    torch.autograd.backward(found.sum())
    return found.detach().numpy()


def all_logits(model: Any, sequences: Any, kind: str) -> Any:
    """The same by all logits at once, in plain torch."""
    import numpy as np
    import torch

    pairs = zip(sequences.prompt_ids, sequences.response_ids, strict=True)
    ids = torch.from_numpy(np.stack([np.concatenate(pair) for pair in pairs]).astype(np.int64))
    with torch.set_grad_enabled(kind == "training"):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()
        if kind == "training":
            model.zero_grad(set_to_none=True)
            torch.autograd.backward(found.sum())
    return found.detach().numpy()


def memory(directory: Path, kind: str, words: int, options: argparse.Namespace) -> dict[str, float]:
    """MiB by which the peak rises, without one gradient of the embedding where training."""
    model, place = load(directory)
    sequences = sequences_of(options.rows, options.row_tokens, words)
    chunked(model, place, sequences_of(1, 4, words), "scoring")  # what torch sets up once
    embedding = model.get_input_embeddings().weight
    left_out = embedding.numel() * embedding.element_size() / 2**20 if kind == "training" else 0.0
    reset_peak()
    before = resident_mib()
    chunked(model, place, sequences, kind)
    return {"mib": peak_mib() - before - left_out, "left_out": left_out}


def seconds(directory: Path, kind: str, words: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of both ways, by round, after a check that they give the same."""
    from primecli.models.loading import load_model

    model, place = load(directory)
    plain = load_model(directory, place)
    sequences = sequences_of(options.timed_rows, options.row_tokens, words)
    ways: dict[str, Callable[[], Any]] = {
        "chunked": lambda: chunked(model, place, sequences, kind),
        "all logits": lambda: all_logits(plain, sequences, kind),
    }
    gradients = []
    found = []
    for way, its_model in zip(ways.values(), (model, plain), strict=True):
        found.append(way())
        gradients.append([] if kind == "scoring" else _some_gradients(its_model))
    check_close(f"{kind}: log-probabilities", found[0], found[1], atol=ATOL)
    check_close(f"{kind}: gradients", gradients[0], gradients[1], atol=1e-3, rtol=1e-3)

    def timed(way: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            way()
            return time.process_time() - start

        return run

    return in_turn({name: timed(way) for name, way in ways.items()}, options.rounds)


def _some_gradients(model: Any) -> list[float]:
    """The norm of each parameter's gradient."""
    return [float(parameter.grad.norm()) for parameter in model.parameters()]


def one_side(options: argparse.Namespace) -> None:
    """Measures in this process, which does nothing else, and prints what it found."""
    what, kind, words = options.side
    measure = {"memory": memory, "seconds": seconds}[what]
    print(json.dumps(measure(options.directory, kind, int(words), options)))


def main() -> None:
    """Measures each kind and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="sequences whose memory is measured")
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--timed-rows", type=int, default=2, help="sequences that are timed")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="of each measurement")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        one_side(options)
        return
    given = [word for word in sys.argv[1:] if not word.startswith("--json")]

    def ask(what: str, kind: str, words: int) -> Any:
        command = [sys.executable, __file__, *given, "--directory", str(place / str(words))]
        return run_process([*command, "--side", what, kind, str(words)]).said

    def memory_of(kind: str) -> dict[str, list[dict[str, float]]]:
        return in_turn({str(words): partial(ask, "memory", kind, words) for words in SIZES}, options.rounds)

    figures = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for words in SIZES:
            make = (
                "import sys; from pathlib import Path; from tests.benchmarks.made import make_model; "
                f"make_model(Path(sys.argv[1]), words={words}, width={options.width}, layers={options.layers})"
            )
            run_process([sys.executable, "-c", make, str(place / str(words))])
        for kind in KINDS:
            figures += [
                memory_figure(kind, memory_of(kind)),
                time_figure(kind, ask("seconds", kind, LARGE)),
            ]
    title = (
        f"{LARGE:,} words, Qwen2 of {options.layers} layers × {options.width}; memory at "
        f"{options.rows * options.row_tokens:,} tokens, CPU time at {options.timed_rows * options.row_tokens:,}"
    )
    show(title, figures, options.json)


def memory_figure(kind: str, found: dict[str, list[dict[str, float]]]) -> Figure:
    """The large vocabulary's memory over the small one's."""
    large, small = ([one["mib"] for one in found[str(words)]] for words in (LARGE, SMALL))
    left = [found[str(words)][0]["left_out"] for words in (LARGE, SMALL)]
    left_out = f"; left out {left[0]:,.0f} and {left[1]:,.1f} MiB" if left[0] else ""
    value = ratio(large, small)
    text = f"{value}  {statistics.median(large):,.0f} MiB"
    return Figure(
        f"{kind}, memory",
        value.median,
        text,
        f"{SMALL:,} words {statistics.median(small):,.0f} MiB{left_out}",
        "<= 1.3",
    )


def time_figure(kind: str, found: dict[str, list[float]]) -> Figure:
    """The chunks' time over that of all logits."""
    value = ratio(found["chunked"], found["all logits"])
    text = f"{value}  {statistics.median(found['chunked']):.2f} s"
    baseline = f"all logits at once {statistics.median(found['all logits']):.2f} s"
    return Figure(f"{kind}, time", value.median, text, baseline, "<= 1.1")


if __name__ == "__main__":
    main()
