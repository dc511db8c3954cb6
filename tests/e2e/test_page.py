"""The page on the real server, model and alignment job: from an empty page to an aligned model that answers."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.e2e.test_api_server import server, settings
from tests.iro_server.web.conftest import browser, opened

__all__ = ["browser", "settings"]  # the fixtures
MINUTES = 60_000  # milliseconds


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_the_example_to_a_conversation_with_the_aligned_model(browser, settings):
    address = f"http://127.0.0.1:{settings.port}"
    with server(settings) as (_, client), opened(browser, address) as (page, watch):
        page.get_by_role("link", name="Start your first job").click()
        page.get_by_role("button", name="Fill in an example").click()
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_text("iteration 1 of 1")).to_be_visible(timeout=15 * MINUTES)
        expect(page.get_by_text("succeeded", exact=True)).to_be_visible(timeout=15 * MINUTES)
        page.get_by_role("link", name="Try it", exact=True).click()
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        page.get_by_label("A message to answer").check()
        page.get_by_label("Prompt").fill("Was the film good?")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text(re.compile("tokens.* drawn"))).to_have_count(3)
        answers = page.get_by_role("region", name="Answer").all_inner_texts()
        assert len(answers) == 3 and all(answers)
        watch.assert_clean()
        (job,) = client.fine_tuning.jobs.list().data
        events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
        base, aligned = [event.data["full_valid_mean_reward"] for event in reversed(events) if event.type == "metrics"]
        assert aligned > base
