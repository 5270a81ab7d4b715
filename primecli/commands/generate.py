"""`primecli generate`."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.files import Json
    from primecli.generation.engines import EngineOptions, SamplingParams
    from primecli.generation.prompts import PromptColumns
    from primecli.pipeline.stage_run import StageRun


class EngineName(StrEnum):
    """How responses are sampled."""

    auto = "auto"
    hf = "hf"
    vllm = "vllm"
    vllm_server = "vllm-server"


def generate(
    model: Annotated[str, typer.Option("--model", metavar="DIR|HUB_ID", help="The policy that samples.")],
    prompts: Annotated[
        list[Path], typer.Option("--prompts", metavar="FILE", help="Prompt file, Parquet or JSONL; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output directory.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Samples of each prompt.")] = 4,
    step: Annotated[
        int, typer.Option("--step", min=1, help="Iteration, from 1: takes that slice of the shuffled prompts.")
    ] = 1,
    batch_prompts: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--batch-prompts",
            min=1,
            help="Prompts an iteration.  [default: all prompts of the files, in their order]",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 is greedy.", callback=options.finite)
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus truncation; 1 is none.", callback=options.finite)
    ] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Top-k truncation; 0 is none.")] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest response, in tokens.")] = 3072,
    max_prompt_tokens: Annotated[
        int, typer.Option("--max-prompt-tokens", min=1, help="Longer prompts are left out, and counted.")
    ] = 1024,
    prompts_per_shard: Annotated[int, typer.Option("--prompts-per-shard", min=1, help="Groups a shard.")] = 64,
    prompt_column: Annotated[str, typer.Option("--prompt-column", help="Column of the prompt.")] = "prompt",
    answer_column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--answer-column",
            help="Column of the answer.  [default: reward_model.ground_truth, ground_truth or answer]",
            show_default=False,
        ),
    ] = None,
    answer_regex: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--answer-regex",
            help="Takes the first group of this regular expression as the answer, such as '#### (.*)' for GSM8K.",
            show_default=False,
        ),
    ] = None,
    suffix: Annotated[str, typer.Option("--suffix", help="Text put after each prompt (after its last message).")] = "",
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine",
            help="What samples: transformers (hf), vLLM here, or vLLM servers; auto is vllm where it is installed and "
            "a GPU is there, else hf.",
        ),
    ] = EngineName.auto,
    tensor_parallel: Annotated[int, typer.Option("--tensor-parallel", min=1, help="vllm: GPUs a model spans.")] = 1,
    gpu_memory: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--gpu-memory",
            min=0.0,
            max=1.0,
            help="vllm: share of a GPU's memory that it takes.  [default: vLLM's own]",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    engine_arg: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--engine-arg",
            metavar="KEY=VALUE",
            help="vllm: any other argument of its engine, such as enforce_eager=true; may be repeated.",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--url",
            metavar="URL",
            help="vllm-server: where a server is, such as http://127.0.0.1:8000; may be repeated.",
            show_default=False,
        ),
    ] = None,
    reload: Annotated[
        bool,
        typer.Option("--reload", help="vllm-server: make the servers load --model first; they see the same directory."),
    ] = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="vllm-server: groups in flight at each server.")
    ] = 64,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, help="vllm-server: further attempts where a server fails, ever later."),
    ] = 6,
    probe_gap: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--probe-gap",
            min=0.0,
            help="vllm-server: largest mean gap, in nats, between its log-probabilities of a probe and --model's.  "
            "[default: 0.001 in float32, 0.1 in bfloat16]",
            show_default=False,
            callback=options.finite,
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    micro_batch_tokens: Annotated[
        int,
        typer.Option("--micro-batch-tokens", min=1, help="hf: tokens of key-value cache at a time: bounds memory."),
    ] = 131072,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Each shard holds whole groups: the N samples of a prompt, with their exact token ids and the
    log-probabilities of the distribution that they were sampled from.

    Which prompts an iteration takes depends on --seed, --step and --batch-prompts alone, so a loop that was
    killed goes on where it stopped, and any iteration can be made again.

    With vllm-server, the servers have to answer a probe as --model does, at the start and before each shard is
    written; --reload makes them load it first (they run with VLLM_SERVER_DEV_MODE=1).

    Example:

      \b
      primecli generate --model ckpt/policy/0 --prompts train.jsonl --n 4 \\
        --step 1 --batch-prompts 256 --out runs/1/generate
    """
    from primecli.errors import UsageError
    from primecli.generation.engines import EngineOptions, SamplingParams, resolve_engine
    from primecli.generation.prompts import PromptColumns
    from primecli.models.device import resolve_dtype
    from primecli.pipeline.stage_run import StageOptions, StageRun

    if step > 1 and batch_prompts is None:
        raise UsageError(f"--step {step} without --batch-prompts: every step would take all prompts")
    if 0 < temperature < 1e-3:
        raise UsageError(f"--temperature {temperature:g}: it is 0 (greedy) or at least 0.001")
    if top_p == 0:
        raise UsageError("--top-p 0 keeps no token", "use --temperature 0 for greedy sampling")
    columns = PromptColumns(prompt_column, answer_column, answer_regex, suffix)
    params = SamplingParams(n, temperature, top_p, top_k, max_tokens, seed)
    sampler = resolve_engine(engine.value, device.value)
    how = EngineOptions(
        device=device.value,
        dtype=resolve_dtype(device.value, dtype.value),
        threads=threads,
        micro_batch_tokens=micro_batch_tokens,
        tensor_parallel=tensor_parallel,
        gpu_memory=gpu_memory,
        engine_args=_engine_args(engine_arg or []),
        urls=tuple(url or ()),
        reload=reload,
        concurrency=concurrency,
        retries=retries,
        probe_gap=probe_gap,
        debug=bool(os.environ.get("PRIMECLI_DEBUG")),
    )
    _check_options(sampler, how)
    config: dict[str, Json] = {
        "n": n,
        "step": step if batch_prompts else None,
        "batch_prompts": batch_prompts,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_tokens": max_tokens,
        "max_prompt_tokens": max_prompt_tokens,
        "prompts_per_shard": prompts_per_shard,
        "prompt_column": prompt_column,
        "answer_column": answer_column,
        "answer_regex": answer_regex,
        "suffix": suffix,
        "engine": sampler,
        "engine_args": dict(how.engine_args),
        "dtype": how.dtype,
    }
    execution = {
        "model": model,
        "prompts": [str(file) for file in prompts],
        "device": device.value,
        "threads": threads,
        "micro_batch_tokens": micro_batch_tokens,
        "tensor_parallel": tensor_parallel,
        "gpu_memory": gpu_memory,
        "urls": list(how.urls),
        "reload": reload,
        "concurrency": concurrency,
    }
    run = StageRun(
        "generate",
        StageOptions(out=out, force=force, quiet=quiet),
        config=config,
        execution=execution,
        seed=seed,
        finish=_metrics,
    )
    with run:
        _sample_all(run, out, params, columns, prompts, model, how)


def _engine_args(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value that reads as JSON is that, else a text."""
    from primecli.errors import UsageError

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise UsageError(f"--engine-arg {pair}: KEY=VALUE is meant")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found[key.strip("-").replace("-", "_")] = value
    return found


def _check_options(engine: str, how: EngineOptions) -> None:
    """Raises UsageError for an option of another engine than the one that samples."""
    from primecli.errors import UsageError
    from primecli.generation.engines import EngineOptions

    given = {
        "--url": (how.urls, "vllm-server"),
        "--reload": (how.reload, "vllm-server"),
        "--engine-arg": (how.engine_args, "vllm"),
        "--gpu-memory": (how.gpu_memory is not None, "vllm"),
        "--tensor-parallel": (how.tensor_parallel != EngineOptions().tensor_parallel, "vllm"),
    }
    for option, (there, of) in given.items():
        if there and engine != of:
            raise UsageError(f"{option} is of --engine {of}, and the engine is {engine}")
    if engine == "vllm-server" and not how.urls:
        raise UsageError("--engine vllm-server needs --url, once for each server")


def _sample_all(
    run: StageRun,
    out: Path,
    params: SamplingParams,
    columns: PromptColumns,
    files: list[Path],
    model_name: str,
    how: EngineOptions,
) -> None:
    from primecli.errors import InputError
    from primecli.files import file_hash, fingerprint
    from primecli.generation.encoder import Encoder
    from primecli.generation.engines.policy_info import read_policy
    from primecli.generation.prompts import read_prompts, stream_positions
    from primecli.generation.sampler import Group, Sampler, rollout_table
    from primecli.models.identity import model_fingerprint, resolve_model, tokenizer_fingerprint
    from primecli.pipeline.recipe import Recipe
    from primecli.shards.parquet import shard_name

    config = run.config
    prompts = read_prompts(files, columns)
    if config["batch_prompts"]:
        taken = stream_positions(len(prompts), step=config["step"], batch=config["batch_prompts"], seed=params.seed)
    else:
        taken = [(place, place) for place in range(len(prompts))]
    directory = resolve_model(model_name)
    run.models = {"policy": model_fingerprint(directory), "tokenizer": tokenizer_fingerprint(directory)}
    content = fingerprint([file_hash(file) for file in files])
    run.open(out)
    encoder = Encoder(directory)
    groups = []
    for position, index in taken:
        text, ids = encoder.encode(prompts[index])
        if len(ids) > config["max_prompt_tokens"]:
            run.count({"prompts_too_long": 1})
        else:
            groups.append(Group(position, prompts[index], text, ids))
    if not groups:
        raise InputError(
            f"every prompt is longer than {config['max_prompt_tokens']} tokens", "raise --max-prompt-tokens"
        )
    without = sum(group.prompt.ground_truth is None for group in groups)
    if without:
        run.warn(
            f"{without} of {len(groups)} prompts have no answer, and `verify` cannot grade their responses: an answer "
            "stands in reward_model.ground_truth, ground_truth or answer, or is named by --answer-column"
        )
    per_shard = config["prompts_per_shard"]
    parts = [groups[start : start + per_shard] for start in range(0, len(groups), per_shard)]
    run.progress.advance(0, total=len(groups) * params.n)
    recipe = Recipe("generate", config, run.models, [content], params.seed)
    names = [shard_name(number, len(parts)) for number in range(len(parts))]
    missing = [number for number, name in enumerate(names) if run.made(name, recipe) is None]
    policy = read_policy(
        directory,
        encoder.tokenizer,
        fingerprint=run.models["policy"],
        longest=max(len(group.prompt_ids) for group in groups) + params.max_tokens,
    )
    wanted = {number: parts[number] for number in missing}
    with Sampler(str(config["engine"]), policy, how, params, wanted, done=run.progress.advance) as sampler:
        for number, part in enumerate(parts):
            if run.skip_name(names[number], recipe):
                run.progress.advance(len(part) * params.n)
                continue
            table = rollout_table(parts[number], sampler.samples(number), params, encoder, policy.fingerprint)
            run.commit(table, _counts(table))


def _counts(table: pa.Table) -> dict[str, float]:
    import pyarrow.compute as pc

    from primecli.shards import schema

    return {
        "rollouts": table.num_rows,
        "tokens": pc.sum(pc.list_value_length(table[schema.RESPONSE_IDS])).as_py(),
        "truncated": pc.sum(pc.equal(table[schema.FINISH_REASON], "length")).as_py(),
    }


def _metrics(counts: dict[str, float]) -> dict[str, float]:
    rollouts = counts.get("rollouts", 0)
    metrics = {"prompts_too_long": counts.get("prompts_too_long", 0)}
    if rollouts:
        metrics["response_tokens"] = counts["tokens"] / rollouts
        metrics["truncated"] = counts["truncated"] / rollouts
    return metrics
