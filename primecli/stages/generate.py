"""generate: samples responses to prompts, and writes them as shards."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from primecli.errors import UsageError
from primecli.files import Json
from primecli.generation.engines import ENGINES, EngineOptions, SamplingParams, resolve_engine
from primecli.options import Option, Seed, key_values
from primecli.pipeline.options import RunOptions
from primecli.stages.spread import SpreadOptions, is_spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from primecli.generation.encoder import Encoder
    from primecli.generation.engines import Policy
    from primecli.generation.sampler import PromptGroup
    from primecli.generation.shard_sampler import ShardSampler
    from primecli.pipeline.stage_run import Output, StageRun

BROKEN = "\ufffd"  # what a decoder gives for bytes that are not a whole character
SERVER_STOPS = 4  # stop texts that a vLLM server takes, as OpenAI's API does
LOWEST_TEMPERATURE = 1e-3  # a lower one is as good as greedy, and dividing logits by it could overflow float32


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(SpreadOptions, RunOptions):
    """The options of `primecli generate`."""

    model: Annotated[str, Option("The policy to sample from.", "execution", metavar="DIR|HUB_ID")]
    prompts: Annotated[
        tuple[Path, ...], Option("Prompt file, Parquet or JSON; may be repeated.", "execution", metavar="FILE")
    ]
    out: Annotated[Path, Option("Output directory.", "call", metavar="DIR")]
    n: Annotated[int, Option("Responses per prompt.", min=1)] = 4
    step: Annotated[int, Option("Iteration, from 1: takes this slice of the shuffled prompts.", min=1)] = 1
    batch_prompts: Annotated[
        int | None, Option("Prompts per iteration.  [default: all prompts of the files, in order]", min=1)
    ] = None
    temperature: Annotated[float, Option("Sampling temperature; 0 is greedy.", min=0.0)] = 1.0
    top_p: Annotated[float, Option("Nucleus (top-p) truncation; 1 for none.", min=0.0, max=1.0)] = 1.0
    top_k: Annotated[int, Option("Top-k truncation; 0 for none.", min=0)] = 0
    max_tokens: Annotated[int, Option("Maximum length of a response, in tokens.", min=1)] = 3072
    max_prompt_tokens: Annotated[
        int, Option("Maximum length of a prompt, in tokens; longer ones are left out, and counted.", min=1)
    ] = 1024
    prompts_per_shard: Annotated[int, Option("Groups per shard.", min=1)] = 64
    prompt_column: Annotated[str, Option("Column with the prompt; a.b is the field b in the column a.")] = "prompt"
    answer_column: Annotated[
        str | None, Option("Column with the answer.  [default: reward_model.ground_truth, ground_truth or answer]")
    ] = None
    answer_regex: Annotated[
        str | None,
        Option("Take the first group of this regular expression as the answer, such as '#### (.*)' for GSM8K."),
    ] = None
    suffix: Annotated[str, Option("Text to append to each prompt (to its last message of the user).")] = ""
    system: Annotated[str, Option("System message to put before each prompt.", "call", metavar="TEXT")] = ""
    no_chat_template: Annotated[
        bool,
        Option(
            "Take prompts that are text as they are.  [default: each becomes a message of the user, if the model has a "
            "chat template]",
            "call",
        ),
    ] = False
    chat_template_arg: Annotated[
        tuple[str, ...],
        Option(
            "A variable of the chat template, such as enable_thinking=false; may be repeated.",
            "call",
            metavar="KEY=VALUE",
        ),
    ] = ()
    stop: Annotated[
        tuple[str, ...],
        Option(
            "Text that ends a response, such as '</answer>', beside the end-of-sequence tokens; it stays in the "
            "response; may be repeated.",
            "call",
            metavar="TEXT",
        ),
    ] = ()
    engine: Annotated[
        str,
        Option(
            "What samples: transformers (hf), vLLM in this process (vllm), or vLLM servers (vllm-server); auto is vllm "
            "if it is installed and there is a GPU, else hf.",
            choices=("auto", *ENGINES),
        ),
    ] = "auto"
    tensor_parallel: Annotated[int, Option("vllm: GPUs that the model is spread over.", "execution", min=1)] = 1
    gpu_memory: Annotated[
        float | None,
        Option("vllm: fraction of a GPU's memory to use.  [default: vLLM's own]", "execution", min=0.0, max=1.0),
    ] = None
    engine_arg: Annotated[
        tuple[str, ...],
        Option(
            "vllm: any other argument of its engine, such as enforce_eager=true; may be repeated.",
            "call",
            metavar="KEY=VALUE",
        ),
    ] = ()
    url: Annotated[
        tuple[str, ...],
        Option(
            "vllm-server: address of a server, such as http://127.0.0.1:8000; may be repeated.", "call", metavar="URL"
        ),
    ] = ()
    reload: Annotated[
        bool,
        Option("vllm-server: make the servers load --model first; they must see the same directory.", "execution"),
    ] = False
    concurrency: Annotated[int, Option("vllm-server: groups in flight per server.", "execution", min=1)] = 64
    retries: Annotated[
        int, Option("vllm-server: how often to retry when a server fails, waiting longer each time.", "call", min=0)
    ] = 6
    probe_gap: Annotated[
        float | None,
        Option(
            "vllm-server: largest mean gap to accept, in nats, between a server's and --model's log-probabilities of a "
            "probe.  [default: 0.001 in float32, 0.1 in bfloat16]",
            "call",
            min=0.0,
        ),
    ] = None
    seed: Seed = 0
    micro_batch_tokens: Annotated[
        int, Option("hf: tokens in the key-value cache at once. Limits memory.", "execution", min=1)
    ] = 131072

    def check(self) -> None:
        """Raises UsageError for options that contradict each other."""
        super().check()
        if self.step > 1 and self.batch_prompts is None:
            raise UsageError(f"--step {self.step} without --batch-prompts: every step would take all prompts")
        if 0 < self.temperature < LOWEST_TEMPERATURE:
            raise UsageError(f"--temperature {self.temperature:g}: must be 0 (greedy) or at least 0.001")
        if self.top_p == 0:
            raise UsageError("--top-p 0 keeps no token", "use --temperature 0 for greedy sampling")
        self._check_stop()
        self._check_prompt_options()
        self._check_engine()

    def _check_prompt_options(self) -> None:
        """Raises UsageError for options that need the chat template without it, or are not KEY=VALUE."""
        for option in ("system", "chat_template_arg"):
            if self.no_chat_template and getattr(self, option):
                raise UsageError(
                    f"--{option.replace('_', '-')} needs the chat template", "leave out --no-chat-template"
                )
        self.chat_template_args()

    def _check_stop(self) -> None:
        """Raises UsageError for a stop text that no response could end with."""
        if "" in self.stop:
            raise UsageError("--stop is empty: every response would end at once", "give a text such as '</answer>'")
        if any(BROKEN in text for text in self.stop):
            raise UsageError("--stop has U+FFFD in it, which stands for bytes that are no character", "leave it out")

    def _check_engine(self) -> None:
        """Raises UsageError for an option that belongs to another engine than the one that samples."""
        engine = self.resolved_engine()
        engine_options = {
            "--url": (self.url, "vllm-server"),
            "--reload": (self.reload, "vllm-server"),
            "--engine-arg": (self.engine_args(), "vllm"),
            "--gpu-memory": (self.gpu_memory is not None, "vllm"),
            "--tensor-parallel": (self.tensor_parallel != 1, "vllm"),
        }
        for option, (is_given, owner) in engine_options.items():
            if is_given and engine != owner:
                raise UsageError(f"{option} works with --engine {owner}, but the engine is {engine}")
        if is_spread(self) and engine == "vllm-server":
            raise UsageError(
                "--engine vllm-server has no workers: servers share the prompts", "give --url once for each server"
            )
        if is_spread(self) and self.tensor_parallel > 1:
            raise UsageError(
                f"--tensor-parallel {self.tensor_parallel} takes several GPUs, and each worker has one",
                "leave out one of them, or start servers and use --engine vllm-server",
            )
        if engine == "vllm" and ":" in self.device:
            raise UsageError(
                f"--device {self.device} works with --engine hf, but the engine is vllm",
                f"set CUDA_VISIBLE_DEVICES={self.device.partition(':')[2]} instead",
            )
        if engine == "vllm-server" and not self.url:
            raise UsageError("--engine vllm-server needs --url, once for each server")
        if engine == "vllm-server" and len(self.stop_texts()) > SERVER_STOPS:
            raise UsageError(f"--stop: vLLM servers take {SERVER_STOPS} texts at most", "use --engine vllm, or fewer")

    def resolved_engine(self) -> str:
        """The engine that samples: `engine`, or what `auto` stands for here."""
        return resolve_engine(self.engine, self.device)

    def engine_args(self) -> dict[str, Any]:
        """The pairs of --engine-arg. Raises UsageError for one without a key or without `=`."""
        pairs = key_values("--engine-arg", self.engine_arg)
        return {key.strip("-").replace("-", "_"): value for key, value in pairs.items()}

    def chat_template_args(self) -> dict[str, Any]:
        """The pairs of --chat-template-arg. Raises UsageError for one without a key or without `=`."""
        return key_values("--chat-template-arg", self.chat_template_arg)

    def stop_texts(self) -> tuple[str, ...]:
        """The texts of --stop, each once, in an order that does not depend on theirs."""
        return tuple(sorted(set(self.stop)))

    def sampling_params(self) -> SamplingParams:
        """How responses are sampled."""
        return SamplingParams(self.n, self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed)

    def engine_options(self) -> EngineOptions:
        """How the engine runs."""
        return EngineOptions(
            device=self.device,
            dtype=self.resolved_dtype(),
            threads=self.threads,
            micro_batch_tokens=self.micro_batch_tokens,
            tensor_parallel=self.tensor_parallel,
            gpu_memory=self.gpu_memory,
            engine_args=self.engine_args(),
            urls=self.url,
            reload=self.reload,
            concurrency=self.concurrency,
            retries=self.retries,
            probe_gap=self.probe_gap,
            debug=bool(os.environ.get("PRIMECLI_DEBUG")),
        )

    def recipe(self) -> dict[str, Json]:
        """Adds the resolved engine, and the arguments of it and of the chat template.

        The step is null if every step takes all prompts. What goes to the chat template, and stop texts, are only there
        if given, so that results without them stay valid.
        """
        given: dict[str, Json] = {
            "system": self.system,
            "chat_template_args": self.chat_template_args(),
            "stop": list(self.stop_texts()),
        }
        return {
            **super().recipe(),
            **{name: value for name, value in given.items() if value},
            "step": self.step if self.batch_prompts else None,
            "engine": self.resolved_engine(),
            "engine_args": self.engine_args(),
        }

    def execution(self) -> dict[str, Json]:
        """Adds the addresses of the servers, and whether texts are kept from the chat template."""
        off: dict[str, Json] = {"no_chat_template": True} if self.no_chat_template else {}
        return {**super().execution(), "urls": list(self.url), **off}


def generate(options: GenerateOptions) -> None:
    """Samples responses to prompts, and writes them as shards of whole groups, skipping those that exist."""
    from primecli.generation.encoder import Encoder
    from primecli.models.identity import model_fingerprint, resolve_model, tokenizer_fingerprint
    from primecli.models.same_tokens import TOKEN_IDENTITY, token_identity
    from primecli.pipeline.stage_run import StageRun
    from primecli.stages.generate_prompts import encode, prompts_of

    with StageRun("generate", options, finish=metrics) as run:
        prompts, content = prompts_of(options)
        directory = resolve_model(options.model)
        run.models.update(policy=model_fingerprint(directory), tokenizer=tokenizer_fingerprint(directory))
        run.facts[TOKEN_IDENTITY] = token_identity(directory)
        run.open(options.out)
        encoder = Encoder(
            directory,
            use_template=not options.no_chat_template,
            system=options.system,
            arguments=options.chat_template_args(),
        )
        groups = encode(run, options, prompts, encoder)
        _sample(run, options, groups, content, directory, encoder)


def _sample(
    run: StageRun,
    options: GenerateOptions,
    groups: list[PromptGroup],
    content: str,
    directory: Path,
    encoder: Encoder,
) -> None:
    """Samples the groups of the shards that do not exist yet, and commits them. content: hash of the prompt files."""
    from primecli.generation.engines.policy_info import read_policy
    from primecli.generation.sampler import Sampler, rollout_table, sampled_counts
    from primecli.pipeline.recipe import Recipe
    from primecli.shards.parquet import shard_name
    from primecli.stages.generate_prompts import check_known, report_prompts

    params = options.sampling_params()
    per_shard = options.prompts_per_shard
    parts = [groups[start : start + per_shard] for start in range(0, len(groups), per_shard)]
    run.progress.together = True
    run.progress.advance(0, total=len(groups) * params.n)
    decoded: dict[str, Json] = {"decoded": True} if any(group.prompt.decoded for group in groups) else {}
    config = {**options.recipe(), **encoder.recipe(), **decoded}
    run.record({**encoder.recipe(), **decoded})
    recipe = Recipe("generate", config, run.models, [content], options.seed)
    names = [shard_name(number, len(parts)) for number in range(len(parts))]
    missing = {number: parts[number] for number, name in enumerate(names) if run.made(name, recipe) is None}
    policy = read_policy(
        directory,
        encoder.tokenizer,
        fingerprint=str(run.models["policy"]),
        max_length=max(len(group.prompt_ids) for group in groups) + params.max_tokens,
        stop_texts=options.stop_texts(),
    )
    report_prompts(run, encoder)
    check_known(groups, policy.output_size)
    if is_spread(options):
        _sample_elsewhere(run, options, policy, [run.output_named(name, recipe) for name in names], parts)
        return
    engine, engine_options = options.resolved_engine(), options.engine_options()
    with Sampler(engine, policy, engine_options, params, missing, done=run.progress.advance) as sampler:
        for number, part in enumerate(parts):
            if run.skip_name(names[number], recipe):
                run.progress.advance(len(part) * params.n)
                continue
            table = rollout_table(part, sampler.samples(number), params, encoder, policy.fingerprint)
            run.commit(table, sampled_counts(table))


def _sample_elsewhere(
    run: StageRun,
    options: GenerateOptions,
    policy: Policy,
    outputs: Sequence[Output],
    parts: Sequence[Sequence[PromptGroup]],
) -> None:
    """Has workers sample the groups of each shard. outputs: the shards. parts: the groups of each."""
    from functools import partial

    from primecli.stages.spread import open_making

    settled = replace(options, engine=options.resolved_engine())  # a worker might resolve `auto` otherwise
    with open_making(run, settled, partial(open_sampler, policy=policy), lambda facts: None) as making:
        for number, (output, part) in enumerate(zip(outputs, parts, strict=True)):
            making.put(output, (number, part), len(part) * options.n)
        making.finish()


def open_sampler(options: GenerateOptions, *, policy: Policy) -> ShardSampler:
    """What samples one shard after the other, in a worker."""
    from primecli.generation.shard_sampler import ShardSampler

    return ShardSampler(options.engine, policy, options.engine_options(), options.sampling_params())


def metrics(counts: dict[str, float]) -> dict[str, float]:
    """The directory's metrics, from the sums of its shards' counts."""
    rollouts = counts.get("rollouts", 0)
    values = {"prompts_too_long": counts.get("prompts_too_long", 0)}
    if rollouts:
        values["response_tokens"] = counts["tokens"] / rollouts
        values["truncated"] = counts["truncated"] / rollouts
    return values
