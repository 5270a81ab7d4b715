"""A real, headless browser: the installed Chromium (Debian: apt-get install chromium)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from primecli import cli
from primecli.shards import schema
from tests.made_runs import make_byte_tokenizer, make_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_path() -> str:
    """The browser's executable. Without one, tests that need it are skipped; where CI is set, they fail."""
    path = os.environ.get("PRIMECLI_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = "no Chromium: apt-get install chromium, or name one in PRIMECLI_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, started once a module: as long as it is open, nothing else in this process can run an event loop."""
    from playwright.sync_api import sync_playwright

    path = chromium_path()
    with sync_playwright() as playwright:
        options = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


class Opened:
    """A page with its console messages and its requests.

    complaints: warnings and errors. requests: the addresses that it asked for.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a report and waits until it is drawn; keyword arguments go to the browser's context.

    At the end of the test, the console must be free of complaints, and nothing but the file may have been requested.
    """
    opened: list[tuple[Any, Opened]] = []

    def browse(path: Path, *, script: str = "", fragment: str = "", **options: Any) -> Any:
        context = chromium.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        )
        if script:
            context.add_init_script(script)
        page = context.new_page()
        opened.append((context, Opened(page)))
        page.set_default_timeout(5_000)
        page.goto(f"{path.as_uri()}{fragment}")
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    yield browse
    for context, seen in opened:
        context.close()
        assert seen.complaints == []
        assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []


def make_report(target: Path, *arguments: object) -> Path:
    code = cli.run(["report", *map(str, arguments), "--out", str(target), "--quiet"])
    assert code == 0
    return target


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three iterations without a tokenizer."""
    root = tmp_path_factory.mktemp("page")
    make_run(root / "one")
    return root / "one"


@pytest.fixture(scope="session")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every response has a text for each token."""
    from tokenizers import Tokenizer

    from tests.builders import rollouts
    from tests.made_runs import scored, write_stage

    root = tmp_path_factory.mktemp("spelled")
    tokenizer = make_byte_tokenizer(root / "tokenizer")
    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    rows = []
    for row in rollouts(6, 4):
        text = f"step {row[schema.GROUP_ID]}\n{row[schema.SAMPLE_INDEX]}"
        ids = [*encode(text).ids, 256]
        rows.append({**row, "response": text, "response_ids": ids, "rollout_logprobs": [-0.5] * len(ids)})
    write_stage(root / "run" / "1" / "compute-advantages", scored(rows))
    return make_report(root / "report.html", root / "run", "--tokenizer", tokenizer)


@pytest.fixture(scope="session")
def report(run: Path) -> Path:
    return make_report(run.parent / "report.html", run)
