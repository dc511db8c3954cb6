"""Pages that stay open while what they show changes: charts, tabs in the background, keys that are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from iro_server.api.job_events import streams
from iro_server.jobs import records
from iro_server.settings import Settings
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, start_job, wait_for
from tests.iro_server.web.conftest import opened
from tests.iro_server.web.test_accessibility import RECORD_TEXTS_OF_CHARTS
from tests.iro_server.web.test_live_events import requests_of
from tests.iro_server.web.test_tenants import sign_in

READ_SECONDS = 1.8  # of metrics: longer than from one read of their run to the next
SLOW_METRICS = f"""() => {{
  const {{ fetch }} = window;
  window.fetch = async (url, init) => {{
    if (url.includes("/metrics")) await new Promise((resolve) => setTimeout(resolve, {1000 * READ_SECONDS}));
    return fetch(url, init);
  }};
}}"""
SET_HIDDEN = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
RUN = {"id": "jobrun_1", "created_at": 1, "finished_at": None, "attempts": 1, "status": "in_progress", "kind": "k"}
RUN |= {"name": None, "preset": None, "config": {}, "error": None, "progress": None, "message": None, "figures": []}


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlparse(url).query).items()}


def has_tick(page: Page, tick: str) -> bool:
    return tick in page.evaluate("[...chartTexts.values()].flat()")


class GrowingRun:
    """A run that writes rows whenever it is read: five at first, then a hundred more each time."""

    def __init__(self) -> None:
        self.rows = -95
        self.offsets: list[int] = []

    def show(self, route: Route) -> None:
        self.rows += 100
        route.fulfill(json=RUN | {"metrics_bytes": 20 * self.rows})

    def metrics(self, route: Route) -> None:
        offset = int(query_of(route.request.url)["offset"])
        self.offsets.append(offset)
        rows = [{"step": step, "loss": 1 / (1 + step)} for step in range(offset, self.rows)]
        route.fulfill(json={"data": rows, "has_more": False})


@pytest.mark.slow(8)
def test_metrics_that_grow_while_they_are_read_are_shown_and_widen_their_chart(browser: Browser, served) -> None:
    run = GrowingRun()
    with opened(browser, served.address) as (page, watch):
        page.route("**/job_runs/jobrun_1", run.show)
        page.route("**/job_runs/jobrun_1/metrics?*", run.metrics)
        page.evaluate(RECORD_TEXTS_OF_CHARTS)
        page.evaluate(SLOW_METRICS)
        page.goto(f"{served.address}/#/runs/jobrun_1")
        chart = page.get_by_role("img", name="loss by step")
        expect(chart).to_be_visible(timeout=20_000)
        first_rows = run.rows
        page.wait_for_function("() => [...chartTexts.values()].flat().includes('400')", timeout=30_000)
        assert first_rows < 400 and chart.is_visible()
        assert run.offsets == sorted({*run.offsets}) and len(run.offsets) > 1  # each row is read once
        watch.assert_clean()


def add_iteration(settings: Settings, job_id: str, step: int) -> None:
    with open_database(settings).begin() as session:
        data = {"step": step, "total_steps": 8, "full_valid_mean_reward": step / 8, "full_valid_error": 0.01}
        records.add_event(session, job_id, f"Step {step}/8", type="metrics", data=data)


def test_a_tab_in_the_background_holds_no_stream_and_one_in_front_goes_on_after_a_cut(browser: Browser, tmp_path: Path):
    settings = settings_for(tmp_path, job_concurrency=0, request_timeout=3.0)
    with serving(settings, ByteEngine()) as client:
        job_id, address = start_job(client), str(client.base_url).removesuffix("/v1/")
        for step in (0, 1):
            add_iteration(settings, job_id, step)
        with opened(browser, address) as (page, watch):
            page.evaluate(RECORD_TEXTS_OF_CHARTS)
            event_reads, job_reads = requests_of(page, "/events?"), requests_of(page, "/checkpoints?")
            start = time.monotonic()
            page.goto(f"{address}/#/jobs/{job_id}")
            expect(page.get_by_text("iteration 1 of 8")).to_be_visible()
            assert sum(streams.values()) == 1 and not has_tick(page, "6")
            page.evaluate(SET_HIDDEN, True)
            wait_for(lambda: sum(streams.values()) == 0, seconds=20)
            add_iteration(settings, job_id, 6)
            page.evaluate(SET_HIDDEN, False)
            expect(page.get_by_text("iteration 6 of 8")).to_be_visible()
            page.wait_for_function("() => [...chartTexts.values()].flat().includes('6')", timeout=20_000)
            with page.expect_request("**/events?stream=true*", timeout=20_000) as after_cut:
                pass
            last = client.fine_tuning.jobs.list_events(job_id, limit=1).data[0]
            assert query_of(after_cut.value.url)["after"] == last.id
            assert all("stream=true" in url for url in event_reads)
            assert len(job_reads) <= 2 + (time.monotonic() - start) / 3
            watch.assert_clean()


def test_a_page_asks_for_a_key_once_the_server_does_and_names_the_scope_that_it_needs(browser, tmp_path):
    settings = settings_for(tmp_path, job_run_concurrency=0)
    with serving(settings, ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address) as (page, watch):
            expect(page.get_by_text("No jobs yet")).to_be_visible()
            operator = new_key(settings, "operator", "--scope", "admin")
            expect(page.get_by_label("Key", exact=True)).to_be_visible(timeout=20_000)
            expect(page.get_by_role("alert")).to_have_count(0)
            sign_in(page, operator)
            expect(page.get_by_role("alert")).to_contain_text("needs a key with the scope 'read' or 'generate'")
            page.get_by_role("link", name="Batch jobs").click()
            expect(page.get_by_text("No runs yet")).to_be_visible()
            page.get_by_role("link", name="Jobs", exact=True).click()
            sign_in(page, new_key(settings, "reader", "--scope", "read"))
            expect(page.get_by_text("No jobs yet")).to_be_visible()
            assert not watch.foreign_requests and not watch.dialogs


def test_a_list_keeps_its_pace_where_the_server_names_a_date_and_shows_older_runs(browser, served):
    busy = json.dumps({"error": {"message": "busy", "param": None}})
    tried: list[float] = []

    def refuse(route: Route) -> None:
        tried.append(time.monotonic())
        headers = {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "content-type": "application/json"}
        route.fulfill(status=503, body=busy, headers=headers)

    def list_runs(route: Route) -> None:
        newest = 150 if "after" not in query_of(route.request.url) else 50
        runs = [RUN | {"id": f"jobrun_{i}", "status": "cancelled"} for i in range(newest, max(newest - 100, 0), -1)]
        route.fulfill(json={"data": runs, "has_more": newest == 150})

    with opened(browser, served.address) as (page, _):
        page.route("**/job_runs?*", refuse)
        page.goto(f"{served.address}/#/runs")
        expect(page.get_by_role("alert")).to_contain_text("busy")
        page.wait_for_timeout(2500)
        assert len(tried) == 2
        page.unroute("**/job_runs?*")
        page.route("**/job_runs?*", list_runs)
        expect(page.get_by_role("row")).to_have_count(101)
        page.get_by_role("button", name="Older runs").click()
        expect(page.get_by_role("row")).to_have_count(151)
        expect(page.get_by_role("button", name="Older runs")).to_have_count(0)
