"""Pictures of the page for the documents: ``python -m benchmarks.screenshots http://127.0.0.1:8000 MODEL docs``.

MODEL is an aligned model of the server, such as that of the example of the page "New job". Playwright (the extra
``dev``) drives Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, sync_playwright

PROMPT, SEED = "I thought the film", "5"
WIDTH, HEIGHT = 1100, 700  # pixels
PATIENCE = 300_000  # milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="of a running server that needs no key")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for draw in (job, new_job, playground):
            scheme: Literal["light", "dark"] = "dark" if draw is playground else "light"
            context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(f"{arguments.address}/#/jobs")
            draw(page, arguments.model)
            page.screenshot(path=arguments.out / f"web-{draw.__name__.replace('_', '-')}.png", full_page=True)
            context.close()
        browser.close()


def job(page: Page, model: str) -> None:
    page.get_by_role("link", name=model, exact=True).click()
    page.get_by_text("Checkpoint created").first.wait_for()
    page.get_by_text("Reward by iteration").wait_for()
    page.wait_for_timeout(500)  # milliseconds: the chart is drawn


def new_job(page: Page, _: str) -> None:
    page.get_by_role("link", name="New job").first.click()
    page.get_by_role("button", name="Fill in an example").click()
    page.get_by_label("Answer to grade").fill("The film was very good, and the cast was great.")
    page.get_by_role("button", name="Grade it").click()
    page.get_by_text("reward").last.wait_for()


def playground(page: Page, model: str) -> None:
    page.get_by_role("link", name=model, exact=True).click()
    page.get_by_role("link", name="Try it", exact=True).click()
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Seed").fill(SEED)
    page.get_by_label("Colour tokens").select_option("probability")
    page.get_by_role("button", name="Generate").click()
    page.locator(".reward b").nth(2).wait_for()


if __name__ == "__main__":
    main()
