"""What reading and writing shards takes of score-prm: seconds of both beside the seconds of the models.

One shard is read as the stage reads it, with the checks and the arrays that the models are given, and the result is
written as the stage writes it: all columns, zstd, hashed, synced to the disk. The models' time is that of scoring some
of the rollouts twice, under the PRM and the reference, taken per token for all of them.

    python tests/benchmarks/shard_io.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import Figure, run_process, show  # noqa: E402

MODELS = 2  # the PRM and the reference
LIMIT = 0.03  # of the stage's time


def read(path: Path) -> tuple[Any, Any]:
    """The table and its sequences, as score-prm takes them in."""
    from primecli.shards import parquet, schema
    from primecli.shards.groups import check_groups
    from primecli.shards.rollouts import Sequences, check_lists, split_rows

    parquet.read_footer(path)
    table = parquet.read_table(path)
    check_groups(table, path)
    check_lists(table, path)
    return table, Sequences(split_rows(table, schema.PROMPT_IDS), split_rows(table, schema.RESPONSE_IDS))


def write(path: Path, table: Any) -> None:
    """The table with score-prm's columns, as it commits them."""
    import numpy as np

    from primecli.shards import parquet, schema
    from primecli.shards.columns import flat_column, list_column, with_columns

    values, lengths = flat_column(table, schema.ROLLOUT_LOGPROBS)
    columns = {
        name: list_column(np.ascontiguousarray(values + shift), lengths, name)
        for shift, name in enumerate((schema.PRM_LOGPROBS, schema.REF_LOGPROBS, schema.PROCESS_REWARDS))
    }
    record = {"stage": "score-prm", "command": "", "config": {}, "fingerprint": "f", "inputs": []}
    parquet.write_shard(path, with_columns(table, columns), fingerprint="f", recipe={}, counts={}, provenance=[record])


def score_some(directory: Path, sequences: Any, rows: int, micro_batch_tokens: int) -> tuple[float, int]:
    """Seconds and tokens of scoring the first `rows` by one model."""
    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model
    from primecli.models.scoring import score
    from primecli.shards.rollouts import Sequences

    place = resolve_placement("cpu", "float32")
    model = load_model(directory, place)
    some = Sequences(sequences.prompt_ids[:rows], sequences.response_ids[:rows])
    start = time.perf_counter()
    score(model, place, some, micro_batch_tokens=micro_batch_tokens)
    return time.perf_counter() - start, sum(some.lengths())


def fastest_models(io: float, tokens: int, limit: float) -> float:
    """Tokens a second of the models, both together, up to which I/O stays below the limit.

    >>> fastest_models(1.0, 990, 0.01)
    10.0
    """
    return tokens / (io / limit - io)


def share(io: float, compute: float) -> float:
    """I/O of the stage's whole time.

    >>> share(1.0, 3.0)
    0.25
    """
    return io / (io + compute)


def one_round(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of reading, writing and the models, for the whole shard."""
    from primecli.models.device import set_threads
    from primecli.models.loading import warm_imports

    warm_imports()
    set_threads(options.threads)
    path = directory / "rollouts-00000-of-00001.parquet"
    read(path)  # Arrow's own imports are no I/O
    start = time.perf_counter()
    table, sequences = read(path)
    reading = time.perf_counter() - start
    out = directory / "out"
    out.mkdir(exist_ok=True)
    start = time.perf_counter()
    write(out / path.name, table)
    writing = time.perf_counter() - start
    seconds, tokens = score_some(directory / "model", sequences, options.scored, options.micro_batch_tokens)
    models = MODELS * seconds * sum(sequences.lengths()) / tokens
    spent = {"read": reading, "write": writing, "models": models, "share": share(reading + writing, models)}
    return {**spent, "tokens": sum(sequences.lengths())}


def make(directory: Path, options: argparse.Namespace) -> None:
    """A model and a shard, with what `generate` and `verify` have made."""
    from tests.benchmarks.made import make_model, write_rollouts

    make_model(directory / "model", words=options.words, width=options.width, layers=options.layers)
    path = directory / "rollouts-00000-of-00001.parquet"
    stages = ("generate", "verify")
    write_rollouts(path, options.rows, options.tokens, words=options.words, spread=0.33, stages=stages)


def main() -> None:
    """Measures some rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="rollouts in the shard")
    parser.add_argument("--tokens", type=int, default=2000, help="response tokens in the mean")
    parser.add_argument("--scored", type=int, default=4, help="rollouts that are scored")
    parser.add_argument("--words", type=int, default=8192)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.directory:
        print(json.dumps(one_round(options.directory, options)))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make(directory, options)
        size = (directory / "rollouts-00000-of-00001.parquet").stat().st_size / 2**20
        arguments = [word for word in sys.argv[1:] if not word.startswith("--json")]
        command = [sys.executable, __file__, *arguments, "--directory", name]
        found = [run_process(command, threads=options.threads).said for _ in range(options.rounds)]
    median = {name: statistics.median(one[name] for one in found) for name in found[0]}
    baseline = f"the models, {median['models']:,.0f} s, by {options.scored} of {options.rows} rollouts"
    tokens = int(median["tokens"])
    fastest = fastest_models(median["read"] + median["write"], tokens, LIMIT)
    figures = [
        Figure(
            "shard I/O of score-prm",
            median["share"],
            f"{median['share']:.2%}  read {median['read']:.2f} s, write {median['write']:.2f} s",
            baseline,
            f"<= {LIMIT}",
        ),
        Figure("models as fast as it holds for", fastest, f"{fastest:,.0f} tokens/s", "the same seconds of I/O"),
    ]
    title = (
        f"{options.rows} rollouts of 80 + {options.tokens} tokens, {size:,.0f} MiB in one shard; Qwen2 of "
        f"{options.layers} layers × {options.width} and {options.words} words, median of {options.rounds} rounds"
    )
    show(title, figures, options.json, rounds=[dict(one) for one in found])


if __name__ == "__main__":
    main()
