"""Take the pictures of the report that docs/tracking.md shows: makes it, opens it in Chromium, writes PNGs.

Needs a run of the demo, Debian's chromium (apt-get install chromium) and playwright (in the extra `dev`).

Example:
    python examples/arithmetic/screenshots.py work/rloo-process-seed0 work/rloo-outcome-seed0 --out docs
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 760}
WRONG = "#filter-verdict option:text('wrong')"


def write_report(runs: list[Path], target: Path) -> None:
    """Runs `primecli report` on these runs."""
    command = [sys.executable, "-m", "primecli", "report", *map(str, runs), "--out", str(target)]
    subprocess.run(command, check=True)


def open_report(browser: Any, path: Path, **options: Any) -> Any:
    """Opens the report and waits until it is drawn."""
    page = browser.new_context(reduced_motion="reduce", **options).new_page()
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    return page


def show_wrong_step(page: Any) -> None:
    """Shows the first wrong response of iteration 1 beside a correct one, and points at its lowest-rewarded token."""
    page.select_option("#filter-iteration", "1")
    page.select_option("#filter-verdict", page.get_attribute(WRONG, "value"))
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    page.evaluate("document.getElementById('rollouts').scrollIntoView()")
    tokens = page.locator(".side >> nth=0").locator("[data-token]")
    classes = tokens.evaluate_all("spans => spans.map((span) => span.className)")
    tokens.nth(classes.index("strong-minus")).hover()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR")
    options = parser.parse_args()
    chromium = os.environ.get("PRIMECLI_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("screenshots.py: no Chromium: apt-get install chromium, or name one in PRIMECLI_CHROMIUM")
    from playwright.sync_api import sync_playwright

    options.out.mkdir(parents=True, exist_ok=True)
    arguments = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    arguments += ["--no-sandbox"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        every, first = Path(directory) / "every.html", Path(directory) / "first.html"
        write_report(options.runs, every)
        write_report(options.runs[:1], first)
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        open_report(browser, every, viewport=DESKTOP).screenshot(path=options.out / "report-curves.png")
        page = open_report(browser, first, viewport=DESKTOP)
        show_wrong_step(page)
        page.screenshot(path=options.out / "report-rollout.png")
        page = open_report(browser, first, viewport=PHONE, color_scheme="dark", has_touch=True, is_mobile=True)
        page.locator(".row").first.tap()
        page.screenshot(path=options.out / "report-phone.png")
        browser.close()
    for path in sorted(options.out.glob("report-*.png")):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
