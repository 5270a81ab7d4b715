"""The rollout schema: the only place that names a column.

One row is one rollout: one sampled response to one prompt. A stage keeps every column that it is given and adds its
own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1

PROMPT_ID = "prompt_id"
GROUP_ID = "group_id"
GROUP_SIZE = "group_size"
SAMPLE_INDEX = "sample_index"
DATA_SOURCE = "data_source"
ABILITY = "ability"
GROUND_TRUTH = "ground_truth"
PROMPT = "prompt"
RESPONSE = "response"
PROMPT_IDS = "prompt_ids"
RESPONSE_IDS = "response_ids"
ROLLOUT_LOGPROBS = "rollout_logprobs"
TEMPERATURE = "temperature"
TOP_P = "top_p"
TOP_K = "top_k"
FINISH_REASON = "finish_reason"
POLICY_FINGERPRINT = "policy_fingerprint"
OUTCOME_REWARD = "outcome_reward"
VERDICT = "verdict"
EXTRACTED_ANSWER = "extracted_answer"
VERIFIER_DETAIL = "verifier_detail"
TESTS_PASSED = "tests_passed"
TESTS_TOTAL = "tests_total"
FIRST_FAILURE = "first_failure"
STEP_ENDS = "step_ends"
FIRST_WRONG_STEP = "first_wrong_step"
PRM_LOGPROBS = "prm_logprobs"
REF_LOGPROBS = "ref_logprobs"
PROCESS_REWARDS = "process_rewards"
VALUES = "values"
ADVANTAGES = "advantages"
RETURNS = "returns"
OUTCOME_ADVANTAGES = "outcome_advantages"
PROCESS_ADVANTAGES = "process_advantages"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    name: its name in the file, such as prompt_ids.
    type: its Arrow type, such as string or list<int32>.
    stage: the stage that adds it.
    meaning: what it holds, with its unit, for the table in the documentation.
    nullable: whether it may hold nulls.
    """

    name: str
    type: str
    stage: str
    meaning: str
    nullable: bool = False

    def arrow_type(self) -> pa.DataType:
        """The Arrow type that `type` names."""
        import pyarrow as pa

        if self.type.startswith("list<"):
            return pa.list_(_scalar_type(self.type[5:-1]))
        return _scalar_type(self.type)

    def field(self) -> pa.Field:
        """The column as an Arrow field."""
        import pyarrow as pa

        return pa.field(self.name, self.arrow_type(), nullable=self.nullable)


def _scalar_type(name: str) -> pa.DataType:
    import pyarrow as pa

    return {"string": pa.string(), "int32": pa.int32(), "float32": pa.float32()}[name]


COLUMNS: tuple[Column, ...] = (
    Column(PROMPT_ID, "string", "generate", "stable id of the prompt in its data set"),
    Column(GROUP_ID, "string", "generate", "this sampling of this prompt; the key that groups samples"),
    Column(
        GROUP_SIZE, "int32", "generate", "number of samples in this group, n; a group with fewer rows is incomplete"
    ),
    Column(SAMPLE_INDEX, "int32", "generate", "0 … n-1 within the group"),
    Column(DATA_SOURCE, "string", "generate", "as in the prompt file", nullable=True),
    Column(ABILITY, "string", "generate", "as in the prompt file: math, code, …", nullable=True),
    Column(GROUND_TRUTH, "string", "generate", "what `verify` compares the answer with", nullable=True),
    Column(PROMPT, "string", "generate", "text, after the chat template"),
    Column(RESPONSE, "string", "generate", "text, without special tokens"),
    Column(PROMPT_IDS, "list<int32>", "generate", "token ids of the prompt"),
    Column(
        RESPONSE_IDS,
        "list<int32>",
        "generate",
        "exactly the token ids that were sampled, including the stop token if there was one; never tokenised again",
    ),
    Column(
        ROLLOUT_LOGPROBS,
        "list<float32>",
        "generate",
        "log-probability (nats) of each response token under the distribution it was sampled from, after temperature "
        "and truncation",
    ),
    Column(TEMPERATURE, "float32", "generate", "sampling temperature; 0 is greedy"),
    Column(TOP_P, "float32", "generate", "nucleus truncation; 1 is none"),
    Column(TOP_K, "int32", "generate", "top-k truncation; 0 is none"),
    Column(FINISH_REASON, "string", "generate", "stop or length"),
    Column(POLICY_FINGERPRINT, "string", "generate", "identity of the weights that sampled"),
    Column(
        OUTCOME_REWARD,
        "float32",
        "verify",
        "r_o in [0, 1]; null where the verifier itself failed",
        nullable=True,
    ),
    Column(VERDICT, "string", "verify", "correct, wrong, unparseable, timeout or error"),
    Column(EXTRACTED_ANSWER, "string", "verify", "what was graded; null where nothing was found", nullable=True),
    Column(VERIFIER_DETAIL, "string", "verify", "why a verdict is error; null elsewhere", nullable=True),
    Column(TESTS_PASSED, "int32", "verify", "for a program: tests passed, up to the first failure", nullable=True),
    Column(TESTS_TOTAL, "int32", "verify", "for a program: number of tests", nullable=True),
    Column(FIRST_FAILURE, "string", "verify", "for a program: its first failure, shortened", nullable=True),
    Column(
        STEP_ENDS,
        "list<int32>",
        "import",
        "the index of the response token at which each step ends, from 0; the last step ends with the response; null "
        "where no steps are given",
        nullable=True,
    ),
    Column(
        FIRST_WRONG_STEP,
        "int32",
        "import",
        "the index of the first wrong step, from 0; -1 where every step is right, null where the file does not say",
        nullable=True,
    ),
    Column(PRM_LOGPROBS, "list<float32>", "score-prm", "log-probability (nats) of each response token under the PRM"),
    Column(
        REF_LOGPROBS, "list<float32>", "score-prm", "log-probability (nats) of each response token under the reference"
    ),
    Column(
        PROCESS_REWARDS,
        "list<float32>",
        "score-prm",
        "beta * (prm_logprobs - ref_logprobs), per response token",
    ),
    Column(VALUES, "list<float32>", "score-values", "the critic's expected return before each response token"),
    Column(
        ADVANTAGES,
        "list<float32>",
        "compute-advantages",
        "per response token, whitened over the batch unless `--no-whiten`",
    ),
    Column(
        RETURNS,
        "list<float32>",
        "compute-advantages",
        "per response token, advantages before whitening; with `gae`, plus the values: what a critic is trained on",
    ),
    Column(
        OUTCOME_ADVANTAGES,
        "list<float32>",
        "compute-advantages",
        "the part of `advantages` that comes from the outcome reward, on the same scale, before the batch mean is "
        "subtracted",
    ),
    Column(
        PROCESS_ADVANTAGES,
        "list<float32>",
        "compute-advantages",
        "the part of `advantages` that comes from the process rewards, likewise",
    ),
)

SAMPLED_WITH: tuple[str, ...] = (TEMPERATURE, TOP_P, TOP_K)
"""Columns that say which distribution the responses were sampled from."""

BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}

PER_RESPONSE_TOKEN: tuple[str, ...] = (
    ROLLOUT_LOGPROBS,
    PRM_LOGPROBS,
    REF_LOGPROBS,
    PROCESS_REWARDS,
    VALUES,
    ADVANTAGES,
    RETURNS,
    OUTCOME_ADVANTAGES,
    PROCESS_ADVANTAGES,
)
"""Columns whose lists are as long as `response_ids`."""

IMPORTED: tuple[str, ...] = (
    PROMPT_ID,
    GROUP_ID,
    GROUP_SIZE,
    SAMPLE_INDEX,
    DATA_SOURCE,
    ABILITY,
    GROUND_TRUTH,
    PROMPT,
    RESPONSE,
    PROMPT_IDS,
    RESPONSE_IDS,
    FINISH_REASON,
    OUTCOME_REWARD,
    VERDICT,
)
"""Columns of other stages that `import` writes too; what only a sampler knows is not among them."""


def arrow_schema(names: Iterable[str]) -> pa.Schema:
    """The Arrow schema of these columns, in this order."""
    import pyarrow as pa

    return pa.schema([BY_NAME[name].field() for name in names])


def made_by(stage: str) -> list[str]:
    """The names of the columns that a stage adds."""
    return [column.name for column in COLUMNS if column.stage == stage]


def markdown_table() -> str:
    """The table of columns in Markdown, as the documentation shows it."""
    lines = ["| column | type | from | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{column.name}` | {column.type}{', null' if column.nullable else ''} | {column.stage} | {column.meaning} |"
        for column in COLUMNS
    ]
    return "\n".join(lines) + "\n"
