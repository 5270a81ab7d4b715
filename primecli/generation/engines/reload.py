"""What a vLLM server has to hold, as it can be shown: the probe, and checkpoints that a server reloads right.

The probe is a fixed sequence of tokens from the whole vocabulary. A model's log-probabilities of them depend on its
embeddings, its layers and its head, so weights that were loaded in part answer it wrong.
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
# mean gap, nats. Between vLLM and transformers on a CPU it is 3e-6 and 0.03; between random models it is above 2
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
    """The probe, answered by the checkpoint itself, and its head where that is tied to its embeddings.

    Computes on the CPU unless a device was asked for: the GPUs are the server's.
    """
    import numpy as np

    from primecli.models.device import resolve_placement, set_threads
    from primecli.models.loading import load_model
    from primecli.models.scoring import score
    from primecli.shards.rollouts import Sequences

    set_threads(options.threads)
    place = resolve_placement("cpu" if options.device == "auto" else options.device, options.dtype)
    model = load_model(policy.directory, place)
    rng = np.random.default_rng(0)
    words = min(policy.vocabulary_size, model.get_input_embeddings().num_embeddings)
    ids = rng.integers(0, words, size=min(PROBE_TOKENS, policy.max_length - 1)).astype(np.int32)
    logprobs = score(model, place, Sequences([ids[:1]], [ids[1:]]), micro_batch_tokens=PROBE_TOKENS)
    gap = PROBE_GAP[options.dtype] if options.probe_gap is None else options.probe_gap
    return Probe(tuple(int(token) for token in ids), logprobs, gap), _tied_head(model)


def _tied_head(model: Any) -> TiedHead | None:
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is not embeddings.weight:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return TiedHead(f"{names[id(embeddings)]}.weight", f"{names[id(head)]}.weight")


@contextmanager
def reloadable(directory: Path, tied: TiedHead | None) -> Iterator[Path]:
    """A directory from which vLLM's `reload_weights` gives these very weights.

    vLLM reloads layer by layer what stands in the files. A tied head does not, and where a layer keeps its weights
    repacked, as on a CPU, it goes on with those it had. So such a checkpoint is handed over as a directory of links
    with the head written out beside them; it stands beside the checkpoint, where the server sees it too.
    """
    if tied is None:
        yield directory.resolve()
        return
    weights = sorted(directory.resolve().glob("*.safetensors"))
    place = _directory_beside(directory.resolve())
    try:
        for file in [*weights, *directory.resolve().glob("*.json")]:
            if not file.name.endswith(".index.json"):  # it would hide the head's file
                (place / file.name).symlink_to(file)
        _write_head(weights, tied, place / "tied-head.safetensors")
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _directory_beside(directory: Path) -> Path:
    try:
        place = Path(tempfile.mkdtemp(prefix=f".{directory.name}.reload-", dir=directory.parent))
        os.chmod(place, 0o755)  # the server may be another user's
    except OSError as error:
        raise PrimecliError(
            f"{directory.parent}: --reload of a model with tied embeddings needs room beside it: {error.strerror}"
        ) from error
    return place


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
        raise PrimecliError(f"{weights[0].parent}: its files hold no {tied.stored}, from which the head is reloaded")
    with safe_open(holder[tied.stored], framework="pt") as tensors:
        save_file({tied.head: tensors.get_tensor(tied.stored)}, target)
    os.chmod(target, 0o644)
