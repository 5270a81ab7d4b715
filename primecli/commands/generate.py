"""`primecli generate`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from primecli.commands import _options as options

if TYPE_CHECKING:
    import pyarrow as pa

    from primecli.engines import Sample, SamplingParams
    from primecli.files import Json
    from primecli.prompts import Prompt, PromptColumns
    from primecli.stage import StageRun


class EngineName(StrEnum):
    """How responses are sampled."""

    hf = "hf"


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
    engine: Annotated[EngineName, typer.Option("--engine", help="What samples: hf is transformers.")] = EngineName.hf,
    seed: options.Seed = 0,
    device: options.DeviceOption = options.Device.auto,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.Threads = None,
    micro_batch_tokens: Annotated[
        int,
        typer.Option("--micro-batch-tokens", min=1, help="Tokens of key-value cache at a time: bounds memory."),
    ] = 131072,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Sample responses: prompts in, rollout shards out.

    Each shard holds whole groups: the N samples of a prompt, with their exact token ids and the
    log-probabilities of the distribution that they were sampled from.

    Which prompts an iteration takes depends on --seed, --step and --batch-prompts alone, so a loop that was
    killed goes on where it stopped, and any iteration can be made again.

    Example:

      \b
      primecli generate --model ckpt/policy/0 --prompts train.jsonl --n 4 \\
        --step 1 --batch-prompts 256 --out runs/1/generate
    """
    from primecli.engines import SamplingParams
    from primecli.errors import UsageError
    from primecli.models import resolve_dtype
    from primecli.prompts import PromptColumns
    from primecli.stage import StageOptions, StageRun

    if step > 1 and batch_prompts is None:
        raise UsageError(f"--step {step} without --batch-prompts: every step would take all prompts")
    if 0 < temperature < 1e-3:
        raise UsageError(f"--temperature {temperature:g}: it is 0 (greedy) or at least 0.001")
    if top_p == 0:
        raise UsageError("--top-p 0 keeps no token", "use --temperature 0 for greedy sampling")
    columns = PromptColumns(prompt_column, answer_column, answer_regex, suffix)
    params = SamplingParams(n, temperature, top_p, top_k, max_tokens, seed)
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
        "engine": engine.value,
        "dtype": resolve_dtype(device.value, dtype.value),
    }
    execution = {
        "model": model,
        "prompts": [str(file) for file in prompts],
        "device": device.value,
        "threads": threads,
        "micro_batch_tokens": micro_batch_tokens,
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
        _sample_all(run, out, params, columns, prompts, model)


def _sample_all(
    run: StageRun, out: Path, params: SamplingParams, columns: PromptColumns, files: list[Path], model_name: str
) -> None:
    from primecli.errors import InputError
    from primecli.files import file_hash, fingerprint
    from primecli.models import model_fingerprint, resolve_model, tokenizer_fingerprint
    from primecli.prompts import read_prompts, stream_positions
    from primecli.recipe import Recipe
    from primecli.shards import shard_name

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
    encoder = _Encoder(directory)
    groups = []
    for position, index in taken:
        text, ids = encoder.encode(prompts[index])
        if len(ids) > config["max_prompt_tokens"]:
            run.count({"prompts_too_long": 1})
        else:
            groups.append((position, prompts[index], text, ids))
    if not groups:
        raise InputError(
            f"every prompt is longer than {config['max_prompt_tokens']} tokens", "raise --max-prompt-tokens"
        )
    per_shard = config["prompts_per_shard"]
    parts = [groups[start : start + per_shard] for start in range(0, len(groups), per_shard)]
    run.progress.advance(0, total=len(groups) * params.n)
    recipe = Recipe("generate", config, run.models, [content], params.seed)
    sampler = _Sampler(directory, run, params, encoder, longest=max(len(ids) for *_, ids in groups))
    for number, part in enumerate(parts):
        if run.skip_name(shard_name(number, len(parts)), recipe):
            run.progress.advance(len(part) * params.n)
            continue
        table = sampler.table(part)
        run.commit(table, _counts(table))


class _Encoder:
    """Prompts to text and token ids, responses to text."""

    def __init__(self, directory: Path) -> None:
        from transformers import AutoTokenizer

        from primecli.errors import InputError

        self.directory = directory
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{directory}: its tokenizer cannot be loaded: {reason}") from error

    def encode(self, prompt: Prompt) -> tuple[str, list[int]]:
        """The prompt's text, after the chat template where it is a list of messages, and its token ids."""
        from primecli.errors import InputError

        try:
            json.dumps(prompt.content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"prompt {prompt.prompt_id} is no valid Unicode text: {error.reason}") from error
        if isinstance(prompt.content, str):
            text, ids = prompt.content, self.tokenizer(prompt.content)["input_ids"]
        else:
            if not self.tokenizer.chat_template:
                raise InputError(
                    f"{self.directory}: the prompts are messages, and its tokenizer has no chat template",
                    "use a model with a chat template, or prompts of plain text",
                )
            text = self._template(prompt.prompt_id, prompt.content)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise InputError(f"prompt {prompt.prompt_id} has no tokens")
        return text, ids

    def _template(self, prompt_id: str, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        from primecli.errors import InputError

        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise InputError(
                f"prompt {prompt_id}: the chat template of {self.directory} refuses it: {error}"
            ) from error

    def decode(self, ids: Any) -> str:
        """A response's text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class _Sampler:
    """Loads the policy when the first shard is to be sampled, and makes shards of groups."""

    def __init__(
        self, directory: Path, run: StageRun, params: SamplingParams, encoder: _Encoder, *, longest: int
    ) -> None:
        self.longest = longest
        self.directory = directory
        self.run = run
        self.params = params
        self.encoder = encoder
        self._engine: Any = None

    def engine(self) -> Any:
        """The engine, loaded once."""
        if self._engine is None:
            from primecli.engines.hf import HfEngine, stop_ids
            from primecli.models import check_length, load_model, placement, set_threads

            set_threads(self.run.execution["threads"])
            place = placement(self.run.execution["device"], self.run.config["dtype"])
            model = load_model(self.directory, place)
            check_length(model, self.longest + self.params.max_tokens, self.directory)
            self._engine = HfEngine(
                model,
                place,
                stop_ids=stop_ids(model, self.encoder.tokenizer),
                token_budget=self.run.execution["micro_batch_tokens"],
            )
        return self._engine

    def table(self, groups: list[tuple[int, Prompt, str, list[int]]]) -> pa.Table:
        """Samples these groups: (position, prompt, text, token ids) each."""
        from primecli import pipe
        from primecli.engines import Request

        requests = [Request(f"{prompt.prompt_id}@{position}", ids) for position, prompt, _, ids in groups]
        samples: list[list[Sample]] = [[] for _ in groups]
        for number, found in self.engine().sample(requests, self.params, tick=pipe.check_reader):
            samples[number] = found
            self.run.progress.advance(len(found))
        return _table(groups, requests, samples, self.params, self.encoder, self.run.models["policy"])


def _table(
    groups: list[tuple[int, Prompt, str, list[int]]],
    requests: list[Any],
    samples: list[list[Sample]],
    params: SamplingParams,
    encoder: _Encoder,
    policy: str,
) -> pa.Table:
    import pyarrow as pa

    from primecli import schema

    rows = []
    for (_, prompt, text, ids), request, group in zip(groups, requests, samples, strict=True):
        for index, sample in enumerate(group):
            rows.append(
                {
                    schema.PROMPT_ID: prompt.prompt_id,
                    schema.GROUP_ID: request.group_id,
                    schema.GROUP_SIZE: params.n,
                    schema.SAMPLE_INDEX: index,
                    schema.DATA_SOURCE: prompt.data_source,
                    schema.ABILITY: prompt.ability,
                    schema.GROUND_TRUTH: prompt.ground_truth,
                    schema.PROMPT: text,
                    schema.RESPONSE: encoder.decode(sample.token_ids),
                    schema.PROMPT_IDS: ids,
                    schema.RESPONSE_IDS: sample.token_ids,
                    schema.ROLLOUT_LOGPROBS: sample.logprobs,
                    schema.TEMPERATURE: params.temperature,
                    schema.TOP_P: params.top_p,
                    schema.TOP_K: params.top_k,
                    schema.FINISH_REASON: sample.finish_reason,
                    schema.POLICY_FINGERPRINT: policy,
                }
            )
    return pa.Table.from_pylist(rows, schema=schema.arrow_schema(schema.made_by("generate")))


def _counts(table: pa.Table) -> dict[str, float]:
    import pyarrow.compute as pc

    from primecli import schema

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
