"""The GPU check on the CPU: it runs, it survives its parts, and what it writes is what it says."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from primecli.models.attention import attend
from tests.gpu import check, part_choices, pipe
from tests.gpu.context import ROOT
from tests.gpu.part_choices import Ragged
from tests.gpu.result import Entry, Report, problems


def run_check(directory: Path, *options: str, make: bool = False) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Runs the script, by `make gpu-check` or directly; what it printed, and the result, which is checked."""
    path = directory / "result.json"
    arguments = ["--device", "cpu", "--tiny", "--json", str(path), *options]
    command = [sys.executable, "tests/gpu/check.py", *arguments]
    if make:
        command = ["make", "--silent", "gpu-check", f"PYTHON={sys.executable}", f"ARGS={' '.join(arguments)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    result = json.loads(path.read_text())
    assert problems(result) == []
    return done, result


def test_every_part_runs_on_the_cpu(tmp_path: Path) -> None:
    done, result = run_check(tmp_path, make=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [part["name"] for part in result["parts"]] == list(check.PARTS)
    assert [line.split(" (")[0] for line in done.stdout.splitlines()] == [f"{name}: ok" for name in check.PARTS]
    found = {part["name"]: part for part in result["parts"]}
    assert all(part["figures"] for name, part in found.items() if name != "memory")
    assert {"prm: the checkpoint is resumed", "stages are forked under warm"} <= set(found["pipeline"]["checks"])
    assert found["memory"]["notes"] == ["everything skipped: there is no GPU whose memory could be taken"]
    names = set(found["fast"]["figures"])
    for stage in ("bare scoring", "score-prm", "bare update", "update-policy", "update-prm"):
        assert f"{stage}: utilization" in names


def test_a_part_that_hangs_or_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    done, result = run_check(tmp_path, "--only", "hang", "raise", "crash", "miss", "fine")
    assert done.returncode == 1
    found = {part["name"]: part for part in result["parts"]}
    statuses = {name: part["status"] for name, part in found.items()}
    assert statuses == {"hang": "timed out", "raise": "failed", "crash": "failed", "miss": "failed", "fine": "ok"}
    lines = [line.split(" (")[0] for line in done.stdout.splitlines()]
    assert lines == [
        "hang: timed out after 3 s",
        "raise: failed: ValueError: it raised",
        "crash: failed: ended with code -11",
        "miss: failed: small: 2.0, not <= 1",
        "fine: ok",
    ]
    assert all(part["figures"]["before"]["value"] == 1.0 for part in found.values()), "what was found before stays"
    assert "it raised\non two lines" in found["raise"]["error"]
    (stray,) = (note.split()[1] for note in found["hang"]["notes"])
    status = Path("/proc", stray, "stat")  # it may stand there until its parent's parent looks after it
    assert not status.exists() or status.read_text().split()[2] == "Z"


def test_a_part_gets_no_more_than_is_left_of_the_budget(tmp_path: Path) -> None:
    done, result = run_check(tmp_path, "--only", "fine", "--budget", "1")
    (part,) = result["parts"]
    assert (done.returncode, part["status"], part["error"]) == (1, "skipped", "1 s of the budget were left")


def test_the_parts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(check.PARTS)


def test_problems_are_found_in_a_result(tmp_path: Path) -> None:
    report = Report(tmp_path / "report")
    report.figure("odd", float("nan"), "s")
    report.at_most("never", float("nan"), 1.0)
    assert report.notes == ["odd is nan"]
    assert (report.checks["never"].ok, report.checks["never"].value) == (False, "nan")
    _, result = run_check(tmp_path, "--only", "fine")
    for change, problem in (
        ({"version": 2}, "result.version: 2 is not 1"),
        ({"budget": "long"}, "result.budget: 'long' is not a float"),
        ({"device": None}, "result.device: None is not a str"),
        ({"more": 1}, "result: more is unknown"),
        ({"parts": [{}]}, "result.parts[0]: name is missing"),
        ({"parts": [{**result["parts"][0], "status": "good"}]}, "result.parts[0].status: 'good' is none of"),
        ({"parts": [{**result["parts"][0], "checks": {"a": {}}}]}, "result.parts[0].checks.a: ok is missing"),
    ):
        assert any(text.startswith(problem) for text in problems({**result, **change})), (change, problem)
    assert problems([]) == ["result: not an object"]


def test_an_entry_in_one_line() -> None:
    entry = Entry("fast", "failed", 12.4, 100.0, error="a\nb")
    assert entry.line() == "fast: failed: a (12 s, 0 figures, 0 checks)"


def test_what_is_held_between_stages() -> None:
    gib = 2**30
    stamps = {"generate": {"first": 3.0, "end": 10.0}, "update-prm": {"first": 20.0, "end": 20.1}}
    stamps["score-prm"] = {"first": 30.0, "end": 31.0}
    held = {0.0: 0, 9.0: 5, 10.2: 1, 11.0: 8, 19.8: 8, 20.3: 7, 25.0: 3, 31.1: 0}
    samples = [[moment, (2 + used) * gib] for moment, used in held.items()]
    timeline = {"before": 2 * gib, "after": 2 * gib, "stamps": stamps, "samples": samples}
    assert pipe.between_stages(timeline) == {"generate": (5, 1), "update-prm": (8, 7), "score-prm": (8, 0)}


def heads(rows: Ragged) -> list[torch.Tensor]:
    """Queries of four heads, keys and values of two."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, number, rows.starts[-1], 8, generator=generator) for number in (4, 2, 2)]


ROWS = [part_choices.ragged(90, (3, 12)), part_choices.ragged(90, (3, 12), prompt=7, samples=3)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rows", ROWS, ids=["separate", "shared prompts"])
def test_flex_attention_sees_what_attention_by_pieces_sees(rows: Ragged) -> None:
    query, key, value = heads(rows)
    with torch.no_grad():
        expected = attend(torch.nn.Identity(), query, key, value, None, segments=rows.segments)[0]
        found = part_choices.flex(rows, query, key, value, gpu=False)()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def reference_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_starts: Any, key_starts: Any
) -> torch.Tensor:
    """Causal attention, sequence by sequence: (T, H, d), (S, H, d). The last query of each sees all of its keys."""
    pieces = []
    spans = zip(query_starts[:-1], query_starts[1:], key_starts[:-1], key_starts[1:], strict=True)
    for first, last, key_first, key_last in spans:
        queries, keys, values = (
            tensor.transpose(0, 1) for tensor in (query[first:last], key[key_first:key_last], value[key_first:key_last])
        )
        sees = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - queries.shape[1])
        output = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, sees, enable_gqa=True)
        pieces.append(output.transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("rows", ROWS, ids=["separate", "shared prompts"])
@pytest.mark.parametrize("older", [False, True])
def test_varlen_attention_sees_what_attention_by_pieces_sees(
    rows: Ragged, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def newer(query: Any, key: Any, value: Any, starts: Any, key_starts: Any, most: int, most_keys: int, *,
              window_size: Any, enable_gqa: bool = False) -> torch.Tensor:  # fmt: skip
        assert (window_size, enable_gqa) == ((-1, 0), True)
        return reference_varlen(query, key, value, starts, key_starts)

    def first(query: Any, key: Any, value: Any, starts: Any, key_starts: Any, most: int, most_keys: int,
              is_causal: bool = False) -> torch.Tensor:  # fmt: skip
        assert is_causal
        assert query.shape[1] == key.shape[1], "it knows no shared keys"
        return reference_varlen(query, key, value, starts, key_starts)

    monkeypatch.setattr(varlen, "varlen_attn", first if older else newer)
    assert "query" in inspect.signature(varlen.varlen_attn).parameters
    query, key, value = heads(rows)
    expected = attend(torch.nn.Identity(), query, key, value, None, segments=rows.segments)[0]
    torch.testing.assert_close(part_choices.varlen(rows, query, key, value)(), expected, atol=1e-5, rtol=1e-5)
