"""Pictures of the page for the documents: ``python -m benchmarks.screenshots http://127.0.0.1:8000 MODEL docs``.

MODEL is an aligned model of the server, such as that of the example of the page "New job". Playwright (the extra
``dev``) drives Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
from playwright.sync_api import Page, sync_playwright

PROMPT, SEED = "I thought the film", "5"
SEARCH = {"W, beams": 3, "K, successors": 2, "L, chunk length": 3}  # places of the sliders: W = 3, K = 2, L = 4
EVAL, WORDS = "praise", ("good", "beautiful", "great")
TOPICS = ("a film", "a song", "a garden", "a meal", "a city", "a book")
CAPITALS = ('{"country": "Peru", "capital": "Lima"}', '{"country": "Kenya", "capital": "Nairobi"}')
ALPHAS = (0.2, 0.4, 0.6)
STUDY = {"studies": ["matrices"], "models": 2, "iterations": 400, "prompts": 100}
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
        for draw in (job, new_job, playground, search, evals, new_eval, new_run, run, runs):
            scheme: Literal["light", "dark"] = "dark" if draw in (playground, evals, run) else "light"
            context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(f"{arguments.address}/#/jobs")
            draw(page, arguments.model)
            page.screenshot(path=arguments.out / f"web-{draw.__name__.replace('_', '-')}.png", full_page=True)
            context.close()
        browser.close()


def open_job(page: Page, model: str) -> None:
    """The page of the job that made the model."""
    jobs = client(page).fine_tuning.jobs.list()
    page.goto(f"{address(page)}/#/jobs/{next(job.id for job in jobs if job.fine_tuned_model == model)}")


def address(page: Page) -> str:
    """Of the server."""
    return page.url.split("/#")[0]


def client(page: Page) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address(page)}/v1", api_key="none", timeout=PATIENCE / 1000)


def job(page: Page, model: str) -> None:
    open_job(page, model)
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
    open_job(page, model)
    page.get_by_role("link", name="Try it", exact=True).click()
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Seed").fill(SEED)
    page.get_by_label("Colour tokens").select_option("probability")
    page.get_by_role("button", name="Generate").click()
    page.locator(".reward b").nth(2).wait_for()


def search(page: Page, model: str) -> None:
    """The tree of one search, with a dropped row's text."""
    open_job(page, model)
    page.get_by_role("link", name="Try it", exact=True).click()
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Seed").fill(SEED)
    for _ in range(2):
        page.get_by_role("button", name="Remove column 1").click()
    page.get_by_label("Answers").select_option("search")
    for setting, place in SEARCH.items():
        for _ in range(place):
            page.get_by_label(setting).press("ArrowRight")
    page.get_by_role("button", name="Generate").click()
    page.locator(".reward b").first.wait_for()
    page.get_by_role("group", name="Search tree").locator(".node:not(.kept)").nth(5).focus()


def evals(page: Page, model: str) -> None:
    """Two runs of an eval, made where the server has none: the frozen and the aligned model."""
    server = client(page)
    if not server.evals.list().data:
        make_eval(server, model)
    page.get_by_role("link", name="Evals").click()
    page.get_by_role("link", name=EVAL, exact=True).click()
    page.get_by_label("Compared with").select_option(index=1)
    page.get_by_role("status").get_by_text("items").wait_for()


def new_eval(page: Page, _: str) -> None:
    page.get_by_role("link", name="Evals").click()
    page.get_by_role("link", name="New eval").click()
    page.get_by_label("Name of the eval").fill("capitals")
    page.get_by_label("Items", exact=True).fill("\n".join(CAPITALS))
    page.get_by_label("Prompt").fill("What is the capital of {{item.country}}?")
    page.get_by_label("Kind of grader").select_option("string_check")
    page.get_by_label("Text", exact=True).fill("{{item.capital}}")
    page.get_by_label("Answer to grade").fill("Lima, of course.")
    page.get_by_role("button", name="Grade it").click()
    page.get_by_text("reward").last.wait_for()


def new_run(page: Page, _: str) -> None:
    page.get_by_role("link", name="Batch jobs").click()
    page.get_by_role("link", name="New run").click()
    page.get_by_label("Batch job").select_option("bilevel.quadratic")


def run(page: Page, _: str) -> None:
    make_runs(page)
    page.get_by_role("link", name="Batch jobs").click()
    page.get_by_role("link", name=f"alpha = {max(ALPHAS)}").click()
    page.get_by_role("region", name="Table of checks").wait_for()
    page.get_by_role("img", name="Figure").first.wait_for()


def runs(page: Page, _: str) -> None:
    page.get_by_role("link", name="Batch jobs").click()
    for alpha in ALPHAS:
        page.get_by_label(f"Compare alpha = {alpha}").check()
    page.get_by_role("link", name=f"Compare {len(ALPHAS)} runs").click()
    page.get_by_role("img", name="loss by step").wait_for()
    page.wait_for_timeout(500)  # milliseconds: the chart is drawn


def make_runs(page: Page) -> None:
    """Runs of one batch job at each of ALPHAS, where the server has none."""
    with httpx.Client(base_url=f"{address(page)}/v1/iro", timeout=PATIENCE / 1000) as server:
        if not server.get("/job_runs").json()["data"]:
            for alpha in ALPHAS:
                config = STUDY | {"alpha": alpha}
                body = {"kind": "theory.cot", "preset": "smoke", "name": f"alpha = {alpha}", "config": config}
                server.post("/job_runs", json=body).raise_for_status()
        while any(row["finished_at"] is None for row in server.get("/job_runs").json()["data"]):
            time.sleep(1)


def make_eval(server: openai.OpenAI, model: str) -> None:
    item = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
    check = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "ilike"}
    criteria: list[Any] = [check | {"name": f"says {word}", "reference": word} for word in WORDS]
    config: Any = {"type": "custom", "item_schema": item, "include_sample_schema": True}
    evaluation = server.evals.create(name=EVAL, data_source_config=config, testing_criteria=criteria)
    template = [{"role": "user", "content": "Write one sentence about {{item.topic}}."}]
    source: Any = {"type": "completions", "input_messages": {"type": "template", "template": template}}
    source["source"] = {"type": "file_content", "content": [{"item": {"topic": topic}} for topic in TOPICS]}
    source["sampling_params"] = {"max_completion_tokens": 32, "seed": 1}
    names = {server.models.list().data[0].id: "frozen", model: "aligned"}
    for name, title in names.items():
        run = server.evals.runs.create(evaluation.id, name=title, data_source=source | {"model": name})
        while server.evals.runs.retrieve(run.id, eval_id=evaluation.id).status in ("queued", "in_progress"):
            time.sleep(1)


if __name__ == "__main__":
    main()
