"""Evals in the browser: runs by criterion, failures, and two runs side by side."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import Page, expect

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import CLOSE, SAYS_Z, new_eval, run_eval, sampled
from tests.iro_server.api.serving import serving, settings_for
from tests.iro_server.web.conftest import opened
from tests.iro_server.web.crowd import HOSTILE
from tests.iro_server.web.test_accessibility import on_each_screen, violations

ITEMS = 8
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
