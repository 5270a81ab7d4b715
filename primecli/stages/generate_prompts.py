"""What `generate` does to its prompts before it samples: it reads, encodes and checks them, and says what it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from primecli.errors import InputError

if TYPE_CHECKING:
    from primecli.generation.encoder import Encoder
    from primecli.generation.prompts import Prompt
    from primecli.generation.sampler import PromptGroup
    from primecli.pipeline.stage_run import StageRun
    from primecli.stages.generate import GenerateOptions


def prompts_of(options: GenerateOptions) -> tuple[list[tuple[int, Prompt]], str]:
    """The prompts to sample, each with its position in the stream of prompts; and the hash of the prompt files."""
    from primecli.files import file_hash, fingerprint
    from primecli.generation.prompts import PromptColumns, read_prompts, stream_positions

    columns = PromptColumns(options.prompt_column, options.answer_column, options.answer_regex, options.suffix)
    prompts = read_prompts(options.prompts, columns)
    if options.batch_prompts:
        positions = stream_positions(len(prompts), step=options.step, batch=options.batch_prompts, seed=options.seed)
    else:
        positions = [(index, index) for index in range(len(prompts))]
    content = fingerprint([file_hash(file) for file in options.prompts])
    return [(position, prompts[index]) for position, index in positions], content


def encode(
    run: StageRun, options: GenerateOptions, prompts: list[tuple[int, Prompt]], encoder: Encoder
) -> list[PromptGroup]:
    """The groups to sample: the prompts that are not too long, with their token ids."""
    from primecli.generation.sampler import PromptGroup

    groups = []
    for position, prompt in prompts:
        text, ids = encoder.encode(prompt)
        if len(ids) > options.max_prompt_tokens:
            run.count({"prompts_too_long": 1})
        else:
            groups.append(PromptGroup(position, prompt, text, ids))
    if not groups:
        raise InputError(f"every prompt is longer than {options.max_prompt_tokens} tokens", "raise --max-prompt-tokens")
    unanswered = sum(group.prompt.ground_truth is None for group in groups)
    if unanswered:
        run.warn(
            f"{unanswered} of {len(groups)} prompts have no answer, so `verify` cannot grade their responses: put the "
            "answer into reward_model.ground_truth, ground_truth or answer, or name its column with --answer-column"
        )
    return groups


def report_prompts(run: StageRun, encoder: Encoder) -> None:
    """Says once, and puts into the summary, what the tokenizer and its chat template have done to the prompts."""
    from primecli.generation.chat import NOW

    template, total = encoder.template, encoder.encoded
    if encoder.wrapped:
        run.note(
            f"{encoder.wrapped} of {total} prompts are text: each becomes a user message in the model's chat template "
            "(--no-chat-template takes text as it is)"
        )
    elif encoder.bare and template:
        run.note(f"{encoder.bare} of {total} prompts are text, taken as they are, without the model's chat template")
    if encoder.bare and encoder.added[1]:
        run.note("the tokenizer ends every text with an end token, which is left out so that responses can follow")
    if encoder.with_special:
        run.gauges["prompts_with_special_tokens"] = encoder.with_special
        run.warn(
            f"{encoder.with_special} of {total} prompts hold the text of a special token of the tokenizer, "
            "and the model reads it as that token"
        )
    if template and template.incomplete:
        run.gauges["prompts_incomplete"] = template.incomplete
        run.warn(
            f"in {template.incomplete} of {total} prompts the chat template leaves out a part of the earlier messages, "
            f"first in {template.example}"
        )
    if template and "template_time" in encoder.recipe():
        run.note(
            f"the chat template asks for the time: it is told {NOW:%Y-%m-%d %H:%M}, so reruns make the same prompts"
        )


def check_known(groups: list[PromptGroup], tokens: int) -> None:
    """Raises InputError for a prompt with a token that the model does not have. tokens: how many it has."""
    for group in groups:
        largest = max(group.prompt_ids)
        if largest >= tokens:
            raise InputError(
                f"{group.prompt.name}: holds the token id {largest}, and the model has {tokens} tokens",
                "its tokenizer has tokens for which it has no embedding: resize the embedding, or remove the token",
            )
