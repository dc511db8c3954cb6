"""Jobs in the browser: the list, one job while it runs, and what its buttons do."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.iro_server.api.serving import GRADER, ended, start_job
from tests.iro_server.web.conftest import opened


def test_a_job_runs_before_ones_eyes_is_paused_resumed_and_cancelled(browser, served):
    job_id = start_job(served.client, GRADER | {"name": "waits"}, iterations=16)
    with opened(browser, served.address) as (page, watch):
        page.get_by_role("link", name=job_id).click()
        expect(page.get_by_text("iteration 2 of 16")).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_text("paused", exact=True)).to_be_visible()
        expect(page.get_by_text("The job was paused")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("running", exact=True)).to_be_visible()
        expect(page.get_by_text("iteration 4 of 16")).to_be_visible()
        checkpoints = page.get_by_role("region", name="Table of checkpoints").get_by_role("row")
        expect(checkpoints).to_have_count(1 + 4)  # with the head
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        watch.assert_clean()
    assert ended(served.client, job_id).status == "cancelled"


def test_a_failed_job_says_why(browser, served):
    job_id = start_job(served.client, GRADER | {"name": "raises"})
    ended(served.client, job_id)
    with opened(browser, served.address, f"/#/jobs/{job_id}") as (page, watch):
        expect(page.get_by_role("alert")).to_contain_text("the grader gave NaN for row 1")
        watch.assert_clean()
