"""A job's events on the page: streamed, and polled where no stream can be had."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.iro_server.api.serving import GRADER, start_job
from tests.iro_server.web.conftest import opened


def requests_of(page, ending: str) -> list[str]:
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url) if ending in request.url else None)
    return seen


@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "polled"])
def test_events_come_while_the_job_runs(browser, served, streams):
    job_id = start_job(served.client, GRADER | {"name": "waits"}, iterations=5)
    with opened(browser, served.address) as (page, watch):
        requests = requests_of(page, "/events?")
        if not streams:
            page.route("**/events?stream=true*", lambda route: route.abort())
        page.get_by_role("link", name=job_id).click()
        expect(page.get_by_text("iteration 2 of 5")).to_be_visible()
        while_running = list(requests)
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="End the job for good").click()
        expect(page.get_by_label("Events, newest first").get_by_text("The job was cancelled")).to_be_visible()
        expect(page.get_by_label("Events, newest first").get_by_role("listitem").first).to_contain_text("cancelled")
        messages = page.locator(".events li .text").all_inner_texts()
        assert sorted(messages) == sorted(set(messages))  # none twice
        (streamed,) = [url for url in requests if "stream=true" in url]
        assert while_running == [streamed] if streams else len(requests) > 3
        watch.assert_clean(refusals=0 if streams else 1)
