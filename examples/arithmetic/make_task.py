"""Write a multi-step arithmetic task for a tiny language model: prompts, demonstrations, tokenizer.

A prompt is a number, some operations and a modulus:

    7 +5 *3 -2 mod 10:

The operations are applied from left to right, each result is taken modulo the modulus, and a response
writes one step per line and ends with the answer:

    7+5=2
    2*3=6
    6-2=4
    \\boxed{4}

A given share of the steps in the demonstrations is wrong; the steps after a wrong one continue from its
result. A model trained on them knows the arithmetic but makes such slips when it samples, which leaves
reinforcement learning something to do. Multipliers are coprime to the modulus, so each operation is
one-to-one and a single wrong step always makes the answer wrong.

With --slips fact, it depends on the fact (such as 7*3) whether a step is wrong: most facts are nearly always
right, some are wrong more often than not, and always with the same wrong result. So the model has to learn
*which* facts it has wrong, while with uniform slips it is enough to become more certain everywhere.

Writes OUT_DIR/train.jsonl and OUT_DIR/heldout.jsonl (prompts with answers), OUT_DIR/demonstrations.jsonl
(prompts with responses) and OUT_DIR/tokenizer. No prompt is in more than one of the files. Nothing is
downloaded.

Example:
    python examples/arithmetic/make_task.py task
"""

import argparse
import json
import math
import random
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"

PROMPT_PATTERN = re.compile(r"(\d+)((?: [-+*]\d+)+) mod (\d+):")
STEP_PATTERN = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
ANSWER_PATTERN = re.compile(r"\\boxed\{(\d+)\}")


class Operation(NamedTuple):
    """One operation on the running value.

    sign: one of `+`, `-` and `*`.
    operand: a number of one digit.
    """

    sign: str
    operand: int


class Slips(NamedTuple):
    """When the steps of demonstrations are wrong.

    share: how often a step is, unless its fact is in `beliefs`.
    beliefs: the wrong result of some facts, by (value, operation).
    belief_share: how often a step with such a fact has that result.
    """

    share: float
    beliefs: Mapping[tuple[int, Operation], int] = {}
    belief_share: float = 0.0


class Problem(NamedTuple):
    """A problem.

    start: the first value.
    operations: applied to it from left to right.
    modulus: every result is taken modulo this.
    """

    start: int
    operations: tuple[Operation, ...]
    modulus: int


def apply_operation(value: int, operation: Operation, modulus: int) -> int:
    """The value after one operation, in 0 … modulus - 1.

    >>> apply_operation(7, Operation("*", 3), 10)
    1
    """
    match operation.sign:
        case "+":
            return (value + operation.operand) % modulus
        case "-":
            return (value - operation.operand) % modulus
        case "*":
            return (value * operation.operand) % modulus
    raise ValueError(f"unknown sign {operation.sign!r}")


def solve(problem: Problem) -> int:
    """The correct answer.

    >>> solve(parse_prompt("7 +5 *3 -2 mod 10:"))
    4
    """
    value = problem.start
    for operation in problem.operations:
        value = apply_operation(value, operation, problem.modulus)
    return value


def draw_problem(generator: random.Random, steps: int, modulus: int) -> Problem:
    """A random problem; the three signs are equally likely, operands are 2 … 9."""
    operations = []
    for _ in range(steps):
        sign = generator.choice("+-*")
        operand = generator.choice(multipliers(modulus)) if sign == "*" else generator.randint(2, 9)
        operations.append(Operation(sign, operand))
    return Problem(generator.randrange(modulus), tuple(operations), modulus)


def write_prompt(problem: Problem) -> str:
    """The prompt of a problem.

    >>> write_prompt(Problem(7, (Operation("+", 5), Operation("*", 3)), 10))
    '7 +5 *3 mod 10:'
    """
    operations = " ".join(f"{operation.sign}{operation.operand}" for operation in problem.operations)
    return f"{problem.start} {operations} mod {problem.modulus}:"


def parse_prompt(prompt: str) -> Problem:
    """The problem of a prompt, the inverse of `write_prompt`."""
    matched = PROMPT_PATTERN.fullmatch(prompt)
    if matched is None:
        raise ValueError(f"not an arithmetic prompt: {prompt!r}")
    start, operations, modulus = matched.groups()
    parsed = tuple(Operation(text[0], int(text[1:])) for text in operations.split())
    return Problem(int(start), parsed, int(modulus))


def multipliers(modulus: int) -> list[int]:
    """The numbers that problems multiply by: those of 2 … 9 that are coprime to the modulus.

    >>> multipliers(10)
    [3, 7, 9]
    """
    return [operand for operand in range(2, 10) if math.gcd(operand, modulus) == 1]


def draw_beliefs(generator: random.Random, modulus: int, share: float) -> dict[tuple[int, Operation], int]:
    """A wrong result for each of a random share of all facts, by (value, operation).

    >>> beliefs = draw_beliefs(random.Random(0), 10, 1.0)
    >>> len(beliefs), all(apply_operation(*fact, 10) != result for fact, result in beliefs.items())
    (190, True)
    """
    operations = [Operation(sign, operand) for sign in "+-" for operand in range(2, 10)]
    operations += [Operation("*", operand) for operand in multipliers(modulus)]
    beliefs = {}
    for value in range(modulus):
        for operation in operations:
            if generator.random() < share:
                right = apply_operation(value, operation, modulus)
                beliefs[value, operation] = (right + generator.randrange(1, modulus)) % modulus
    return beliefs


def write_demonstration(generator: random.Random, problem: Problem, slips: Slips) -> str:
    """A response with one step a line, some of them wrong; the step after a wrong one starts from its result.

    The result of a wrong step is that of the belief, else any other value, all equally likely.
    """
    lines = []
    value = problem.start
    for operation in problem.operations:
        result = apply_operation(value, operation, problem.modulus)
        belief = slips.beliefs.get((value, operation))
        if generator.random() < (slips.share if belief is None else slips.belief_share):
            other = (result + generator.randrange(1, problem.modulus)) % problem.modulus
            result = other if belief is None else belief
        lines.append(f"{value}{operation.sign}{operation.operand}={result}")
        value = result
    return "\n".join([*lines, f"\\boxed{{{value}}}"])


def check_steps(prompt: str, response: str) -> list[bool]:
    """Whether each line of the response is correct: one flag for each step, then one for the answer.

    A step is correct if it applies the next operation of the prompt, starts from the result of the previous
    line (from the prompt's first number in the first line) and computes its own result correctly. So a step
    that continues from a wrong result can itself be correct. The answer is correct if it is the result of the
    last step. Missing or unreadable lines are wrong, and so is the line after one; lines after the answer make
    the answer wrong.

    >>> check_steps("7 +5 *3 mod 10:", "7+5=3\\n3*3=9\\n\\\\boxed{9}")
    [False, True, True]
    """
    problem = parse_prompt(prompt)
    step_count = len(problem.operations)
    lines = response.split("\n")
    flags = []
    value: int | None = problem.start
    for index, operation in enumerate(problem.operations):
        matched = STEP_PATTERN.fullmatch(lines[index]) if index < len(lines) else None
        if matched is None:
            flags.append(False)
            value = None
            continue
        left, sign, operand, result = matched.groups()
        flags.append(
            value == int(left)
            and operation == (sign, int(operand))
            and int(result) == apply_operation(int(left), operation, problem.modulus)
        )
        value = int(result)
    answer = ANSWER_PATTERN.fullmatch("\n".join(lines[step_count:]))
    flags.append(answer is not None and int(answer[1]) == value)
    return flags


def first_wrong_step(prompt: str, response: str) -> int | None:
    """The index of the first wrong line of the response, None if every line is correct.

    Lines are counted from 0; an index equal to the number of operations means the answer line.

    >>> first_wrong_step("7 +5 *3 mod 10:", "7+5=2\\n2*3=7\\n\\\\boxed{7}")
    1
    """
    flags = check_steps(prompt, response)
    return flags.index(False) if False in flags else None


def draw_distinct(generator: random.Random, count: int, steps: int, modulus: int) -> list[Problem]:
    """`count` different problems."""
    problems: dict[Problem, None] = {}  # a dictionary keeps the order, so that the seed decides everything
    while len(problems) < count:
        problems[draw_problem(generator, steps, modulus)] = None
    return list(problems)


def count_problems(steps: int, modulus: int) -> int:
    """How many different problems there are."""
    return int(modulus * (8 + 8 + len(multipliers(modulus))) ** steps)


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer with one token for each byte (so for each ASCII character), no merges and no unknown text.

    Token ids are the byte values; the end-of-sequence token is 256, padding 257. The class is Qwen2's,
    because AutoTokenizer opens every directory that holds a Qwen2 model with that class.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    # ByteLevel writes each byte as one printable character, in an order of its own: the printable bytes
    # stand for themselves, the others take the characters from U+0100 on.
    printable = [byte for byte in range(256) if chr(byte) in ByteLevel.alphabet()]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    vocabulary = {characters[byte]: byte for byte in range(256)}
    vocabulary |= {EOS_TOKEN: 256, PAD_TOKEN: 257}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=1024,
    )


def write_jsonl(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prompt_row(problem: Problem) -> dict[str, str]:
    """A row of train.jsonl or heldout.jsonl."""
    return {
        "prompt": write_prompt(problem),
        "answer": str(solve(problem)),
        "data_source": "arithmetic",
        "ability": "math",
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6, help="operations in a prompt (default: 6)")
    parser.add_argument("--modulus", type=int, default=10, help="modulus of every result (default: 10)")
    parser.add_argument(
        "--slips",
        choices=("uniform", "fact"),
        default="uniform",
        help="uniform: every step of a demonstration is wrong with the same probability; fact: some facts are mostly "
        "wrong, always in the same way (default: uniform)",
    )
    parser.add_argument(
        "--wrong-share",
        type=float,
        help="share of wrong steps in demonstrations; with --slips fact, of those whose fact is not a wrong belief "
        "(default: 0.2; with --slips fact 0.01)",
    )
    parser.add_argument("--beliefs", type=float, default=0.1, help="share of facts with a wrong belief (default: 0.1)")
    parser.add_argument(
        "--belief-share", type=float, default=0.6, help="how often a wrong belief is followed (default: 0.6)"
    )
    parser.add_argument("--train", type=int, default=4096, help="prompts in train.jsonl (default: 4096)")
    parser.add_argument("--heldout", type=int, default=256, help="prompts in heldout.jsonl (default: 256)")
    parser.add_argument("--demonstrations", type=int, default=20000, help="demonstrations (default: 20000)")
    options = parser.parse_args(arguments)
    if options.wrong_share is None:
        options.wrong_share = 0.2 if options.slips == "uniform" else 0.01
    if options.steps < 1 or options.modulus < 2:
        parser.error("--steps must be at least 1, --modulus at least 2")
    if not all(0 <= share <= 1 for share in (options.wrong_share, options.beliefs, options.belief_share)):
        parser.error("--wrong-share, --beliefs and --belief-share must be between 0 and 1")
    if min(options.train, options.heldout, options.demonstrations) < 1:
        parser.error("--train, --heldout and --demonstrations must be at least 1")
    count = options.train + options.heldout + options.demonstrations
    if count > count_problems(options.steps, options.modulus) // 2:
        parser.error(f"{count} different prompts are too many for these --steps and --modulus")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    generator = random.Random(options.seed)
    count = options.train + options.heldout + options.demonstrations
    problems = draw_distinct(generator, count, options.steps, options.modulus)
    train, rest = problems[: options.train], problems[options.train :]
    heldout, demonstrated = rest[: options.heldout], rest[options.heldout :]

    beliefs = {}
    if options.slips == "fact":
        beliefs = draw_beliefs(random.Random(f"beliefs {options.seed}"), options.modulus, options.beliefs)
    slips = Slips(options.wrong_share, beliefs, options.belief_share)

    options.out_dir.mkdir(parents=True, exist_ok=True)
    write_jsonl(options.out_dir / "train.jsonl", map(prompt_row, train))
    write_jsonl(options.out_dir / "heldout.jsonl", map(prompt_row, heldout))
    demonstrations = [
        {
            "prompt": write_prompt(problem),
            "response": write_demonstration(generator, problem, slips),
        }
        for problem in demonstrated
    ]
    write_jsonl(options.out_dir / "demonstrations.jsonl", demonstrations)
    make_tokenizer().save_pretrained(options.out_dir / "tokenizer")
    print(
        f"{options.out_dir}: {len(train)} training prompts, {len(heldout)} held-out prompts, "
        f"{len(demonstrations)} demonstrations, tokenizer",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
