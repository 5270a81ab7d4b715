"""The report in a browser, compared with the shards, which are read without the page's code."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from primecli.shards import schema
from tests.builders import rollout
from tests.made_runs import make_run, trained_rows, write_stage, write_summary
from tests.report.conftest import make_report
from tests.report.reading import page_json

HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;'
NAME = "<i>one<!--"
COUNT = re.compile(r"^([\d,]+) of")


def count(page: Any) -> int:
    match = COUNT.match(page.inner_text("#count"))
    assert match is not None
    return int(match[1].replace(",", ""))


def first_row(page: Any) -> str:
    return str(page.inner_text("#row-0"))


def shown(value: float) -> str:
    """A number as the page shows it: four significant digits, with a sign, and a real minus."""
    return f"{'−' if value < 0 else '+'}{float(f'{abs(value):.4g}'):g}"


def test_curves_have_axes_and_the_numbers_of_the_summaries(report: Path, browse: Any) -> None:
    page = browse(report)
    assert page.inner_text("h1") == "one"
    charts = {card.get_attribute("data-chart"): card for card in page.query_selector_all(".card")}
    assert {"accuracy", "pair-accuracy", "entropy", "kl", "length", "seconds"} <= set(charts)
    accuracy = charts["accuracy"]
    assert len(accuracy.query_selector_all("polyline")) == 2
    assert "iteration" in accuracy.query_selector("svg.plot").text_content()
    accuracy.query_selector("button.quiet").click()
    cells = [
        [cell.inner_text() for cell in row.query_selector_all("th, td")] for row in accuracy.query_selector_all("tr")
    ]
    assert cells == [
        ["iteration", "eval", "training"],
        ["0", "0.2", ""],
        ["1", "", "0.1"],
        ["2", "", "0.2"],
        ["3", "0.5", "0.3"],
    ]
    assert "Learning rate: policy 0.0001" in page.inner_text("#charts")  # it never changes: listed, not drawn


def test_a_line_is_drawn_to_scale(report: Path, browse: Any) -> None:
    page = browse(report)
    points = page.get_attribute('[data-chart="entropy"] polyline', "points").split()
    heights = [float(point.split(",")[1]) for point in points]
    values = [1.0, 1 / 2, 1 / 3]
    first, second = heights[1] - heights[0], heights[2] - heights[1]
    assert first / second == pytest.approx((values[1] - values[0]) / (values[2] - values[1]), rel=0.02)
    assert first > 0  # falling values go down the page


def test_arrow_keys_move_the_cursor_and_a_legend_entry_hides_its_line(report: Path, browse: Any) -> None:
    page = browse(report)
    chart = page.locator('[data-chart="accuracy"]')
    chart.locator("svg.plot").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert chart.locator(".tip").inner_text().split("\n") == ["iteration 3", "eval 0.5", "training 0.3"]
    chart.get_by_role("button", name="training").click()
    assert chart.locator("polyline").count() == 1
    assert chart.get_by_role("button", name="training").get_attribute("aria-pressed") == "false"


def test_the_axis_can_be_rollouts_or_busy_time(report: Path, browse: Any) -> None:
    page = browse(report)
    page.get_by_role("button", name="rollouts", exact=True).click()
    assert "rollouts" in page.text_content('[data-chart="entropy"] svg.plot')
    chart = page.locator('[data-chart="entropy"]')
    chart.locator("svg.plot").focus()
    page.keyboard.press("ArrowLeft")
    assert chart.locator(".tip").inner_text().startswith("iteration 3")
    page.get_by_role("button", name="busy time").click()
    assert "busy time, minutes" in page.text_content('[data-chart="entropy"] svg.plot')


def test_long_lines_are_smoothed_and_can_be_shown_raw(tmp_path: Path, report: Path, browse: Any) -> None:
    for iteration in range(120):
        metrics = {"accuracy": 0.5 + 0.1 * (-1) ** iteration}
        write_summary(tmp_path / "run" / str(iteration) / "verify", "verify", metrics=metrics)
    page = browse(make_report(tmp_path / "report.html", tmp_path / "run"))

    def spans() -> list[float]:
        lines = page.locator('[data-chart="accuracy"] polyline').evaluate_all(
            "lines => lines.map((line) => line.getAttribute('points'))"
        )
        heights = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
        return [max(line) - min(line) for line in heights]

    raw, smoothed = spans()
    assert smoothed < raw / 3
    page.click("#smooth")
    assert spans() == [raw]
    assert browse(report).locator("#smooth").count() == 0


def test_rollouts_sort_by_reward(run: Path, report: Path, browse: Any) -> None:
    page = browse(report)
    sums = sorted(sum(row[schema.PROCESS_REWARDS]) for row in trained_rows(run))
    page.select_option("#order", "sum")
    assert shown(sums[0]) in first_row(page)
    page.click("#direction")
    assert shown(sums[-1]) in first_row(page)
    page.select_option("#order", "disagreement")
    worst = max(
        trained_rows(run),
        key=lambda row: abs(1 / (1 + math.exp(-sum(row[schema.PROCESS_REWARDS]))) - row[schema.OUTCOME_REWARD]),
    )
    assert shown(sum(worst[schema.PROCESS_REWARDS])) in first_row(page)
    assert count(page) == 52  # those without a reward come last


def test_a_row_shows_question_and_response(tmp_path: Path, browse: Any) -> None:
    prompts = [f"<|im_start|>user\nWhat is {n} + 1?<|im_end|>\n<|im_start|>assistant\n" for n in range(2)]
    rows = [
        rollout(group, index, 2, prompt=prompts[group], response=f"It is {group + 1}.")
        for group in range(2)
        for index in range(2)
    ]
    write_stage(tmp_path / "sums" / "run" / "1" / "verify", rows)
    page = browse(make_report(tmp_path / "report.html", tmp_path / "sums" / "run"))
    assert page.locator("#row-0 .snippet").all_inner_texts() == ["What is 0 + 1?", "It is 1."]
    assert "sums" in page.title()


def test_filters_and_search_select_rollouts(run: Path, report: Path, browse: Any) -> None:
    page = browse(report)
    rows = trained_rows(run)
    page.select_option("#filter-purpose", label="training (48)")
    page.select_option("#filter-dropped", label="kept (40)")
    page.select_option("#filter-verdict", label=page.locator("#filter-verdict option", has_text="wrong").inner_text())
    assert count(page) == sum(row[schema.VERDICT] == "wrong" for row in rows)
    page.select_option("#filter-iteration", "2")
    assert count(page) == sum(row[schema.VERDICT] == "wrong" and row[schema.GROUP_ID].startswith("p2") for row in rows)
    page.click("#clear")
    assert count(page) == 52
    page.fill("#search", "P203@203")
    page.locator("#count", has_text="4 of 52").wait_for()
    page.fill("#search", "nothing matches this")
    page.locator("#count", has_text="0 of 52").wait_for()
    assert page.locator(".row").count() == 0


def test_a_rollout_opens_with_coloured_tokens(spelled: Path, browse: Any) -> None:
    page = browse(spelled)
    page.locator(".row").nth(5).click()
    original = trained_rows(spelled.parent / "run")[5]
    rewards = original[schema.PROCESS_REWARDS]
    tokens = page.locator(".tokens [data-token]")
    assert "".join(tokens.all_text_contents()).replace("↵", "") == original[schema.RESPONSE] + "<eos>"
    assert [tokens.first.text_content(), tokens.last.text_content()] == [original[schema.RESPONSE][0], "<eos>"]
    page.select_option(".controls select >> nth=1", "rollout")
    lowest, highest = rewards.index(min(rewards)), rewards.index(max(rewards))
    sign = "strong-minus" if -rewards[lowest] > rewards[highest] else "strong-plus"
    strongest = lowest if sign == "strong-minus" else highest
    assert sign in tokens.nth(strongest).get_attribute("class")
    tokens.nth(strongest).hover()
    readout = page.inner_text(".readout")
    assert f"token {strongest + 1} of {len(rewards)}" in readout
    assert f"process reward {shown(rewards[strongest])}" in readout  # the largest value is exact
    assert "advantage" in readout
    assert "log-probability −0.5" in readout
    assert page.locator(".bars path").count() == 2
    page.select_option(".controls select >> nth=0", "rollout_logprobs")
    assert page.locator(".bars path.rare").count() == 1


def test_everything_can_be_done_by_keyboard(spelled: Path, browse: Any) -> None:
    page = browse(spelled)
    focused = "document.activeElement.id || document.activeElement.className"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(focused) == "list"
    assert page.get_attribute("#list", "aria-activedescendant") == "row-2"
    assert page.get_attribute("#row-2", "aria-selected") == "true"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "tokens"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in page.inner_text(".readout")
    assert "sample #1" in page.inner_text(".facts")
    page.keyboard.press("]")
    assert "sample #2" in page.inner_text(".facts")
    page.keyboard.press("s")
    verdicts = [re.search(r"correct|wrong", text) for text in page.locator(".side .facts").all_inner_texts()]
    assert {match[0] for match in verdicts if match} == {"correct", "wrong"}
    page.keyboard.press("c")
    assert page.locator(".controls select").first.input_value() == "advantages"
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "list"
    page.keyboard.press("End")
    assert page.get_attribute("#list", "aria-activedescendant") == "row-23"
    page.keyboard.press("/")
    page.keyboard.type("p3@3")
    assert page.evaluate(focused) == "search"
    page.locator("#count", has_text="4 of 24").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog#help").is_visible()


def test_an_address_opens_a_rollout(spelled: Path, browse: Any) -> None:
    page = browse(spelled, fragment="#rollout-7")
    assert page.get_attribute('.row[aria-selected="true"]', "id") == "row-7"
    assert "sample #3" in page.inner_text(".facts")


@pytest.mark.parametrize("compress", ["--compress", "--no-compress"])
def test_text_from_a_model_never_becomes_markup(tmp_path: Path, browse: Any, compress: str) -> None:
    columns: dict[str, Any] = dict.fromkeys(
        (
            schema.PROMPT,
            schema.RESPONSE,
            schema.GROUND_TRUTH,
            schema.EXTRACTED_ANSWER,
            schema.VERDICT,
            schema.DATA_SOURCE,
        ),
        HOSTILE,
    )
    make_run(tmp_path / "run", iterations=1, verifier_detail=HOSTILE + "\u202e", **columns)
    write_summary(tmp_path / "run" / "2" / "verify", "verify", status="failed", error=HOSTILE, metrics={HOSTILE: 1.0})
    write_summary(
        tmp_path / "run" / "3" / HOSTILE.replace("/", "_"), HOSTILE, metrics={HOSTILE: 1.0}, config={HOSTILE: HOSTILE}
    )
    page = browse(make_report(tmp_path / "report.html", f"{NAME}={tmp_path}/run", compress))
    page.select_option("#order", "tokens")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, b:text-is('&')").count() == 0
    assert page.locator("body > script").count() == 3
    assert HOSTILE in page.inner_text(".detail pre.tokens")
    facts = page.inner_text(".facts")
    assert facts.count(HOSTILE) >= 3
    assert "\\u{202e}" in facts
    assert HOSTILE in page.inner_text("#notes")
    assert NAME in page.title()


def test_runs_are_compared_and_can_be_hidden(tmp_path: Path, browse: Any) -> None:
    for name, iterations in (("a", 2), ("b", 3)):
        make_run(tmp_path / name, iterations=iterations)
    write_summary(tmp_path / "b" / "policy" / "3", "update-policy", metrics={"entropy": 0.1}, config={"lr": 3e-4})
    page = browse(make_report(tmp_path / "report.html", tmp_path / "a", f"second={tmp_path / 'b'}"))
    summary = page.inner_text("#summary")
    assert re.search(r"update-policy\s+lr\s+0\.0001\s+0\.0003", summary)
    chart = page.locator('[data-chart="accuracy"]')
    assert chart.locator("polyline").count() == 4
    before = count(page)
    page.locator("#runs").get_by_role("button", name="second").click()
    assert chart.locator("polyline").count() == 2
    assert count(page) == before - (3 * 16 + 4)
    assert "second" not in "".join(page.locator(".row").all_inner_texts())


def test_without_a_tokenizer_text_and_bars_are_shown(report: Path, run: Path, browse: Any) -> None:
    page = browse(report)
    page.keyboard.press("j")
    assert page.locator(".tokens [data-token]").count() == 0
    assert page.inner_text("pre.tokens") == trained_rows(run)[1][schema.RESPONSE]
    assert page.locator(".bars path").count() > 0
    assert "tokenizer was not found" in page.inner_text(".readout")


def test_a_browser_that_cannot_decompress_gets_a_message(run: Path, report: Path, browse: Any) -> None:
    without = "delete globalThis.DecompressionStream"
    page = browse(report, script=without)
    assert "--no-compress" in page.inner_text("#rollouts-note")
    assert page.locator('[data-chart="accuracy"] polyline').count() == 2
    page = browse(make_report(run.parent / "plain.html", run, "--no-compress"), script=without)
    assert count(page) == 52


def test_the_page_says_what_it_leaves_out(run: Path, browse: Any) -> None:
    page = browse(make_report(run.parent / "few.html", run, "--max-rollouts", 10))
    assert page.inner_text("#rollouts-note").startswith(
        "10 of 52 rollouts: whole groups, taken evenly from all iterations"
    )
    page = browse(make_report(run.parent / "none.html", run, "--max-rollouts", 0))
    assert "--max-rollouts 0" in page.inner_text("#rollouts-note")
    assert not page.locator("#browser").is_visible()


def test_ten_thousand_rollouts_need_no_more_nodes_than_fifty(tmp_path: Path, report: Path, browse: Any) -> None:
    """Counts nodes instead of time: the document must not grow with the list."""
    many = tmp_path / "many"
    make_run(many, iterations=5, groups=501, response="x" * 400)
    path = make_report(tmp_path / "many.html", many, "--max-rollouts", 10_000)
    assert page_json(path)["rollouts"]["shown"] == 10_000
    nodes = "document.querySelectorAll('#rollouts *').length"
    small = browse(report).evaluate(nodes)
    page = browse(path)
    assert page.evaluate(nodes) < small + 100
    page.select_option("#order", "sum")
    page.click("#direction")
    highest = sorted(sum(row[schema.PROCESS_REWARDS]) for row in trained_rows(many))[
        -25:
    ]  # 24 rollouts are left out of the page
    assert any(shown(value) in first_row(page) for value in highest)
    page.click("#clear")
    page.locator("#list").focus()
    for key in ("End", "PageUp", "PageUp", "Home", "End", "ArrowUp"):
        page.keyboard.press(key)
    assert page.get_attribute("#list", "aria-activedescendant") == "row-9998"
    assert page.locator("#row-9998").is_visible()
    assert page.evaluate(nodes) < small + 100
