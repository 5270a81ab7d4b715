from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from primecli.commands.report import report
from primecli.shards import parquet
from tests.made_runs import make_byte_tokenizer, make_run
from tests.report.reading import page_columns, page_json


def test_a_complete_page_is_written_and_announced(tmp_path: Path, primecli: Any) -> None:
    result = primecli("report", make_run(tmp_path / "run"), "--out", tmp_path / "deep" / "report.html")
    page = tmp_path / "deep" / "report.html"
    assert result.paths == []
    assert f"1 run, {page.stat().st_size / 1000:.0f} kB -> {page}" in result.err
    assert page.read_text().startswith("<!doctype html>")
    assert page.read_text().rstrip().endswith("</html>")
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]


def test_the_page_refers_to_no_outside_address(tmp_path: Path, primecli: Any) -> None:
    primecli("report", make_run(tmp_path / "run"), "--out", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for scheme in ("http:", "https:", "//cdn", "@import", "url("):
        assert scheme not in text.replace("http://www.w3.org/2000/svg", ""), scheme


def test_a_report_is_overwritten_but_another_file_is_not(tmp_path: Path, primecli: Any) -> None:
    run, page = make_run(tmp_path / "run"), tmp_path / "report.html"
    primecli("report", run, "--out", page)
    primecli("report", run, "--out", page, "--quiet")
    page.write_text("<!doctype html> my own")
    refused = primecli("report", run, "--out", page, check=False)
    assert (refused.code, "exists and is not a report in this format" in refused.line()) == (1, True)
    assert page.read_text() == "<!doctype html> my own"
    primecli("report", run, "--out", page, "--force", "--quiet")
    assert "primecli report" in page.read_text()
    notes = tmp_path / "notes.md"
    primecli("report", run, "--format", "md", "--out", notes, "--quiet")
    primecli("report", run, "--format", "md", "--out", notes, "--quiet")
    refused = primecli("report", run, "--out", notes, check=False)  # a page over Markdown
    assert (refused.code, "exists and is not a report in this format" in refused.line()) == (1, True)


def test_markdown_goes_to_stdout(tmp_path: Path, primecli: Any) -> None:
    result = primecli("report", make_run(tmp_path / "run"), "--format", "md")
    assert str(result.paths[0]) == "<!-- primecli report -->"
    assert result.err == ""


def test_runs_get_distinct_names(tmp_path: Path, primecli: Any) -> None:
    runs = [make_run(tmp_path / name / "loop", iterations=1) for name in ("a", "b")]
    primecli("report", *runs, f"mine={make_run(tmp_path / 'c', iterations=1)}", "--out", tmp_path / "report.html")
    assert [run["name"] for run in page_json(tmp_path / "report.html")["runs"]] == [str(runs[0]), str(runs[1]), "mine"]


def test_a_run_given_twice_is_a_usage_error(tmp_path: Path, primecli: Any) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    result = primecli("report", run, f"other={run}", check=False)
    assert (result.code, "is given twice" in result.line()) == (2, True)


@pytest.mark.parametrize("arguments", [["nowhere"], ["."]])
def test_a_path_without_a_run_is_an_input_error(
    arguments: list[str], tmp_path: Path, primecli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = primecli("report", *arguments, check=False)
    assert result.code == 3
    assert result.line().startswith(f"primecli report: {arguments[0]}: no ")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_summary_is_reported_on_stderr_and_in_the_page(tmp_path: Path, primecli: Any) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    (run / "2" / "verify" / "_summary.json").write_text("{")
    result = primecli("report", run, "--out", tmp_path / "report.html")
    assert "2/verify/_summary.json: is not JSON" in result.err
    assert any("2/verify/_summary.json" in note for note in page_json(tmp_path / "report.html")["notes"])


def test_a_missing_tokenizer_is_reported_and_can_be_named(tmp_path: Path, primecli: Any) -> None:
    run = make_run(tmp_path / "run", iterations=1, response="Zero")
    unnamed = primecli("report", run, "--out", tmp_path / "report.html")
    assert "no tokenizer for" in unnamed.err
    assert "name one with --tokenizer" in unnamed.err
    tokenizer = make_byte_tokenizer(tmp_path / "tokenizer")
    wrong = primecli("report", run, "--out", tmp_path / "report.html", "--tokenizer", tokenizer)
    assert "20 responses are shown as text: the tokenizer does not spell them" in wrong.err
    assert page_columns(tmp_path / "report.html")["spelled"].sum() == 0
    missing = primecli("report", run, "--out", tmp_path / "report.html", "--tokenizer", tmp_path, check=False)
    assert (missing.code, "no tokenizer.json" in missing.line()) == (3, True)


def test_a_directory_as_target_is_a_usage_error(tmp_path: Path, primecli: Any) -> None:
    result = primecli("report", make_run(tmp_path / "run", iterations=1), "--out", tmp_path, check=False)
    assert (result.code, "is a directory" in result.line()) == (2, True)


def test_the_help_page_explains_the_layout_of_a_run() -> None:
    page = report.__doc__ or ""
    for word in ("_summary.json", "iteration", "eval", "heldout"):
        assert word in page


@pytest.mark.parametrize("damage", ["cut off", "a page"])
def test_a_damaged_shard_is_named_and_the_rest_is_shown(tmp_path: Path, primecli: Any, damage: str) -> None:
    run = make_run(tmp_path / "loop", iterations=2)
    (shard,) = (run / "2" / "compute-advantages").glob("*.parquet")
    table = parquet.read_table(shard)
    parquet.write_shard(shard, table, fingerprint="f", recipe={}, counts={}, provenance=[])
    content = bytearray(shard.read_bytes())
    if damage == "cut off":
        del content[-20:]
    else:
        start = pq.read_metadata(shard).row_group(0).column(table.column_names.index("response")).data_page_offset
        content[start + 40] ^= 1
    shard.write_bytes(content)
    page = tmp_path / "report.html"
    result = primecli("report", run, "--out", page)
    assert f"{shard}: a truncated or damaged Parquet file; the page shows the rest" in result.err
    shown = page_json(page)
    assert any(str(shard) in note for note in shown["notes"])
    assert shown["rollouts"]["shown"] > 0
