"""The arithmetic example: the task's files, its checks of steps, its tokenizer, and training on them."""

import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "arithmetic"


def load_script(name: str) -> ModuleType:
    """Import one file of the example, which is no package."""
    qualified_name = f"arithmetic_{name}"
    if qualified_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(qualified_name, EXAMPLE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[qualified_name] = module
        spec.loader.exec_module(module)
    return sys.modules[qualified_name]


make_task = load_script("make_task")
sft = load_script("sft")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recompute(prompt: str) -> int:
    """The answer, with Python's own arithmetic on nested brackets; the modulus is taken once, at the end."""
    problem, modulus = prompt.removesuffix(":").split(" mod ")
    start, *operations = problem.split(" ")
    expression = start
    for operation in operations:
        expression = f"({expression}){operation}"
    return int(eval(expression)) % int(modulus)


def response_lines(prompt: str, results: list[int]) -> list[str]:
    """Step lines that end in the given results, each carrying on from the one before, and the answer."""
    start, *operations = prompt.split(" mod ")[0].split(" ")
    lefts = [int(start), *results]
    lines = [f"{left}{operation}={result}" for left, operation, result in zip(lefts, operations, results, strict=False)]
    return [*lines, f"\\boxed{{{results[-1]}}}"]


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("arithmetic") / "task"
    make_task.main([str(out_dir), "--train", "200", "--heldout", "50", "--demonstrations", "2000"])
    return out_dir


def test_the_same_seed_writes_the_same_files(task_dir: Path, tmp_path: Path) -> None:
    sizes = ["--train", "200", "--heldout", "50", "--demonstrations", "2000"]
    make_task.main([str(tmp_path / "same"), *sizes])
    make_task.main([str(tmp_path / "other"), *sizes, "--seed", "1"])
    for name in ("train.jsonl", "heldout.jsonl", "demonstrations.jsonl"):
        content = (task_dir / name).read_bytes()
        assert (tmp_path / "same" / name).read_bytes() == content
        assert (tmp_path / "other" / name).read_bytes() != content


def test_rows_have_the_columns_and_numbers_asked_for(task_dir: Path) -> None:
    for name, count in (("train", 200), ("heldout", 50)):
        rows = read_jsonl(task_dir / f"{name}.jsonl")
        assert len(rows) == count
        for row in rows:
            assert set(row) == {"prompt", "answer", "data_source", "ability"}
            assert (row["data_source"], row["ability"]) == ("arithmetic", "math")
    demonstrations = read_jsonl(task_dir / "demonstrations.jsonl")
    assert len(demonstrations) == 2000
    assert all(set(row) == {"prompt", "response"} for row in demonstrations)


@pytest.mark.parametrize(("steps", "modulus"), [(6, 10), (3, 23), (8, 7)])
def test_answers_are_right(tmp_path: Path, steps: int, modulus: int) -> None:
    sizes = ["--train", "300", "--heldout", "20", "--demonstrations", "20"]
    make_task.main([str(tmp_path), *sizes, "--steps", str(steps), "--modulus", str(modulus)])
    for row in read_jsonl(tmp_path / "train.jsonl"):
        assert row["answer"] == str(recompute(row["prompt"]))
        assert len(row["prompt"].split()) == 1 + steps + 2


def test_no_prompt_is_in_two_files(task_dir: Path) -> None:
    names = ("train", "heldout", "demonstrations")
    prompts = [row["prompt"] for name in names for row in read_jsonl(task_dir / f"{name}.jsonl")]
    assert len(set(prompts)) == len(prompts) == 2250


@pytest.mark.parametrize("wrong_share", [0.0, 0.2, 1.0])
def test_the_share_of_wrong_steps_is_the_one_set(tmp_path: Path, wrong_share: float) -> None:
    sizes = ["--train", "1", "--heldout", "1", "--demonstrations", "2000"]
    make_task.main([str(tmp_path), *sizes, "--wrong-share", str(wrong_share)])
    flags: list[bool] = []
    for row in read_jsonl(tmp_path / "demonstrations.jsonl"):
        *steps, answer = make_task.check_steps(row["prompt"], row["response"])
        assert answer
        flags += steps
    assert len(flags) == 12_000
    # Four standard deviations of the share among 12,000 independent steps: 0.015 at a share of 0.2.
    deviation = (wrong_share * (1 - wrong_share) / len(flags)) ** 0.5
    assert flags.count(False) / len(flags) == pytest.approx(wrong_share, abs=4 * deviation)


def test_slips_that_depend_on_the_fact(tmp_path: Path) -> None:
    sizes = ["--train", "1", "--heldout", "1", "--demonstrations", "4000", "--steps", "16"]
    make_task.main([str(tmp_path), *sizes, "--slips", "fact"])
    results: dict[tuple[str, str], Counter[int]] = {}
    for row in read_jsonl(tmp_path / "demonstrations.jsonl"):
        modulus = int(row["prompt"].removesuffix(":").split()[-1])
        for line in row["response"].split("\n")[:-1]:
            fact, result = line.split("=")
            right = int(eval(fact)) % modulus
            results.setdefault((fact, str(right)), Counter())[int(result)] += 1
    assert len(results) == 190
    wrong = {fact: 1 - counts[int(fact[1])] / counts.total() for fact, counts in results.items()}
    believed = {fact for fact, share in wrong.items() if share > 0.3}
    assert 10 <= len(believed) <= 30  # 19 of 190, give or take 2.7 standard deviations
    for fact, share in wrong.items():
        counts = results[fact]
        expected = 0.6 if fact in believed else 0.01
        deviation = (expected * (1 - expected) / counts.total()) ** 0.5
        assert abs(share - expected) < 4.5 * deviation + 1e-9
        assert len(counts) == 2 or fact not in believed  # always the same wrong result


def test_one_wrong_step_always_makes_the_answer_wrong() -> None:
    generator = random.Random(3)
    for _ in range(300):
        problem = make_task.draw_problem(generator, 6, 10)
        prompt = make_task.write_prompt(problem)
        right = make_task.write_demonstration(generator, problem, make_task.Slips(0.0))
        assert make_task.first_wrong_step(prompt, right) is None
        assert right.endswith(f"\n\\boxed{{{recompute(prompt)}}}")

        wrong_index = generator.randrange(6)
        results = [int(line.split("=")[1]) for line in right.split("\n")[:wrong_index]]
        value = results[-1] if results else problem.start
        for index in range(wrong_index, 6):
            value = make_task.apply_operation(value, problem.operations[index], 10)
            if index == wrong_index:
                value = (value + generator.randrange(1, 10)) % 10
            results.append(value)
        wrong = "\n".join(response_lines(prompt, results))
        assert make_task.first_wrong_step(prompt, wrong) == wrong_index
        assert make_task.check_steps(prompt, wrong).count(False) == 1
        assert results[-1] != recompute(prompt)


PROMPT = "7 +5 *3 -2 mod 10:"


@pytest.mark.parametrize(
    ("response", "flags"),
    [
        ("7+5=2\n2*3=6\n6-2=4\n\\boxed{4}", [True, True, True, True]),
        ("7+5=2\n2*3=7\n7-2=5\n\\boxed{5}", [True, False, True, True]),
        ("7+5=1\n1*3=4\n4-2=2\n\\boxed{2}", [False, False, True, True]),
        ("7+5=2\n2*3=6\n6-2=4\n\\boxed{5}", [True, True, True, False]),
        ("7+5=2\n2*3=6\n6-2=4\n\\boxed{4}\n", [True, True, True, False]),
        ("7+5=2\n2*3=6\n6-2=4", [True, True, True, False]),
        ("7+5=2\n2*3=6\n\\boxed{6}", [True, True, False, False]),
        ("7+5=2\n3*3=9\n9-2=7\n\\boxed{7}", [True, False, True, True]),
        ("7+5=2\n2*4=8\n8-2=6\n\\boxed{6}", [True, False, True, True]),
        ("7+5=2\n2+3=5\n5-2=3\n\\boxed{3}", [True, False, True, True]),
        ("7+5=12\n2*3=6\n6-2=4\n\\boxed{4}", [False, False, True, True]),
        ("7+5=2\n2*3=\n6-2=4\n\\boxed{4}", [True, False, False, True]),
        ("", [False, False, False, False]),
    ],
)
def test_check_steps_by_hand(response: str, flags: list[bool]) -> None:
    assert make_task.check_steps(PROMPT, response) == flags
    expected = flags.index(False) if False in flags else None
    assert make_task.first_wrong_step(PROMPT, response) == expected


def test_check_steps_refuses_a_foreign_prompt() -> None:
    with pytest.raises(ValueError, match="not an arithmetic prompt"):
        make_task.check_steps("What is 7 + 5?", "12")


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--wrong-share", "1.5"], ["--steps", "1"]])
def test_make_task_refuses_what_cannot_be(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_task.main([str(tmp_path / "task"), *arguments])
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "task").exists()


def test_tokenizer_gives_back_every_text(task_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task_dir / "tokenizer")
    texts = [row["prompt"] + row["response"] for row in read_jsonl(task_dir / "demonstrations.jsonl")[:50]]
    texts += ["".join(map(chr, range(128))), "  don't , you .\n\n\tsee ?  ", "12·3 ≡ 6, né"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, 256, 257], skip_special_tokens=True) == text
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id) == (258, 256, 257)
    assert tokenizer(make_task.EOS_TOKEN)["input_ids"] == [256]


def test_collate_labels_the_response_only() -> None:
    batch = [sft.Demonstration([1, 2, 3], [4, 256]), sft.Demonstration([5], [6, 256])]
    input_ids, labels = sft.collate(batch, pad_token_id=257)
    assert input_ids.tolist() == [[1, 2, 3, 4, 256], [5, 6, 256, 257, 257]]
    assert labels.tolist() == [[-100, -100, -100, 4, 256], [-100, 6, 256, -100, -100]]


def test_batches_go_through_all_demonstrations_before_they_repeat() -> None:
    demonstrations = [sft.Demonstration([index], [256]) for index in range(10)]
    drawn = [row.prompt_ids[0] for batch in sft.draw_batches(demonstrations, batch_size=4, steps=5) for row in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [sft.learning_rate_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert 0 < factors[-1] < 0.01


@pytest.fixture
def train_few_steps(task_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs sft.py for three steps with a seed, in the threads that the other tests have."""
    import torch

    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)

    def run(out_dir: Path, seed: int = 0) -> None:
        sft.main([str(task_dir), str(out_dir), "--steps", "3", "--batch", "8", "--seed", str(seed)])

    return run


def test_sft_writes_a_directory_that_loads(
    train_few_steps: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    train_few_steps(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert "247008 parameters, loss " in capsys.readouterr().err.splitlines()[-1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer(PROMPT)["input_ids"]) == PROMPT
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == tokenizer.eos_token_id
    prompt_ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]  # (1, T)
    assert torch.isfinite(model(input_ids=prompt_ids).logits).all()


def test_sft_gives_the_same_weights_for_the_same_seed(train_few_steps: Any, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train_few_steps(tmp_path / name, seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other")}
    assert weights["one"] == weights["same"]
    assert weights["one"] != weights["other"]


def test_sft_lowers_the_loss(task_dir: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(task_dir / "tokenizer")
    demonstrations = sft.read_demonstrations(task_dir / "demonstrations.jsonl", tokenizer)
    model = sft.make_model(tokenizer, layers=1, width=48)
    loss = sft.train(model, demonstrations, tokenizer.pad_token_id, steps=40, batch_size=16, lr=1e-2)
    # The loss begins above log(258) = 5.6; knowing which characters come at all takes it under log(18).
    assert loss < 2.5


def test_sft_says_in_one_line_what_is_missing(
    task_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sft.main([str(tmp_path / "nowhere"), str(tmp_path / "model")])
    assert "nowhere/demonstrations.jsonl does not exist" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit, match="2"):
        sft.main([str(task_dir), str(tmp_path)])
    assert "exists already" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
