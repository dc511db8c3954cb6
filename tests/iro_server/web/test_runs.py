"""Batch jobs in the browser: a form, a real run with its metrics and figures, and two runs compared."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from iro_server.settings import Settings
from iro_server.store.database import open_database
from iro_server.store.tables import JobRun, new_id, now
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for
from tests.iro_server.api.test_job_runs import COT, SCOPES, SMALL, start
from tests.iro_server.web.conftest import opened
from tests.iro_server.web.crowd import HOSTILE
from tests.iro_server.web.test_accessibility import on_each_screen, violations
from tests.iro_server.web.test_tenants import sign_in

RUN_PATIENCE = 500_000  # milliseconds: a process imports a library, trains and draws
NAMES = ("short", HOSTILE[:100])
PIXELS = (320, 200)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server with two finished runs that differ by their iterations, the second with a hostile name."""
    settings = settings_for(tmp_path_factory.mktemp("data"))
    runs = [add_run(settings, name, iterations) for name, iterations in zip(NAMES, (60, 80), strict=True)]
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=300) as http:
        http.get("iro/job_kinds").raise_for_status()  # read before a browser waits for them
        address = str(client.base_url).removesuffix("/v1/")
        yield SimpleNamespace(address=address, runs=runs, http=http, settings=settings)


def add_run(settings: Settings, name: str, iterations: int) -> str:
    """A run that has succeeded, as its process would have left it."""
    config = SMALL | {"iterations": iterations}
    run = JobRun(id=new_id("jobrun_"), kind=COT["kind"], preset=COT["preset"], name=name, config=config)
    run.status, run.finished_at = "succeeded", now()
    out = settings.run_dir(run.id) / "run"
    (out / "figures").mkdir(parents=True)
    rows = [{"step": step, "loss": 0.3 / (1 + step)} for step in range(0, iterations + 1, 20)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check = {"name": HOSTILE, "expected": {"tau": 0.36}, "got": [0.123456, HOSTILE], "holds": False}
    (out / "result.json").write_text(json.dumps({"config": config, "checks": [check, check | {"holds": True}]}))
    Image.new("RGB", PIXELS).save(out / "figures" / "matrices.png")
    id = run.id
    with open_database(settings).begin() as session:
        session.add(run)
    return id


@pytest.mark.slow(25)
def test_a_run_is_filled_in_started_and_watched_to_its_figures(browser: Browser, studied: SimpleNamespace) -> None:
    with opened(browser, studied.address, "/#/runs") as (page, watch):
        page.get_by_role("link", name="New run").click()
        page.get_by_label("Batch job").select_option("theory.cot")
        expect(page.get_by_text("Chain of thought by an attention-only transformer")).to_be_visible()
        expect(page.get_by_label("Preset")).to_have_value("smoke")
        page.get_by_label("Name").fill("from the form")
        expect(page.get_by_label("seed", exact=True)).not_to_be_visible()  # the preset has it not
        page.get_by_text("Further fields").click()
        expect(page.get_by_label("coefficient_sum")).to_be_visible()
        expect(page.get_by_text("Norm of the random vector that is added to a state in testing.")).to_be_visible()
        page.get_by_label("studies").fill('["matrices"]')
        page.get_by_label("models", exact=True).fill("few")
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_role("alert")).to_contain_text("models: “few” is no number")
        for field, text in {"models": "1", "iterations": "60", "prompts": "50", "lengths": "5, 20"}.items():
            page.get_by_label(re.compile(rf"^{field}( \(changed\))?$")).fill(text)
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_role("heading", name="from the form")).to_be_visible()
        expect(page.get_by_role("img", name="loss by step")).to_be_visible(timeout=RUN_PATIENCE)
        expect(page.get_by_text("succeeded", exact=True)).to_be_visible(timeout=RUN_PATIENCE)
        figure = page.get_by_role("img", name="Figure matrices of the run")
        expect(figure).to_be_visible()
        assert figure.evaluate("image => image.naturalWidth") > 100
        expect(page.get_by_role("region", name="Table of checks").get_by_role("row")).not_to_have_count(1)
        watch.assert_clean()
    newest = studied.http.get("iro/job_runs").json()["data"][0]
    assert newest["name"] == "from the form" and newest["preset"] == "smoke"
    assert newest["config"] | SMALL == newest["config"]


@pytest.mark.slow(29)
def test_two_runs_are_overlaid_compared_and_downloaded(browser: Browser, studied: SimpleNamespace) -> None:
    with opened(browser, studied.address, "/#/runs", accept_downloads=True) as (page, watch):
        for run in studied.runs:
            page.locator("tr", has=page.locator(f'a[href="#/runs/{run}"]')).get_by_role("checkbox").check()
        page.get_by_role("link", name="Compare 2 runs").click()
        expect(page.get_by_role("img", name="loss by step")).to_be_visible()
        assert page.locator(".legend li").all_inner_texts() == list(NAMES)
        table = page.get_by_role("region", name="Table of differing fields")
        assert [row.all_inner_texts() for row in (table.get_by_role("rowheader"), table.get_by_role("cell"))] == [
            ["iterations"],
            ["60", "80"],
        ]
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV").click()
        head, *rows = csv.reader(download.value.path().read_text().splitlines())
        assert head == ["step", *NAMES] and [row[0] for row in rows] == ["0", "20", "40", "60", "80"]
        with page.expect_download() as download:
            page.get_by_role("button", name="PNG").click()
        assert download.value.suggested_filename == "loss.png"
        assert download.value.path().read_bytes().startswith(b"\x89PNG")
        page.get_by_label("Logarithmic").check()
        expect(page.get_by_role("img", name="loss by step")).to_be_visible()
        watch.assert_clean()


def test_a_run_is_started_again_from_its_config(browser: Browser, studied: SimpleNamespace) -> None:
    with opened(browser, studied.address, f"/#/runs/{studied.runs[0]}") as (page, watch):
        page.get_by_role("link", name="Run again").click()
        expect(page.get_by_label("iterations", exact=True)).to_have_value("60")
        expect(page.get_by_label("lengths", exact=True)).to_have_value("5, 20")
        watch.assert_clean()


def test_a_run_is_deleted_after_a_second_click(browser: Browser, studied: SimpleNamespace) -> None:
    run = add_run(studied.settings, "not wanted", 60)
    with opened(browser, studied.address, f"/#/runs/{run}") as (page, watch):
        for shown in ("Figure matrices of the run", re.compile("loss")):
            expect(page.get_by_role("img", name=shown)).to_be_visible()
        expect(page.get_by_role("region", name="Table of checks")).to_be_visible()
        page.get_by_role("button", name="Delete").click()
        page.get_by_role("button", name="Delete metrics and figures").click()
        expect(page.get_by_role("link", name="New run")).to_be_visible()
        watch.assert_clean()
    assert studied.http.get(f"iro/job_runs/{run}").status_code == 404


def test_a_waiting_run_is_cancelled_after_a_second_click_and_says_that_it_did_not_start(
    browser: Browser, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, job_run_concurrency=0)
    with open_database(settings).begin() as session:
        session.add(JobRun(id="jobrun_1", kind=COT["kind"], preset=COT["preset"], name="waits", config=SMALL))
    with serving(settings, ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address, "/#/runs/jobrun_1") as (page, watch):
            expect(page.get_by_text("Waits for its turn.")).to_be_visible()
            page.get_by_role("button", name="Cancel").click()
            page.get_by_role("button", name="Keep it").click()
            page.get_by_role("button", name="Cancel").click()
            page.get_by_role("button", name="End the run for good").click()
            expect(page.get_by_text("The run was cancelled before it started")).to_be_visible()
            expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
            watch.assert_clean()


PAGES = {
    "list": lambda studied: "/#/runs",
    "form": lambda studied: "/#/runs/new",
    "run": lambda studied: f"/#/runs/{studied.runs[1]}",
    "comparison": lambda studied: f"/#/runs/compare?ids={','.join(studied.runs)}",
}
SEEN = {"list": "Table of runs", "form": "Start the run", "run": "Table of checks", "comparison": "differing fields"}


@on_each_screen
@pytest.mark.parametrize("name", PAGES)
def test_no_violation_and_nothing_wider_than_the_screen(browser, studied, name, scheme, viewport):
    address = PAGES[name](studied)
    with opened(browser, studied.address, address, color_scheme=scheme, viewport=viewport) as (page, watch):
        expect(page.get_by_role("button" if name == "form" else "region", name=SEEN[name])).to_be_visible()
        if name == "run":
            page.get_by_text("Config", exact=True).click()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        watch.assert_clean()


@pytest.mark.slow(15)
def test_a_foreign_key_sees_nothing_and_a_key_without_the_scope_starts_nothing(browser, tmp_path):
    settings = settings_for(tmp_path, require_keys=True, job_run_concurrency=0)
    owner, stranger = (new_key(settings, name, *SCOPES) for name in ("owner", "stranger"))
    unscoped = new_key(settings, "unscoped")
    with serving(settings, ByteEngine()) as client:
        headers = {"authorization": f"Bearer {owner}"}
        with httpx.Client(base_url=str(client.base_url), headers=headers, timeout=300) as http:
            run = start(http, **COT, name="secret study")
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address, "/#/runs") as (page, _):
            sign_in(page, stranger)
            expect(page.get_by_text("No runs yet")).to_be_visible()
            page.goto(f"{address}/#/runs/{run}")
            expect(page.get_by_role("alert")).to_contain_text("No such run")
            page.goto(f"{address}/#/runs/compare?ids={run}")
            expect(page.get_by_role("alert")).to_contain_text("No such run")
            assert "secret study" not in page.content()
        with opened(browser, address, "/#/runs/new") as (page, _):
            sign_in(page, unscoped)
            start_anything(page)
            expect(page.get_by_role("alert")).to_contain_text("given the scope 'admin'")


def start_anything(page: Page) -> None:
    page.get_by_label("Batch job").select_option("theory.cot")
    page.get_by_role("button", name="Start the run").click()
