"""The search tree and the colours of tokens: drawn from what the stream reports, and reached by the keyboard."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, serving, settings_for
from tests.iro_server.web.conftest import opened

HOSTILE = "<img src=https://evil.example/a.png onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A slow model with an aligned one, whose search takes a while."""
    settings = settings_for(tmp_path_factory.mktemp("data"))
    with serving(settings, ByteEngine("the river " * 6, noise=0.2, seconds_per_token=0.05)) as client:
        address = str(client.base_url).removesuffix("/v1/")
        yield SimpleNamespace(address=address, model=aligned(settings, "ft:bytes:iro::likes-z"))


def search(page: Page, seed: int) -> Locator:
    """One column that searches with L = 4; its tree."""
    page.get_by_label("Prompt").fill("say z")
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("Max tokens").fill("40")
    for _ in range(2):
        page.get_by_role("button", name="Remove column 1").click()
    page.get_by_label("Answers").select_option("search")
    for _ in range(3):
        page.get_by_label("L, chunk length").press("ArrowRight")
    page.get_by_role("button", name="Generate").click()
    return page.get_by_role("group", name="Search tree of answer 1")


def path_text(tree: Locator) -> str:
    """The text of the candidate that the detail shows, from the first round on."""
    return tree.page.locator(".detail .text").inner_text()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_final_path_of_the_tree_is_the_answer(browser, searched, seed):
    with opened(browser, searched.address, "/#/playground") as (page, watch):
        tree = search(page, seed)
        expect(page.get_by_text(re.compile("Search: [2-9] rounds"))).to_be_visible()  # live
        expect(page.locator(".reward b")).to_have_count(1)
        answer = page.get_by_role("region", name="Answer 1").inner_text()
        assert path_text(tree) == answer != ""
        assert tree.locator(".node.answer").count() == tree.locator(".edge.answer").count() == 10  # rounds
        watch.assert_clean(refusals=1)  # the job's training file is gone


@pytest.mark.slow(6)
def test_every_candidate_is_reached_by_keyboard_and_pointer(browser, searched):
    with opened(browser, searched.address, "/#/playground") as (page, watch):
        tree = search(page, 3)
        expect(page.locator(".reward b")).to_have_count(1)
        last = tree.locator(".node.answer").last
        last.focus()
        focused = page.locator(".node:focus")
        for round in range(9, 0, -1):
            focused.press("ArrowLeft")
            expect(page.get_by_text(f"round {round} ·", exact=False).first).to_be_visible()
            assert path_text(tree) in page.get_by_role("region", name="Answer 1").inner_text()
        focused.press("ArrowLeft")  # stays
        names = {focused.get_attribute("aria-label")}
        for _ in range(20):
            focused.press("ArrowUp")
        for _ in range(20):
            focused.press("ArrowDown")
            names.add(focused.get_attribute("aria-label"))
        ids = tree.locator(".node").evaluate_all(
            "nodes => nodes.filter(n => n.ariaLabel.startsWith('round 1 ·')).length"
        )
        assert ids == 6 and {"kept" in str(name) or "answer" in str(name) for name in names} == {True, False}
        focused.press("ArrowRight")
        dropped = tree.locator(".node:not(.kept)").first
        dropped.hover()
        expect(page.locator(".detail")).to_contain_text("dropped")
        assert tree.locator(".node[tabindex='0']").count() == 1
        watch.assert_clean(refusals=1)  # the job's training file is gone


def stream(*chunks: object) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def test_hostile_candidates_and_tokens_are_only_text(browser, searched):
    beam = {"id": 1, "parent": None, "text": HOSTILE, "tokens": 3, "value": 1.5, "kept": True, "finished": True}
    entry = {"token": HOSTILE, "logprob": -1.0, "log_ratio": 2.0, "value": 0.5}
    entry["top_logprobs"] = [{"token": HOSTILE, "logprob": -1.0}]
    choice = {"index": 0, "delta": {"content": HOSTILE}, "finish_reason": "stop", "logprobs": {"content": [entry]}}
    search = {"prompt": 0, "round": 1, "last": True, "beams": [beam], "dropped": []}
    events = stream(
        {"choices": [], "search": search},
        {"choices": [], "search": {"prompt": 0, "answers": [1]}},
        {"choices": [choice]},
    )
    with opened(browser, searched.address, "/#/playground") as (page, watch):
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
        page.get_by_label("Prompt").fill("attack")
        page.get_by_label("Colour tokens").select_option("log_ratio")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("group", name="Search tree")).to_have_count(3)
        assert page.locator(".detail .text").first.inner_text() == HOSTILE
        page.get_by_role("region", name="Answer 1").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".token")).to_contain_text("<img␣src")
        assert page.locator("main img, main script").count() == 0
        watch.assert_clean(refusals=1)  # the job's training file is gone


def test_tokens_are_coloured_by_what_the_server_reports(browser, searched):
    """Log-ratios and values where the server has them; absent ones are said to be absent."""
    values = {"a": (2.0, 0.0), "b": (-2.0, 1.0), "c": (0.0, 0.0), "d": (0.2, -2.0)}
    content = [
        {"token": token, "logprob": -0.7, "log_ratio": ratio, "value": value, "top_logprobs": []}
        for token, (ratio, value) in values.items()
    ]
    content[1]["top_logprobs"] = [{"token": "other", "logprob": -0.1}]
    choice = {"index": 0, "delta": {"content": "abcd"}, "finish_reason": "stop", "logprobs": {"content": content}}
    with opened(browser, searched.address, "/#/playground") as (page, watch):
        handler = lambda route: route.fulfill(body=stream({"choices": [choice]}), content_type="text/event-stream")  # noqa: E731
        page.route("**/v1/chat/completions", handler)
        page.get_by_label("Prompt").fill("colours")
        tokens = page.get_by_role("region", name="Answer 1").locator("span")
        colours = {"log_ratio": ["more-3", "less-3", "", "more-1"], "value": ["", "more-2", "", "less-3"]}
        for colouring, expected in colours.items():
            page.get_by_label("Colour tokens").select_option(colouring)
            page.get_by_role("button", name="Generate").click()
            expect(tokens).to_have_count(4)
            assert [token.get_attribute("class") or "" for token in tokens.all()] == expected
        tokens.nth(1).hover()
        expect(page.locator(".token")).to_contain_text("log-ratio -2.00 · adds +1.00 likeliest other 90 %")
        for entry in content:
            del entry["log_ratio"], entry["value"]
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text("No values").first).to_be_visible()
        watch.assert_clean(refusals=1)  # the job's training file is gone
