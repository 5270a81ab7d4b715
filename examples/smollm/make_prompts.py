"""Writes prompts that a small instruction model can learn from: training and held-out ones, as JSON lines.

    python examples/smollm/make_prompts.py addition DIRECTORY
    python examples/smollm/make_prompts.py letter_counting DIRECTORY

The first task is to add two numbers of two digits. Any other name is that of a generator in the package reasoning-gym
(Apache-2.0), whose questions, answers and verifier are used as they are: see verifier.py beside this file.

A prompt is a conversation: a system message, two examples, and the question. Without examples the model rambles; with
the system message that its template would put first, prompts are longer. No question is in both files, and none is an
example.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ADDITION = "addition"
EXAMPLES = 2


class Question(NamedTuple):
    """A question of a task.

    text: what the model is asked.
    reply: what an example replies.
    truth: what the verifier compares a response with.
    """

    text: str
    reply: str
    truth: str


def additions(seed: int) -> Iterator[Question]:
    """Sums of two numbers of two digits, without end.

    >>> next(additions(seed=0))
    Question(text='59 + 63 =', reply='59 + 63 = 122', truth='122')
    """
    drawn = random.Random(seed)
    while True:
        first, second = drawn.randint(10, 99), drawn.randint(10, 99)
        yield Question(f"{first} + {second} =", f"{first} + {second} = {first + second}", str(first + second))


def generated(name: str, seed: int) -> Iterator[Question]:
    """The questions of a generator of reasoning-gym, with all that its verifier needs as the truth."""
    try:
        import reasoning_gym
    except ImportError:
        sys.exit("reasoning-gym is not installed: pip install reasoning-gym")
    try:
        entries = reasoning_gym.create_dataset(name, size=1_000_000, seed=seed)
    except ValueError as error:
        sys.exit(f"make_prompts.py: {error}")
    for number in range(len(entries)):
        entry: dict[str, Any] = entries[number]
        yield Question(entry["question"], entry["answer"], json.dumps(entry, default=str))


def write_prompts(task: str, directory: Path, *, train: int, heldout: int, seed: int) -> None:
    """Writes DIRECTORY/train.jsonl and DIRECTORY/heldout.jsonl with this many prompts."""
    questions = additions(seed) if task == ADDITION else generated(task, seed)
    chosen: dict[str, Question] = {}
    while len(chosen) < EXAMPLES + train + heldout:
        question = next(questions)
        chosen.setdefault(question.text, question)
    examples, rest = list(chosen.values())[:EXAMPLES], list(chosen.values())[EXAMPLES:]
    opening = [{"role": "system", "content": "You give short answers."}]
    for example in examples:
        opening += [{"role": "user", "content": example.text}, {"role": "assistant", "content": example.reply}]
    directory.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rest[:train]), ("heldout", rest[train:])):
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for question in part:
                messages = [*opening, {"role": "user", "content": question.text}]
                row = {"prompt": messages, "answer": question.truth, "data_source": task}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--train", type=int, default=1024, help="prompts to train on (default: 1024)")
    parser.add_argument("--heldout", type=int, default=160, help="held-out prompts (default: 160)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_prompts(options.task, options.directory, train=options.train, heldout=options.heldout, seed=options.seed)


if __name__ == "__main__":
    main()
