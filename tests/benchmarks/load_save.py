"""What an iteration pays around its arithmetic: loading models, masters and moments, saving checkpoints, hashing.

The four stages of a PRIME iteration that hold a model (generate, update-prm with a reference, score-prm and
update-policy), each in a process of its own and without rollouts: what it hashes and loads, two optimizer steps over
made-up gradients, what it saves. The checkpoints before it have moments, so this is the second iteration of a run or a
later one; the reference is a plain model. Imports are left out.

Seconds are those with files in the system's cache, where they are right after they were written. What a mapped file
costs when it is first used counts as loading: the first step's seconds beyond the second one's. Bytes read are those
that the disk delivers in a round of its own, each stage of which starts without the files in the cache. The baselines
are safetensors' `load_file`, each tensor cloned, of what a stage needs (where it scores, the bfloat16 model, cast to
float32; where it trains, masters and moments), and its `save_file` of the same tensors, fsync included.

    python tests/benchmarks/load_save.py
    python tests/benchmarks/load_save.py --shape 0.5B --rounds 1   # 11 GB of memory, 25 GB of disk
    python tests/benchmarks/load_save.py --shape 1B --rounds 1     # 23 GB of memory, 55 GB of disk
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.measuring import (  # noqa: E402
    Figure,
    in_turn,
    peak_mib,
    ratio,
    reset_peak,
    resident_mib,
    run_process,
    show,
)

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 64, "heads": 2, "kv": 1, "inner": 128, "words": 512},
    "135M": {"layers": 30, "width": 576, "heads": 9, "kv": 3, "inner": 1536, "words": 49152},  # SmolLM2's
    "0.5B": {"layers": 24, "width": 896, "heads": 14, "kv": 2, "inner": 4864, "words": 151936},  # Qwen2.5's
    "1B": {"layers": 16, "width": 2048, "heads": 32, "kv": 8, "inner": 8192, "words": 65536},
}
STAGES = ("generate", "update-prm", "score-prm", "update-policy")
PARTS = ("hash", "load", "save")


def make(directory: Path, shape: Mapping[str, int], dtype: str) -> None:
    """A random Llama with tied embeddings, and no tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    config = LlamaConfig(
        vocab_size=shape["words"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        intermediate_size=shape["inner"],
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)  # type: ignore[no-untyped-call]


class Clock:
    """Seconds by part of a stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def time(self, part: str, do: Callable[[], Any]) -> Any:
        """What `do` returns; its seconds are added to the part's."""
        started = time.perf_counter()
        found = do()
        self.seconds[part] += time.perf_counter() - started
        return found


def weigh(directory: Path) -> None:
    """What a stage does to know a model: resolves it and takes its fingerprint."""
    from primecli.models.identity import model_fingerprint, resolve_model

    model_fingerprint(resolve_model(str(directory)))


def score(clock: Clock, directories: Sequence[Path]) -> None:
    """Loads models for scoring, as generate and score-prm do."""
    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model

    for directory in directories:
        clock.time("hash", partial(weigh, directory))
    place = resolve_placement("cpu", "float32")
    for directory in directories:
        model = clock.time("load", partial(load_model, directory, place))
        del model
        gc.collect()


def update(clock: Clock, stage: str, source: Path, target: Path, reference: Path | None) -> None:
    """Loads a model to train and its reference, steps twice, and saves it."""
    import torch

    from primecli.files import directory_atomically
    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model
    from primecli.training.options import TrainingOptions
    from primecli.training.trainer import Trainer

    for directory in filter(None, (source, reference)):
        clock.time("hash", partial(weigh, directory))
    place = resolve_placement("cpu", "float32")
    if reference is not None:
        model = clock.time("load", partial(load_model, reference, place))
        del model
        gc.collect()
    options = TrainingOptions(lr=1e-6)
    trainer = clock.time("load", lambda: Trainer(source, place, options, stage))
    for parameter in trainer.trained.values():
        parameter.grad = torch.full_like(parameter, 1e-3)
    steps = []
    for _ in range(2):
        started = time.perf_counter()
        trainer.optimizer.step(1e-6)
        steps.append(time.perf_counter() - started)
        trainer.step += 1
        trainer.history.append({"step": trainer.step, "loss": 0.0})
    clock.seconds["load"] += max(0.0, steps[0] - steps[1])
    trainer.optimizer.zero_grad()

    def save() -> None:
        with directory_atomically(target) as directory:
            trainer.save(directory, {"stage": stage, "step": trainer.step, "fingerprint": "0"})

    clock.time("save", save)


def stage(name: str, directory: Path) -> dict[str, Any]:
    """One stage of the second iteration: seconds by part, MiB above what was held before, bytes read and written."""
    from primecli.models import loading

    loading.warm_imports()
    import primecli.training.trainer  # noqa: F401

    ready(directory)
    start, policy, prm = directory / "start", directory / "policy", directory / "prm"
    clock = Clock()
    reset_peak()
    before, held = io(), resident_mib()
    if name == "generate":
        score(clock, [policy / "1"])
    elif name == "update-prm":
        update(clock, name, prm / "1", prm / "2", start)
    elif name == "score-prm":
        score(clock, [prm / "2", start])
    else:
        update(clock, name, policy / "1", policy / "2", None)
    after = io()
    return {
        **clock.seconds,
        "mib": peak_mib() - held,
        "read": after["read_bytes"] - before["read_bytes"],
        "written": after["write_bytes"] - before["write_bytes"],
    }


def ready(directory: Path) -> None:
    """Imports and sets up what a process does once: loads a tiny model of the same kind."""
    from primecli.models.device import resolve_placement
    from primecli.models.loading import load_model

    load_model(directory / "tiny", resolve_placement("cpu", "float32"))


def io() -> dict[str, int]:
    """What the system says that this process has read and written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def baseline(name: str, directory: Path) -> dict[str, float]:
    """Seconds in which safetensors loads and saves the tensors of a stage."""
    import torch
    from safetensors.torch import load_file, save_file

    ready(directory)
    start, policy, prm = directory / "start", directory / "policy", directory / "prm"
    scored = {"generate": [policy / "1"], "update-prm": [start], "score-prm": [prm / "2", start], "update-policy": []}
    trained = {"update-prm": prm / "1", "update-policy": policy / "1"}
    clock = Clock()

    def load(path: Path, dtype: Any = None) -> dict[str, Any]:
        return {name: value.to(dtype or value.dtype, copy=True) for name, value in load_file(path).items()}

    for model in scored[name]:
        clock.time("load", partial(load, model / "model.safetensors", torch.float32))
    if name not in trained:
        return clock.seconds
    paths = sorted(trained[name].rglob("*.safetensors"))
    held = {}
    for path in paths:
        if path.parent.name == "trainer" or len(paths) == 2:  # two files: the model is its own master
            held[path] = clock.time("load", partial(load, path))
    if len(paths) == 3:
        held[paths[0]] = load(paths[0])
    target = directory / "baseline"

    def save() -> None:
        for number, tensors in enumerate(held.values()):
            path = target / f"{number}.safetensors"
            save_file(tensors, path)
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    target.mkdir()
    clock.time("save", save)
    shutil.rmtree(target)
    return clock.seconds


def forget(directory: Path) -> None:
    """Has the system's cache drop the files below a directory."""
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def read(directory: Path) -> None:
    """Reads the files below a directory, so that the system's cache has them."""
    buffer = bytearray(1 << 22)
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def iteration(directory: Path, *, cold: bool) -> dict[str, dict[str, Any]]:
    """All stages in turn. cold: without the files in the system's cache."""
    found = {}
    for name in STAGES:
        (forget if cold else read)(directory)
        found[name] = dict(child("--stage", name, directory))
        if name == "score-prm":
            shutil.rmtree(directory / "prm" / "2")
    shutil.rmtree(directory / "policy" / "2")
    return found


def child(kind: str, value: str, directory: Path, *more: str) -> Mapping[str, Any]:
    """What another process of this script says."""
    return run_process([sys.executable, __file__, kind, value, "--directory", str(directory), *more]).said


def total(found: Mapping[str, Mapping[str, float]], *parts: str) -> float:
    """The sum of some parts over all stages."""
    return sum(each[part] for each in found.values() for part in parts)


def median(seconds: Sequence[float]) -> str:
    """Their median, in words."""
    return f"{statistics.median(seconds):,.2f} s"


def measure(directory: Path, options: argparse.Namespace) -> tuple[list[Figure], dict[str, Any]]:
    """The figures of a shape, and all that was measured."""
    child("--make", options.shape, directory, "--dtype", options.dtype)
    for kind, name in (("prm", "update-prm"), ("policy", "update-policy")):
        child("--first", name, directory)
        assert (directory / kind / "1").exists()

    def ours() -> dict[str, dict[str, Any]]:
        return iteration(directory, cold=False)

    def plain() -> dict[str, dict[str, Any]]:
        (directory / "prm" / "2").symlink_to("1")
        found = {}
        for name in STAGES:
            read(directory)
            found[name] = dict(child("--baseline", name, directory))
        (directory / "prm" / "2").unlink()
        return found

    found = in_turn({"primecli": ours, "safetensors": plain}, options.rounds)
    cold = iteration(directory, cold=True)
    mine, theirs = found["primecli"], found["safetensors"]
    size = sum(path.stat().st_size for path in (directory / "policy" / "1").rglob("*") if path.is_file())
    model = (directory / "start" / "model.safetensors").stat().st_size
    figures = []
    for name, parts in (*((part, (part,)) for part in PARTS), ("all", PARTS)):
        seconds, base = ([total(each, *parts) for each in side] for side in (mine, theirs))
        if name == "hash":
            figures.append(Figure(name, statistics.median(seconds), median(seconds), ""))
        else:
            value = ratio(seconds, base)
            figures.append(Figure(name, value.median, f"{median(seconds)}, {value}", f"safetensors {median(base)}"))
    for name, key, over, what in (
        ("bytes read", "read", model, "the model's file"),
        ("bytes written", "written", 2 * size, "two checkpoints"),
    ):
        number = total(cold, key)
        text = f"{number / 1e9:.2f} GB, {number / over:.2f}×"
        figures.append(Figure(name, number / over, text, f"{what} {over / 1e9:.2f} GB"))
    for name in STAGES:
        mib = statistics.median(each[name]["mib"] for each in mine)
        value = mib * 2**20 / model
        figures.append(Figure(f"memory, {name}", value, f"{mib:,.0f} MiB, {value:.2f}×", "the model's file"))
    return figures, {"primecli": mine, "safetensors": theirs, "cold": cold}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135M")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the model's file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--directory", type=Path, help="where to make the models; a temporary one by default")
    for hidden in ("--make", "--first", "--stage", "--baseline"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.directory / "start", SHAPES[options.make], options.dtype)
        make(options.directory / "tiny", SHAPES["tiny"], options.dtype)
    elif options.first:
        kind = options.first.removeprefix("update-")
        update(Clock(), options.first, options.directory / "start", options.directory / kind / "1", None)
    elif options.stage:
        print(json.dumps(stage(options.stage, options.directory)))
    elif options.baseline:
        print(json.dumps(baseline(options.baseline, options.directory)))
    else:
        with tempfile.TemporaryDirectory(dir=options.directory) as name:
            os.environ["XDG_CACHE_HOME"] = f"{name}/cache"  # hashes that are remembered between processes
            figures, more = measure(Path(name), options)
        show(
            f"load and save of an iteration, {options.shape}, {options.dtype} files, CPU", figures, options.json, **more
        )


if __name__ == "__main__":
    main()
