"""The page on the real server, model and alignment job: from a file to an aligned model that answers a chat."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from tests.e2e.test_api_server import server, settings
from tests.iro_server.web.conftest import browser, opened

__all__ = ["browser", "settings"]  # the fixtures
MINUTES = 60_000  # milliseconds
TOPICS = [
    "a river",
    "a train",
    "bread",
    "rain",
    "a garden",
    "the sea",
    "a violin",
    "winter",
    "a bridge",
    "tea",
    "snow",
    "a forest",
]
ROWS = [f"{verb} {topic}." for verb in ("Tell me about", "Write a line about") for topic in TOPICS]
SYLLABLES = "ing, th, er, an, on, st"  # how many of them an answer has: a reward that differs between most answers
OPTIONS = {
    "Iterations": 1,
    "Answer length in tokens": 12,
    "Rollouts of each prompt": 8,
    "L, chunk length": 2,
    "Searches of each": 4,
    "Seed": 3,
}


@pytest.mark.slow(240)
@pytest.mark.timeout(1800)
def test_from_a_file_to_a_chat_with_the_aligned_model(browser, settings, tmp_path):
    file, address = tmp_path / "rows.jsonl", f"http://127.0.0.1:{settings.port}"
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": row}]}) + "\n" for row in ROWS))
    with server(settings) as (_, client), opened(browser, address) as (page, watch):
        page.get_by_role("link", name="Start your first job").click()
        page.get_by_label("Choose a file").set_input_files(file)
        page.get_by_label("Words", exact=True).fill(SYLLABLES)
        page.get_by_text("More options").click()
        for label, value in OPTIONS.items():
            page.get_by_label(label).fill(str(value))
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_text("iteration 1 of 1")).to_be_visible(timeout=15 * MINUTES)
        expect(page.get_by_text(re.compile("^succeeded$")).first).to_be_visible(timeout=15 * MINUTES)
        (job,) = client.fine_tuning.jobs.list().data
        events = client.fine_tuning.jobs.list_events(job.id, limit=100).data
        rewards = [event.data["full_valid_mean_reward"] for event in reversed(events) if event.type == "metrics"]
        shown = page.locator(".headline b").all_inner_texts()
        assert shown[:2] == [f"{reward:.3f}" for reward in rewards]  # of the frozen model and of the iteration
        page.get_by_role("link", name="Try it", exact=True).first.click()
        expect(page.get_by_label("Prompt")).to_have_value(ROWS[0])
        page.get_by_label("Prompt").fill("What is the capital of France?")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        expect(page.get_by_text(re.compile("tokens.* drawn"))).to_have_count(3)
        answers = page.get_by_role("region", name="Answer").all_inner_texts()
        assert len(answers) == 3 and all(answers)
        watch.assert_clean()
