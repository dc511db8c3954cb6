"""Starting a job in the browser: rows checked by line, a grader tried, and the job that comes of it."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Route, expect

from iro_server.graders.similarity import METRICS
from tests.iro_server.web.conftest import opened

ROW = '{"prompt": "say z"}'
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "rain"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
WRONG = {
    "not JSON": '{"prompt": "say z"',
    "blank": "",
    "a list": "[1]",
    "no prompt": '{"text": "say z"}',
    "two prompts": '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}',
    "empty prompt": '{"prompt": ""}',
    "no messages": '{"messages": []}',
    "a role": '{"messages": [{"role": "robot", "content": "b"}]}',
    "no content": '{"messages": [{"role": "user"}]}',
    "ends with an answer": '{"messages": [{"role": "assistant", "content": "b"}]}',
    "a part of another kind": '{"messages": [{"role": "user", "content": [{"type": "image_url", "text": "b"}]}]}',
    "a user's call": json.dumps({"messages": [CALLING | {"role": "user"}]}),
    "a call without arguments": json.dumps({"messages": [CALLING | {"tool_calls": [{"id": "c"}]}, RESULT]}),
    "a result of no call": '{"messages": [{"role": "tool", "content": "rain"}]}',
    "a result of another call": json.dumps({"messages": [CALLING, RESULT | {"tool_call_id": "d"}]}),
    "a call without a result": json.dumps({"messages": [CALLING, {"role": "user", "content": "rain?"}]}),
    "a tool without a name": json.dumps({"prompt": "a", "tools": [{"type": "function", "function": {}}]}),
}
TOOL_ROW = json.dumps({"messages": [{"role": "user", "content": "rain?"}, CALLING, RESULT], "tools": [WEATHER]})


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_the_page_refuses_the_lines_that_the_server_refuses(page_of_new_job, served, line):
    page = page_of_new_job
    page.get_by_label("Training rows").fill(f"{ROW}\n{line}\n{ROW}\n")
    expect(page.get_by_text("1 line is wrong")).to_be_visible()
    expect(page.get_by_role("button", name="Line 2")).to_be_visible()
    expect(page.get_by_role("button", name="Start the job")).to_be_disabled()
    answer = served.http.post(
        "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", f"{ROW}\n{line}\n{ROW}\n")}
    )
    assert answer.status_code == 400 and "line 2" in answer.json()["error"]["message"]


def test_rows_with_calls_of_tools_are_valid_and_a_call_of_the_model_is_not_graded(page_of_new_job, served):
    page = page_of_new_job
    page.get_by_label("Training rows").fill(TOOL_ROW)
    expect(page.get_by_text("1 row, all valid")).to_be_visible()
    expect(page.get_by_role("button", name="Start the job")).to_be_enabled()
    body = {"purpose": "fine-tune"}
    assert served.http.post("/v1/files", data=body, files={"file": ("rows.jsonl", TOOL_ROW + "\n")}).status_code == 200
    delta = {"tool_calls": [{"index": 0, **CALL}]}
    chunk = json.dumps({"choices": [{"delta": delta, "finish_reason": "tool_calls"}]})
    events = f"data: {chunk}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=events, content_type="text/event-stream"))
    with page.expect_request("**/v1/chat/completions") as request:
        page.get_by_role("button", name="Have the frozen model write one").click()
    assert request.value.post_data_json["tools"] == [WEATHER]
    expect(page.get_by_role("alert")).to_contain_text('The model calls weather({"city": "Rome"})')
    page.unroute("**/v1/chat/completions")


def test_a_file_that_is_not_utf_8_is_refused(page_of_new_job, tmp_path):
    page, file = page_of_new_job, tmp_path / "latin.jsonl"
    page.get_by_label("Training rows").fill(ROW)
    for encoding, message in {"latin-1": "is not UTF-8: save", "utf-16": "(it looks like UTF-16)"}.items():
        file.write_bytes('{"prompt": "caf\u00e9"}\n'.encode(encoding))
        page.get_by_label("Choose a file").set_input_files(file)
        expect(page.get_by_role("alert").filter(has_text="latin.jsonl")).to_contain_text(message)
    expect(page.get_by_label("Training rows")).to_have_value(ROW)
    file.write_text('{"prompt": "caf\u00e9"}\n')
    page.get_by_label("Choose a file").set_input_files(file)
    expect(page.get_by_text("latin.jsonl")).to_have_count(0)
    expect(page.get_by_label("Training rows")).to_have_value('{"prompt": "caf\u00e9"}\n')


def test_the_form_has_every_measure_of_similarity(page_of_new_job):
    page = page_of_new_job
    page.get_by_label("Kind of grader").select_option("text_similarity")
    assert set(page.get_by_label("Measure").locator("option").all_inner_texts()) == {*METRICS, "cosine"}


@pytest.fixture(scope="module")
def page_of_new_job(browser, served):
    with opened(browser, served.address, "/#/new") as (page, _):
        yield page


def test_a_wrong_line_is_selected_where_it_is_pointed_at(page_of_new_job):
    page = page_of_new_job
    rows = [ROW] * 40
    rows[29] = "wrong"
    page.get_by_label("Training rows").fill("\n".join(rows))
    page.get_by_role("button", name="Line 30").click()
    field = "document.activeElement"
    selected = page.evaluate(f"{field}.value.slice({field}.selectionStart, {field}.selectionEnd)")
    assert selected == "wrong" and page.evaluate(f"{field}.scrollTop") > 0


def test_from_an_empty_page_to_a_finished_job_and_its_answer(browser, served, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"messages": [{"role": "user", "content": "say z"}], "letter": "z"}\n' * 3)
    with opened(browser, served.address) as (page, watch):
        page.get_by_role("link", name="New job", exact=True).first.click()
        expect(page.get_by_role("button", name="Start the job")).to_be_disabled()
        page.get_by_label("Choose a file").set_input_files(tmp_path / "mine.jsonl")
        expect(page.get_by_text("3 rows, all valid")).to_be_visible()
        page.get_by_label("Kind of grader").select_option("string_check")
        page.get_by_label("Text", exact=True).fill("{{ item.letters }}")
        expect(page.get_by_text("No row has the field letters.")).to_be_visible()
        page.get_by_label("Text", exact=True).fill("{{item.letter}}")
        expect(page.get_by_text("No row has the field")).to_have_count(0)
        page.get_by_label("Answer to grade").fill("a zebra")
        page.get_by_label("to row").fill("1.5")
        page.get_by_role("button", name="Grade it").click()
        expect(page.get_by_text("reward 1")).to_be_visible()
        page.get_by_label("Name").fill("mine")
        page.get_by_label("Iterations").fill("2")
        page.get_by_text("More options").click()
        page.get_by_label("Seed").fill("7")
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_text("succeeded", exact=True)).to_be_visible()
        page.get_by_role("link", name="Try it", exact=True).click()
        expect(page.get_by_label("Prompt")).to_have_value("say z")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".reward b")).to_have_count(3)
        watch.assert_clean()
    job = served.client.fine_tuning.jobs.list().data[0]
    assert job.fine_tuned_model.startswith("ft:bytes:iro:mine:") and job.seed == 7
    grader = job.method.reinforcement.grader
    assert (grader.operation, grader.reference) == ("ilike", "{{item.letter}}")
    content = served.client.files.content(job.training_file).text
    assert [json.loads(line)["letter"] for line in content.splitlines()] == ["z"] * 3


def test_what_was_filled_in_stays_until_the_form_is_cleared(browser, served):
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_role("button", name="Fill in an example").click()
        page.get_by_label("Name").fill("slogans")
        rows, kind = (page.get_by_label(name) for name in ("Training rows", "Kind of grader"))
        filled_in = rows.input_value(), kind.input_value()
        page.get_by_role("link", name="Jobs", exact=True).first.click()
        page.get_by_role("link", name="New job", exact=True).first.click()
        expect(page.get_by_label("Name")).to_have_value("slogans")
        assert (rows.input_value(), kind.input_value()) == filled_in
        expect(page.get_by_text("all valid")).to_be_visible()
        page.get_by_role("button", name="Clear the form").click()
        expect(page.get_by_label("Name")).to_have_value("")
        expect(rows).to_have_value("")
        page.get_by_role("button", name="Undo").click()
        expect(page.get_by_label("Name")).to_have_value("slogans")
        assert (rows.input_value(), kind.input_value()) == filled_in
        expect(page.get_by_role("button", name="Undo")).to_have_count(0)
        watch.assert_clean()


def test_a_file_is_chosen_again_once_it_is_corrected(page_of_new_job, tmp_path):
    page, file = page_of_new_job, tmp_path / "rows.json"
    file.write_text(f"[\n{ROW},\n{ROW}\n]\n")
    page.get_by_label("Choose a file").set_input_files(file)
    expect(page.locator(".problems li")).to_have_text(
        ["Line 1 begins a JSON array: write one object a line, without the array around them"]
    )
    file.write_text(f"{ROW}\n{ROW}\n")
    page.get_by_label("Choose a file").set_input_files(file)
    expect(page.get_by_text("2 rows, all valid")).to_be_visible()


@pytest.mark.parametrize(
    ("grader", "message"),
    [
        ('{"type": "string_check"', "The grader: not valid JSON"),
        ('{"type": "magic"}', "grader"),
        ("[]", "The grader: not a JSON object"),
    ],
)
def test_a_grader_that_is_none_starts_no_job(page_of_new_job, grader, message):
    page = page_of_new_job
    page.get_by_label("Training rows").fill(ROW)
    page.get_by_label("Kind of grader").select_option("json")
    page.get_by_label("Grader", exact=True).fill(grader)
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text(message)
    assert "#/new" in page.url
    page.get_by_label("Grader", exact=True).press("End")
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Grader", exact=True).press("Space")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_label("Grader", exact=True)).to_have_accessible_description(re.compile("As in the API"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"model": "gpt-4"}', "leave out model"),
        ('{"method": {"reinforcement": {"grader": {"type": "multi"}}}}', "leave out the grader"),
        ('{"method": {"type": "dpo"}}', '"reinforcement" only'),
        ('{"method": {"reinforcement": {"iro": {"max_token": 3}}}}', "Did you mean"),
    ],
)
def test_other_fields_that_would_not_count_start_no_job(browser, served, text, message):
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_label("Training rows").fill(ROW)
        page.get_by_label("Words").fill("z")
        page.get_by_text("More options").click()
        page.get_by_label("Other fields of the request").fill(text)
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_role("alert")).to_contain_text(message)
        assert "#/new" in page.url
        page.get_by_role("button", name="Clear the form").click()
        expect(page.get_by_role("alert")).to_have_count(0)
        watch.assert_clean(refusals="max_token" in text)


def test_a_wrong_option_that_is_folded_away_is_shown(browser, served):
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_label("Training rows").fill(ROW)
        page.get_by_label("Words").fill("z")
        page.get_by_text("More options").click()
        page.get_by_label("W, beams").fill("100000")
        page.get_by_text("More options").click()
        expect(page.get_by_label("W, beams")).to_be_hidden()
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_label("W, beams")).to_be_visible()
        watch.assert_clean()


def test_an_estimate_says_before_the_job_what_is_wrong(browser, served):
    """A reward that no answer gets; the server's own answers are shown."""
    jobs = len(served.client.fine_tuning.jobs.list().data)
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_label("Training rows").fill("\n".join([ROW] * 6))
        page.get_by_label("Kind of grader").select_option("string_check")
        page.get_by_label("Text", exact=True).fill("no answer has this")
        page.get_by_role("button", name="Estimate first").click()
        expect(page.get_by_text("The reward is constant")).to_be_visible()
        expect(page.locator("blockquote")).to_have_count(3)
        expect(page.locator("blockquote").first).to_contain_text("reward 0.000")
        page.get_by_role("link", name="Jobs", exact=True).first.click()
        page.get_by_role("link", name="New job", exact=True).first.click()
        expect(page.get_by_text("The reward is constant")).to_be_visible()
        page.get_by_label("Text", exact=True).fill("z")
        expect(page.get_by_text("Of the form before it was changed")).to_be_visible()
        watch.assert_clean()
    assert len(served.client.fine_tuning.jobs.list().data) == jobs


def test_who_has_gone_elsewhere_stays_there_when_the_job_has_started(browser, served):
    """Its name is that of the other fields of the request, as the form has none."""
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_label("Training rows").fill(ROW)
        page.get_by_label("Words").fill("z")
        page.get_by_text("More options").click()
        page.get_by_label("Other fields of the request").fill('{"suffix": "from-json", "metadata": {"a": "b"}}')
        uploads: list[Route] = []
        page.route("**/v1/files", lambda route: uploads.append(route))
        with page.expect_request("**/v1/files"):
            page.get_by_role("button", name="Start the job").click()
        page.get_by_role("link", name="Playground", exact=True).first.click()
        expect(page.get_by_role("heading", name="Playground")).to_be_visible()
        with page.expect_response("**/v1/fine_tuning/jobs") as started:
            uploads[0].continue_()
        job = started.value.json()
        assert (job["iro"]["suffix"], job["metadata"]) == ("from-json", {"a": "b"})
        page.wait_for_timeout(300)
        assert page.url.endswith("#/playground")
        watch.assert_clean()


def test_the_example_starts_a_job(browser, served):
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_role("button", name="Fill in an example").click()
        page.get_by_label("Answer to grade").fill("A good film, really")
        page.get_by_role("button", name="Grade it").click()
        expect(page.get_by_text("reward 2")).to_be_visible()
        page.get_by_label("Answer to grade").fill("A film")
        expect(page.get_by_text("reward 2")).to_have_count(0)
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_text("Created fine-tuning job")).to_be_visible()
        watch.assert_clean()
    job = served.client.fine_tuning.jobs.list().data[0]
    options = {"iterations": 1, "rollouts_per_prompt": 8, "max_tokens": 24}
    assert job.method.reinforcement.iro == options
    assert job.method.reinforcement.hyperparameters.eval_samples == 4
