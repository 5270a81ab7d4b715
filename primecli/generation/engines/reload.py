"""Proof that a vLLM server holds the policy's weights (the probe), and checkpoints that a server reloads correctly.

The probe is a fixed sequence of tokens from the whole vocabulary. A model's log-probabilities of them depend on its
embeddings, its layers and its head, so weights of which only some were loaded give a wrong answer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primecli.errors import PrimecliError
from primecli.generation.engines import EngineOptions, Policy

if TYPE_CHECKING:
    import numpy as np

PROBE_TOKENS = 64
# Largest mean gap, nats. Between vLLM and transformers on a CPU it is 3e-6 in float32 and 0.03 in bfloat16; between
# random models it is above 2.
PROBE_GAP = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True, slots=True)
class Probe:
    """A fixed sequence of tokens, with the checkpoint's own answer.

    token_ids: the T tokens.
    logprobs: (T - 1,) float32, nats, of each token after the first, as the checkpoint computes them.
    gap: largest mean difference, nats, at which a server's answer still counts as the checkpoint's.
    """

    token_ids: tuple[int, ...]
    logprobs: np.ndarray
    gap: float


@dataclass(frozen=True, slots=True)
class TiedHead:
    """The names of a head and of the embeddings whose weights it shares.

    stored: name of the embeddings' weights in the files, such as model.embed_tokens.weight.
    head: name of the head's weights, which the files do not have, such as lm_head.weight.
    """

    stored: str
    head: str


def make_probe(policy: Policy, options: EngineOptions) -> tuple[Probe, TiedHead | None]:
    """The probe, answered by the checkpoint itself, and the names of its head where that is tied to its embeddings.

    It computes on the CPU unless a device was asked for, since the GPUs are the server's.
    """
    import numpy as np

    from primecli.models.device import free_device_memory, resolve_placement, set_threads
    from primecli.models.loading import load_model
    from primecli.models.scoring import score
    from primecli.shards.rollouts import Sequences

    set_threads(options.threads)
    placement = resolve_placement("cpu" if options.device == "auto" else options.device, options.dtype)
    model = load_model(policy.directory, placement)
    rng = np.random.default_rng(0)
    known = min(policy.vocabulary_size, model.get_input_embeddings().num_embeddings)
    ids = rng.integers(0, known, size=min(PROBE_TOKENS, policy.max_length - 1)).astype(np.int32)
    logprobs = score(model, placement, Sequences([ids[:1]], [ids[1:]]), micro_batch_tokens=PROBE_TOKENS)
    gap = PROBE_GAP[options.dtype] if options.probe_gap is None else options.probe_gap
    tied = _tied_head(model)
    del model
    free_device_memory(placement.device)  # a server may be on the same GPU
    return Probe(tuple(int(token) for token in ids), logprobs, gap), tied


def _tied_head(model: Any) -> TiedHead | None:
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is not embeddings.weight:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return TiedHead(f"{names[id(embeddings)]}.weight", f"{names[id(head)]}.weight")


@contextmanager
def reloadable(directory: Path, tied: TiedHead | None) -> Iterator[Path]:
    """A directory from which vLLM's `reload_weights` loads exactly these weights.

    vLLM reloads, layer by layer, the weights that are in the files. A tied head is not, so a head that keeps a repacked
    copy of its weights, as on a CPU, would continue with the old ones. Such a checkpoint is therefore handed over as a
    directory of links with the head in a file of its own. It is beside the checkpoint, where the server sees it too.
    """
    if tied is None:
        yield directory.resolve()
        return
    weights = sorted(directory.resolve().glob("*.safetensors"))
    links = _directory_beside(directory.resolve())
    try:
        for file in [*weights, *directory.resolve().glob("*.json")]:
            if not file.name.endswith(".index.json"):  # with an index, files that it does not list are ignored
                (links / file.name).symlink_to(file)
        _write_head(weights, tied, links / "tied-head.safetensors")
        yield links
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _directory_beside(directory: Path) -> Path:
    try:
        links = Path(tempfile.mkdtemp(prefix=f".{directory.name}.reload-", dir=directory.parent))
        os.chmod(links, 0o755)  # the server may run as another user
    except OSError as error:
        raise PrimecliError(
            f"{directory.parent}: --reload of a model with tied embeddings needs to write a directory: {error.strerror}"
        ) from error
    return links


def _write_head(weights: list[Path], tied: TiedHead, target: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    holder: dict[str, Path] = {}
    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            holder |= dict.fromkeys(tensors.keys(), file)
    if tied.head in holder:
        return
    if tied.stored not in holder:
        raise PrimecliError(f"{weights[0].parent}: its files have no {tied.stored}, which the head is reloaded from")
    with safe_open(holder[tied.stored], framework="pt") as tensors:
        save_file({tied.head: tensors.get_tensor(tied.stored)}, target)
    os.chmod(target, 0o644)
