"""Answers side by side in the browser, whatever they hold."""

from __future__ import annotations

import json
from types import SimpleNamespace

import httpx
import pytest
from playwright.sync_api import expect

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, aligned, serving, settings_for
from tests.iro_server.web.conftest import opened

ATTACK = (
    "<script>alert(1)</script><img src=https://evil.example/pixel.png onerror=alert(2)>"
    "![picture](https://evil.example/markdown.png) [link](javascript:alert(3)) </div></body> &lt;b&gt; "
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The address of a server whose model answers with markup that a careless page would run."""
    with serving(settings_for(tmp_path_factory.mktemp("data")), ByteEngine(ATTACK, noise=0.0)) as client:
        yield str(client.base_url).removesuffix("/v1/")


@pytest.mark.parametrize("colouring", ["none", "probability"])
def test_a_hostile_answer_is_only_text(browser, hostile, colouring):
    with opened(browser, hostile, "/#/playground") as (page, watch):
        page.get_by_label("Prompt").fill("attack")
        page.get_by_label("Colour tokens").select_option(colouring)
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text(f"{len(ATTACK) + 1} tokens")).to_be_visible()
        answer = page.get_by_role("region", name="Answer")
        assert answer.inner_text() == ATTACK
        assert answer.locator("span").count() == (len(ATTACK) if colouring == "probability" else 0)
        assert answer.locator("script, img, a, b").count() == 0
        watch.assert_clean()


def test_a_hundred_kilobytes_without_a_space_stay_in_their_column(browser, hostile):
    word = "x" * 1000
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None, "logprobs": None}
    events = f"data: {json.dumps({'choices': [choice]})}\n\n" * 100 + "data: [DONE]\n\n"
    with opened(browser, hostile, "/#/playground", viewport={"width": 390, "height": 800}) as (page, watch):
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
        page.get_by_label("Prompt").fill("w" * 100_000)
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("region", name="Answer")).to_have_text(word * 100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        watch.assert_clean()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = settings_for(tmp_path_factory.mktemp("data"))
    with serving(settings, ByteEngine("z" * 30 + "a" * 30, noise=0.5)) as client:
        address = str(client.base_url).removesuffix("/v1/")
        aligned(settings, "ft:bytes:iro::other", iterations=1, grader=GRADER | {"name": "strict"})
        yield SimpleNamespace(address=address, model=aligned(settings, "ft:bytes:iro::likes-z"), client=client)


def test_models_answer_side_by_side_with_their_settings(browser, served):
    bodies = []
    with opened(browser, served.address, "/#/playground") as (page, watch):
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        page.get_by_label("Prompt").fill("say z")
        page.get_by_label("Seed").fill("7")
        columns = page.get_by_role("region", name="Column")
        expect(columns).to_have_count(3)
        columns.nth(2).get_by_label("Answers").select_option("search")
        columns.nth(2).get_by_label("L, chunk length").press("End")
        columns.nth(2).get_by_label("K, successors").press("ArrowRight")
        expect(columns.nth(2).get_by_label("Rows")).to_be_disabled()
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        asked = [body for body in bodies if "messages" in body]
        by_grader = {"beam_width": 1, "num_successors": 16, "chunk_length": None, "strength": 0, "pick": "grader"}
        assert [body.get("search") for body in asked] == [None, by_grader, {"chunk_length": 32, "num_successors": 1}]
        assert [body["model"] for body in asked] == ["bytes", served.model, served.model]
        assert {(body["seed"], body["max_completion_tokens"]) for body in asked} == {(7, 64)}  # as the job's model
        page.get_by_role("button", name="Remove column 2").click()
        expect(columns).to_have_count(2)
        watch.assert_clean(refusals=1)  # the job's training file is gone


def test_aligned_models_are_mixed_by_weights(browser, served):
    bodies = []
    answer = {"choices": [{"index": 0, "delta": {"content": "mixed"}, "finish_reason": "stop", "logprobs": None}]}
    events = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n"
    with opened(browser, served.address, "/#/playground") as (page, watch):
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        page.get_by_label("Prompt").fill("say z")
        columns = page.get_by_role("region", name="Column")
        assert "mix" not in columns.nth(0).inner_html()  # the frozen model
        columns.nth(2).get_by_label("Answers").select_option("mix")
        columns.nth(2).get_by_label("ft:bytes:iro::other").press("ArrowLeft")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        (body,) = [body for body in bodies if "values" in body.get("search", {})]
        assert body["model"] == served.model
        assert body["search"] == {"values": {served.model: 1, "ft:bytes:iro::other": -0.25}}
        for _ in range(4):  # to 0, which left out would count as 1
            columns.nth(2).get_by_label(served.model).press("ArrowLeft")
        expect(columns.nth(2).get_by_text("With the settings before")).to_be_visible()
        bodies.clear()
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        (body,) = [body for body in bodies if "values" in body.get("search", {})]
        assert body["search"] == {"values": {served.model: 0, "ft:bytes:iro::other": -0.25}}
        expect(columns.nth(2).get_by_text("With the settings before")).to_have_count(0)
        watch.assert_clean(refusals=1)  # the job's training file is gone


def test_an_answer_can_be_stopped(browser, tmp_path):
    engine = ByteEngine("slowly " * 60, noise=0.0, seconds_per_token=0.05)
    with serving(settings_for(tmp_path), engine) as client:
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address, "/#/playground") as (page, watch):
            page.get_by_label("Prompt").fill("tell me")
            page.get_by_label("Prompt").press("Control+Enter")
            expect(page.get_by_role("region", name="Answer")).to_contain_text("slowly slowly")
            page.get_by_role("button", name="Stop").click()
            expect(page.get_by_text("(stopped)")).to_be_visible()
            watch.assert_clean()
        assert httpx.get(f"{address}/v1/health").status_code == 200


def test_a_refusal_is_shown_in_its_column(browser, served):
    with opened(browser, served.address, "/#/playground") as (page, _):
        page.get_by_label("Prompt").fill("long " * 200)
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert").first).to_contain_text("maximum context length is 512 tokens")


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_content_in_parts_is_shown_and_sent_as_its_text(browser, served):
    messages = [{"role": "system", "content": parts("Be ", "brief.")}, {"role": "user", "content": parts("Say ", "hi")}]
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.route("**/v1/files/*/content", lambda route: route.fulfill(body=json.dumps({"messages": messages})))
        page.goto(f"{served.address}/#/playground")
        expect(page.get_by_label("Prompt")).to_have_value("Say hi")
        page.get_by_text("1 message before it").click()
        expect(page.get_by_text("system: Be brief.")).to_be_visible()
        watch.assert_clean()


CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def streamed(*deltas: dict[str, object], ended: bool = True) -> str:
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if ended else "")


def answered(route, events: str) -> None:
    route.fulfill(body=events, content_type="text/event-stream")


def test_tools_are_sent_and_an_answer_that_calls_one_is_shown_and_not_graded(browser, served):
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c", "content": "rain"}
    row = {"messages": [{"role": "user", "content": "rain?"}, calling, result], "tools": [WEATHER]}
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"city":', ' "Oslo"}')]
    begun = {"index": 0, "id": "d", "type": "function", "function": {"name": "weather", "arguments": ""}}
    events = streamed({"content": "Look: "}, *({"tool_calls": [part]} for part in (begun, *parts)))
    bodies = []
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.route("**/v1/files/*/content", lambda route: route.fulfill(body=json.dumps(row)))
        page.route("**/v1/chat/completions", lambda route: answered(route, events))
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        page.goto(f"{served.address}/#/playground")
        expect(page.get_by_label("Prompt, the result of a tool")).to_have_value("rain")
        page.get_by_text("2 messages before it").click()
        expect(page.get_by_text('assistant: calls weather({"city": "Rome"})')).to_be_visible()
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text("not graded: the answer calls a function")).to_have_count(3)
        answers = page.get_by_role("region", name="Answer").all_inner_texts()
        assert answers == ['Look: \ncalls weather({"city": "Oslo"})'] * 3
        assert [{name: body[name] for name in row} for body in bodies] == [row] * 3
        page.get_by_role("button", name="Leave them out").click()
        expect(page.get_by_text("The model may call")).to_have_count(0)
        watch.assert_clean()


def test_an_answer_that_breaks_off_is_marked_and_one_whose_grading_stops_is_not(browser, served):
    graded = []
    with opened(browser, served.address, "/#/playground") as (page, _):
        page.route("**/graders/run", lambda route: graded.append(route))  # never answers
        page.route("**/v1/chat/completions", lambda route: answered(route, streamed({"content": "half"}, ended=False)))
        page.get_by_label("Prompt").fill("say z")
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert").filter(has_text="The answer broke off")).to_have_count(3)
        assert page.get_by_role("region", name="Answer").all_inner_texts() == ["half"] * 3 and graded == []
        page.route("**/v1/chat/completions", lambda route: answered(route, streamed({"content": "whole"})))
        with page.expect_request("**/graders/run"):
            page.get_by_role("button", name="Generate").click()
        expect(page.get_by_text("whole")).to_have_count(3)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("not graded: stopped")).to_have_count(3)
        expect(page.get_by_text("(stopped)")).to_have_count(0)


def test_the_highest_reward_is_of_the_columns_that_are_shown(browser, served):
    rewards = iter((1, 2, 3))

    def grade(route):
        route.fulfill(json={"reward": next(rewards), "sub_rewards": {}, "iro": {"error": None}})

    with opened(browser, served.address, "/#/playground") as (page, _):
        page.route("**/graders/run", grade)
        page.route("**/v1/chat/completions", lambda route: answered(route, streamed({"content": "whole"})))
        page.get_by_label("Prompt").fill("say z")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        columns = page.get_by_role("region", name="Column")
        highest = columns.filter(has_text="the highest here")
        expect(highest).to_contain_text("reward 3.000")
        highest.get_by_role("button", name="Remove column").click()
        expect(columns).to_have_count(2)
        expect(highest).to_contain_text("reward 2.000")


def test_a_prompt_and_its_answers_stay_and_are_said_to_be_of_an_earlier_prompt(browser, served):
    bodies = []
    with opened(browser, served.address, "/#/playground") as (page, watch):
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        prompt, outdated = page.get_by_label("Prompt"), page.get_by_text("With the settings before")
        prompt.fill("say z")
        page.get_by_label("Temperature").fill("0.75")
        prompt.press("Control+Enter")
        expect(page.locator(".reward b")).to_have_count(3)
        assert [body["temperature"] for body in bodies if "messages" in body] == [0.75] * 3
        expect(page.locator(".reward").first).to_contain_text("by quick (string_check)")
        answers = page.get_by_role("region", name="Answer").all_inner_texts()
        page.get_by_role("link", name="Jobs", exact=True).first.click()
        page.go_back()
        expect(prompt).to_have_value("say z")
        page.reload()
        expect(prompt).to_have_value("say z")
        expect(page.locator(".reward b")).to_have_count(3)
        assert page.get_by_role("region", name="Answer").all_inner_texts() == answers
        expect(outdated).to_have_count(0)
        prompt.fill("say y")
        expect(outdated).to_have_count(3)
        bodies.clear()
        page.get_by_label("Temperature").fill("9")
        prompt.press("Control+Enter")
        assert page.get_by_label("Temperature").evaluate("field => field.matches(':invalid:focus')") and bodies == []
        watch.assert_clean(refusals=3)  # the job's training file is gone, at each opening


def test_a_best_of_n_by_another_grader_than_the_rewards_are_by_says_so(browser, served):
    with opened(browser, served.address, "/#/playground") as (page, _):
        column = page.get_by_role("region", name="Column 3")
        column.get_by_label("Answers").select_option("best_of_n")
        other_grader = page.get_by_text("Picked by another grader than the rewards are by")
        expect(other_grader).to_have_count(0)
        column.get_by_label("Model", exact=True).select_option("ft:bytes:iro::other")
        expect(other_grader).to_contain_text("strict (string_check)")
