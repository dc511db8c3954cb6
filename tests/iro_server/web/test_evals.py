"""Evals in the browser: runs by criterion, failures, and two runs side by side."""

from __future__ import annotations

from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import openai
import pytest
from playwright.sync_api import Page, expect

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import CLOSE, SAYS_Z, new_eval, run_eval, sampled
from tests.iro_server.api.serving import serving, settings_for
from tests.iro_server.web.conftest import opened
from tests.iro_server.web.crowd import HOSTILE
from tests.iro_server.web.test_accessibility import on_each_screen, violations

ITEMS = 8
NONE = "\N{EN DASH}"  # where there is no answer
HOSTILE_EVAL = {
    "source": {"type": "file_content", "content": [{"item": {"q": HOSTILE}, "sample": {"output_text": HOSTILE}}]}
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A server with an eval of two runs that differ by their seed, and one whose names and answers are hostile."""
    settings = settings_for(tmp_path_factory.mktemp("data"))
    with serving(settings, ByteEngine(length=8192)) as client:
        id = new_eval(client, [SAYS_Z, CLOSE])
        runs = [run_eval(client, id, sampled(ITEMS, seed=seed)) for seed in (1, 2)]
        hostile = new_eval(client, [SAYS_Z | {"name": HOSTILE}, CLOSE])
        client.evals.update(hostile, name=HOSTILE[:500])
        run_eval(client, hostile, {"type": "jsonl"} | HOSTILE_EVAL)
        address = str(client.base_url).removesuffix("/v1/")
        yield SimpleNamespace(client=client, address=address, eval=id, runs=runs, hostile=hostile)


def items(page: Page) -> list[list[str]]:
    """The cells of the table of items."""
    rows = page.get_by_role("region", name="Table of items").get_by_role("row").all()[1:]
    return [row.get_by_role("cell").all_inner_texts() for row in rows]


def statuses(evaluated: SimpleNamespace, run_id: str) -> list[str]:
    listed = evaluated.client.evals.runs.output_items.list(run_id, eval_id=evaluated.eval, limit=100)
    return [item.status for item in listed.data]


@pytest.mark.slow(9)
def test_failures_are_filtered_and_two_runs_compared(browser, evaluated):
    first, second = (statuses(evaluated, run.id) for run in evaluated.runs)
    assert "pass" in first + second and first != second  # there is something to see
    with opened(browser, evaluated.address) as (page, watch):
        page.get_by_role("link", name="Evals").click()
        page.get_by_role("link", name="letters").click()
        expect(page.get_by_text(f"{ITEMS} items")).to_be_visible()
        for run in evaluated.runs:
            counts = run.result_counts
            expect(page.get_by_role("region", name="Table of runs")).to_contain_text(
                f"{counts.passed} of {counts.total}"
            )
        assert len(items(page)) == ITEMS and [len(row) for row in items(page)] == [4] * ITEMS  # item, answer, criteria
        page.get_by_label("Show").select_option("failures")
        failures = [status for status in second if status != "pass"]  # the newest run's
        assert len(items(page)) == len(failures)
        assert all("✗" in "".join(row[2:]) for row in items(page))
        page.get_by_label("Compared with").select_option(evaluated.runs[0].id)
        page.get_by_label("Show").select_option("changed")
        expect(page.get_by_role("columnheader", name="Other answer")).to_be_visible()
        differs = [place for place, pair in enumerate(zip(first, second, strict=True)) if len(set(pair)) > 1]
        expect(page.get_by_role("status").filter(has_text="item")).to_contain_text(str(len(differs)))
        assert len(items(page)) == len(differs) and all("/" in row[3] for row in items(page))
        watch.assert_clean()


@pytest.mark.slow(13)
def test_a_run_is_started_on_the_items_of_an_earlier_one_or_on_new_ones(browser, evaluated):
    id = new_eval(evaluated.client, [SAYS_Z, CLOSE])
    evaluated.client.evals.update(id, name="more")
    run_eval(evaluated.client, id, sampled(ITEMS, seed=3))
    with opened(browser, evaluated.address, f"/#/evals/{id}") as (page, watch):
        heads = page.get_by_role("region", name="Table of runs").get_by_role("columnheader")
        expect(heads.filter(has_text="says z")).to_contain_text("passes from 0.5")
        expect(heads.filter(has_text="close")).to_contain_text("passes from 0.4")
        page.get_by_role("link", name="New run").click()
        page.get_by_label("Name of the run").fill("shorter")
        expect(page.get_by_label("Prompt")).to_have_value("say {{item.q}}")
        page.get_by_label("Answer length").fill("3")
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_text(f"{ITEMS} items")).to_be_visible()
        page.get_by_role("link", name="New run").click()
        page.get_by_label("Name of the run").fill("two")
        page.get_by_label("Items", exact=True).select_option("new ones")
        rows = page.get_by_label("New items")
        rows.fill('{"q": "a"}\nno')
        expect(page.get_by_role("button", name="Start the run")).to_be_disabled()
        expect(page.get_by_text("is not valid JSON")).to_be_visible()
        rows.fill('{"q": "a"}\n{"item": {"r": "b"}}')
        page.get_by_label("Prompt").fill("")
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_role("alert")).to_contain_text("write what the model is asked")
        page.get_by_label("Prompt").fill("repeat {{item.q}}")
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_role("alert")).to_contain_text("an item does not fit item_schema")
        rows.fill('{"q": "a"}\n{"item": {"q": "b"}}')
        assert violations(page) == []
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_text("2 items")).to_be_visible()
        watch.assert_clean(refusals=1)
    two, shorter, first = evaluated.client.evals.runs.list(id, order="desc").data
    assert (two.name, shorter.name, shorter.result_counts.total) == ("two", "shorter", ITEMS)
    assert two.data_source.input_messages.template[0].content.text == "repeat {{item.q}}"
    assert shorter.data_source.sampling_params.max_completion_tokens == 3
    assert shorter.data_source.sampling_params.seed == 3 and shorter.data_source.source == first.data_source.source


def test_an_eval_is_created_and_run_from_an_empty_page(browser, tmp_path):
    with serving(settings_for(tmp_path), ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address, "/#/evals") as (page, watch):
            page.get_by_role("link", name="Create an eval").click()
            page.get_by_label("Name of the eval").fill("letters")
            page.get_by_label("Items", exact=True).fill('{"q": "z", "note": 1}\n{"q": "y"}')
            page.get_by_label("Prompt").fill("say {{item.question}}")
            expect(page.get_by_text("No row has the field question.")).to_be_visible()
            page.get_by_label("Words").fill("z")
            page.get_by_role("button", name="Create the eval").click()
            expect(page.get_by_role("alert")).to_contain_text("no item has the field question")
            page.get_by_role("link", name="Jobs", exact=True).first.click()
            page.go_back()
            expect(page.get_by_label("Name of the eval")).to_have_value("letters")
            expect(page.get_by_label("Words")).to_have_value("z")
            expect(page.get_by_text("2 rows, all valid")).to_be_visible()
            page.get_by_label("Prompt").fill("say {{item.q}}")
            page.get_by_label("Answer length").fill("6")
            page.get_by_label("Kind of grader").select_option("python")
            page.get_by_label("Source").fill("def grade(sample, item):\n    return item[\n")
            assert violations(page) == []
            page.get_by_role("button", name="Create the eval").click()
            expect(page.get_by_role("alert")).to_contain_text("testing_criteria.0")
            page.get_by_label("Kind of grader").select_option("string_check")
            page.get_by_label("Text", exact=True).fill("{{item.q}}")
            page.get_by_role("button", name="Create the eval").click()
            expect(page.get_by_role("heading", name="letters")).to_be_visible()
            expect(page.get_by_text("2 items")).to_be_visible()
            watch.assert_clean(refusals=1)
        [evaluation] = client.evals.list().data
        assert evaluation.data_source_config.schema_["properties"]["item"]["required"] == ["q"]
        [run] = client.evals.runs.list(evaluation.id).data
        assert (run.status, run.result_counts.total, run.result_counts.errored) == ("completed", 2, 0)


def test_items_without_an_answer_are_marked_and_their_run_is_deleted(browser, evaluated):
    id = new_eval(evaluated.client, [SAYS_Z])
    evaluated.client.evals.update(id, name="errors")
    run_eval(evaluated.client, id, sampled(2))
    template = {"type": "template", "template": [{"role": "user", "content": "say {{item.q.question}}"}]}
    run = run_eval(evaluated.client, id, sampled(2) | {"input_messages": template})
    assert run.result_counts.errored == 2
    with opened(browser, evaluated.address, f"/#/evals/{id}") as (page, watch):
        rows = page.get_by_role("region", name="Table of runs").get_by_role("row")
        expect(rows).to_have_count(3)
        expect(rows.nth(1)).to_contain_text("0 of 2\n2 errors", use_inner_text=True)
        assert rows.nth(1).get_by_text("bytes · run").get_attribute("title") == f"bytes · run · {run.id}"
        assert all(row[1].startswith("no answer:") for row in items(page))
        rows.nth(1).get_by_role("button", name="Delete").click()
        rows.nth(1).get_by_role("button", name="Delete the run").click()
        expect(rows).to_have_count(2)
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        watch.assert_clean()
    assert [run.result_counts.errored for run in evaluated.client.evals.runs.list(id).data] == [0]


def stored_eval(client: openai.OpenAI) -> str:
    """An eval whose name no other test looks for."""
    id = new_eval(client, [SAYS_Z])
    client.evals.update(id, name="stored")
    return id


def stored(answers: dict[str, str]) -> dict[str, object]:
    """A run's source: items with stored answers."""
    content = [{"item": {"q": q}, "sample": {"output_text": answer}} for q, answer in answers.items()]
    return {"type": "jsonl", "source": {"type": "file_content", "content": content}}


def test_answers_to_different_items_do_not_stand_beside_each_other(browser, evaluated):
    id = stored_eval(evaluated.client)
    other = run_eval(evaluated.client, id, stored({"2+2?": "z", "Zoo?": "z"}))
    run_eval(evaluated.client, id, stored({"Zoo?": "no", "Capital of Italy?": "Rome"}))
    with opened(browser, evaluated.address, f"/#/evals/{id}") as (page, watch):
        page.get_by_label("Compared with").select_option(other.id)
        expect(page.get_by_text("2 of 3 items are graded in one of the two runs only")).to_be_visible()
        assert [row[:3] for row in items(page)] == [
            ["Zoo?", "no", "z"],
            ["2+2?", NONE, "z"],
            ["Capital of Italy?", "Rome", NONE],
        ]
        page.get_by_label("Show").select_option("changed")
        assert [row[0] for row in items(page)] == ["Zoo?"]
        watch.assert_clean()


@pytest.mark.slow(6)
def test_items_beyond_the_first_thousand_are_counted_filtered_and_read(browser, evaluated):
    runs = evaluated.client.evals.runs
    run = runs.retrieve(evaluated.runs[0].id, eval_id=evaluated.eval).to_dict()
    item = runs.output_items.list(run["id"], eval_id=evaluated.eval, limit=1).data[0].to_dict()
    fields = ((i, "fail" if i >= 1005 else "pass") for i in range(1010))
    graded = [
        item | {"id": f"outputitem_{i}", "datasource_item_id": i, "datasource_item": {"q": f"q{i}"}, "status": status}
        for i, status in fields
    ]
    counts = {"total": 1010, "passed": 1005, "failed": 5, "errored": 0}

    def list_items(route):
        query = parse_qs(urlsplit(route.request.url).query)
        listed = [each for each in graded if each["status"] in query.get("status", ["pass", "fail"])]
        ids = [each["id"] for each in listed]
        start = ids.index(query["after"][0]) + 1 if "after" in query else 0
        route.fulfill(json={"data": listed[start : start + 100], "has_more": start + 100 < len(listed)})

    with opened(browser, evaluated.address, "/#/evals") as (page, watch):
        listed = {"data": [run | {"result_counts": counts}], "has_more": False}
        page.route("**/runs?*", lambda route: route.fulfill(json=listed))
        page.route("**/output_items?*", list_items)
        page.goto(f"{evaluated.address}/#/evals/{evaluated.eval}")
        expect(page.get_by_text("the first 1,000 of 1,010 items")).to_be_visible()
        page.get_by_label("Show").select_option("failures")
        expect(page.get_by_text("5 items", exact=True)).to_be_visible()
        assert [row[0] for row in items(page)] == [f"q{i}" for i in range(1005, 1010)]
        page.get_by_label("Show").select_option("all")
        expect(page.get_by_text("the first 1,000 of 1,010 items")).to_be_visible()
        for _ in range(10):
            page.get_by_role("button", name="More items").click()
        expect(page.get_by_text("1010 items")).to_be_visible()
        expect(page.get_by_role("region", name="Table of items").locator("tbody tr")).to_have_count(1010)
        expect(page.get_by_role("button", name="More items")).to_have_count(0)
        watch.assert_clean()


def test_a_run_after_stored_answers_needs_a_prompt_and_a_file_may_hold_bare_items(browser, evaluated, tmp_path):
    id = stored_eval(evaluated.client)
    run_eval(evaluated.client, id, stored({"a": "z"}))
    file = tmp_path / "items.data"  # which is not put into the text field
    with opened(browser, evaluated.address, f"/#/evals/{id}/new") as (page, watch):
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_role("alert")).to_contain_text("write what the model is asked")
        page.get_by_label("Prompt").fill("say {{item.q}}")
        page.get_by_label("Items", exact=True).select_option("new ones")
        page.get_by_label("Prompt").fill("say {{item.q}}")
        for text, message in {"{}\nno": "Line 2 is not valid JSON", "caf\u00e9": "is not UTF-8"}.items():
            file.write_text(text, encoding="latin-1")
            page.get_by_label("Choose a file").set_input_files(file)
            page.get_by_role("button", name="Start the run").click()
            expect(page.get_by_role("alert")).to_contain_text(message)
        file.write_text('{"q": "a"}\n{"item": {"q": "b"}}\n')
        page.get_by_label("Choose a file").set_input_files(file)
        page.get_by_role("button", name="Start the run").click()
        expect(page.get_by_text("2 items")).to_be_visible()
        assert [row[0] for row in items(page)] == ["a", "b"]
        watch.assert_clean()


def test_more_evals_and_runs_than_one_call_lists_are_read(browser, evaluated):
    def listed(rows):
        def answer(route):
            after = route.request.url.partition("after=")[2]
            rest = rows[100:] if after else rows[:100]
            route.fulfill(json={"data": rest, "has_more": not after})

        return answer

    run = evaluated.client.evals.runs.retrieve(evaluated.runs[0].id, eval_id=evaluated.eval).to_dict()
    evaluation = evaluated.client.evals.retrieve(evaluated.eval).to_dict()
    with opened(browser, evaluated.address, "/#/jobs") as (page, watch):
        page.route("**/v1/evals?*", listed([evaluation | {"id": f"eval_{i}", "name": f"n{i}"} for i in range(105)]))
        page.route("**/runs?*", listed([run | {"id": f"evalrun_{i}"} for i in range(105)]))
        page.route("**/output_items?*", lambda route: route.fulfill(json={"data": [], "has_more": False}))
        page.get_by_role("link", name="Evals").click()
        page.get_by_role("button", name="More evals").click()
        expect(page.get_by_role("link", name="n104")).to_be_visible()
        expect(page.get_by_role("button", name="More evals")).to_have_count(0)
        page.goto(f"{evaluated.address}/#/evals/{evaluated.eval}")
        page.get_by_role("button", name="More runs").click()
        expect(page.get_by_role("region", name="Table of runs").get_by_role("row")).to_have_count(106)
        watch.assert_clean()


def test_a_run_under_way_is_cancelled(browser, evaluated):
    def as_running(route):
        listed = route.fetch().json()
        listed["data"][0]["status"] = "in_progress"
        route.fulfill(json=listed)

    cancelled = []
    with opened(browser, evaluated.address) as (page, _):
        page.route(f"**/evals/{evaluated.eval}/runs?*", as_running)
        page.on("request", lambda request: cancelled.append(request.url) if request.method == "POST" else None)
        page.goto(f"{evaluated.address}/#/evals/{evaluated.eval}")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="End the run for good").click()
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        page.unroute_all(behavior="ignoreErrors")  # the page reads on
    run = evaluated.runs[1].id
    assert cancelled == [f"{evaluated.address}/v1/evals/{evaluated.eval}/runs/{run}/cancel"]


def test_an_empty_list_says_how_to_begin(browser, tmp_path):
    with serving(settings_for(tmp_path), ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address, "/#/evals") as (page, watch):
            expect(page.get_by_text("No evals yet")).to_be_visible()
            assert violations(page) == []
            watch.assert_clean()


@on_each_screen
def test_hostile_names_and_answers_are_text_and_nothing_is_inaccessible(browser, evaluated, scheme, viewport):
    with opened(browser, evaluated.address, "/#/evals", color_scheme=scheme, viewport=viewport) as (page, watch):
        expect(page.get_by_role("link", name="letters")).to_be_visible()
        assert violations(page) == []
        page.get_by_role("link", name="onerror").click()
        expect(page.get_by_text("1 item", exact=True)).to_be_visible()
        assert HOSTILE in page.get_by_role("region", name="Table of items").inner_text()
        assert page.locator("main img").count() == 0 and violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        watch.assert_clean()
