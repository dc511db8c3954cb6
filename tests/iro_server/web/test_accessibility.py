"""Every page for everyone: axe-core, the keyboard, a phone's width; and pages that hold a great deal."""

from __future__ import annotations

from io import BytesIO
from statistics import median
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, serving, settings_for
from tests.iro_server.web.conftest import opened
from tests.iro_server.web.crowd import EVENTS, ITERATIONS, JOBS, add_crowd

PHONE, DESK = {"width": 390, "height": 800}, {"width": 1100, "height": 800}
RECORD_TEXTS_OF_CHARTS = """() => {
  const { prototype } = CanvasRenderingContext2D, { fillText } = prototype;
  window.chartTexts = new Map();
  prototype.fillText = function (text, ...place) {
    chartTexts.set(this.canvas, [...(chartTexts.get(this.canvas) ?? []), text]);
    fillText.call(this, text, ...place);
  };
}"""
on_each_screen = pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        pytest.param("light", DESK, id="light-desk", marks=pytest.mark.slow(5)),
        pytest.param("dark", PHONE, id="dark-phone"),
        pytest.param("light", PHONE, id="light-phone", marks=pytest.mark.slow(4)),
        pytest.param("dark", DESK, id="dark-desk", marks=pytest.mark.slow(4)),
    ],
)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """The address of a server with many jobs, and the id of one with many events."""
    settings = settings_for(tmp_path_factory.mktemp("data"), job_concurrency=0, retention=None)  # the events are old
    with serving(settings, ByteEngine()) as client:
        aligned(settings, "ft:bytes:iro::likes-z")
        yield SimpleNamespace(address=str(client.base_url).removesuffix("/v1/"), job=add_crowd(settings))


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found for node in v["nodes"]]


def show_jobs(page: Page) -> None:
    expect(page.get_by_role("row")).to_have_count(101)


def show_job(page: Page) -> None:
    page.get_by_role("link", name=f"ftjob-{JOBS - 1:024d}").click()
    expect(page.get_by_text(f"iteration {ITERATIONS} of {ITERATIONS}")).to_be_visible()
    expect(page.get_by_label("Warnings").get_by_role("listitem")).to_have_count(3)
    page.get_by_text("Request", exact=True).click()


def show_new_job(page: Page) -> None:
    page.get_by_role("link", name="New job").first.click()
    page.get_by_role("button", name="Fill in an example").click()
    page.get_by_text("More options").click()
    page.get_by_label("Training rows").fill('wrong\n{"prompt": "right"}')
    expect(page.get_by_role("button", name="Line 1")).to_be_visible()
    page.get_by_role("button", name="Grade it").click()
    expect(page.get_by_text("reward 0")).to_be_visible()


def show_playground(page: Page) -> None:
    page.get_by_role("link", name="Playground").click()
    page.get_by_label("Prompt").fill("say z")
    page.get_by_label("Colour tokens").select_option("probability")
    page.get_by_label("Answers").last.select_option("search")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".reward b")).to_have_count(3)
    expect(page.get_by_role("group", name="Search tree")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_form_for_a_key_has_no_violation(browser, tmp_path, scheme):
    with serving(settings_for(tmp_path, require_keys=True), ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        with opened(browser, address, color_scheme=scheme, viewport=PHONE) as (page, _):
            expect(page.get_by_label("Key", exact=True)).to_be_visible()
            assert violations(page) == []
            page.get_by_label("Key", exact=True).fill("wrong")
            page.get_by_role("button", name="Continue").click()
            expect(page.get_by_role("alert")).to_be_visible()
            assert violations(page) == []


@on_each_screen
@pytest.mark.parametrize("show", [show_jobs, show_job, show_new_job, show_playground])
def test_no_violation_and_nothing_wider_than_the_screen(browser, crowded, show, scheme, viewport):
    with opened(browser, crowded.address, color_scheme=scheme, viewport=viewport) as (page, watch):
        show(page)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert watch.dialogs == [] and watch.foreign_requests == []


def test_older_jobs_and_all_events_are_reached(browser, crowded):
    with opened(browser, crowded.address) as (page, watch):
        show_jobs(page)
        for rows in (201, JOBS + 2):  # with the head, and the aligned model's job
            page.get_by_role("button", name="Older jobs").click()
            expect(page.get_by_role("row")).to_have_count(rows)
        expect(page.get_by_role("button", name="Older jobs")).to_have_count(0)
        page.evaluate(RECORD_TEXTS_OF_CHARTS)
        show_job(page)
        samples = page.get_by_role("region", name="Samples")
        samples.get_by_label("Held-out prompt").select_option("2 of 2")
        assert samples.get_by_role("article").all_inner_texts() == [
            "Frozen model\nreward 0.000\n\n(an empty answer)",
            f"Iteration {ITERATIONS}\nreward 0.800\n\n{'z' * ITERATIONS}",
        ]
        expect(page.get_by_role("region", name="Value correlation by token").get_by_role("img")).to_be_visible()
        ticks = page.evaluate("chartTexts.get(document.querySelector('[aria-label*=\"by token of\"] canvas'))")
        assert {"5", "6"} < {*ticks} and not {"4.5", "5.5"} & {*ticks}
        legend = page.get_by_role("region", name="Reward against KL").get_by_role("listitem")
        first, second = ["words", "bias", "temperature alone"], ["states", "temperature alone"]
        third = ["kind 0", "kind 1", "kind 2", "temperature alone"]
        rounds = enumerate((first, second, third), 1)
        expect(legend).to_have_text([f"{name}, round {number}" for number, names in rounds for name in names])
        lines = page.locator("section[aria-labelledby=tilts] .legend i")
        styles = lines.evaluate_all("lines => lines.map(line => getComputedStyle(line).borderTop)")
        assert len({*styles}) == len(styles) and not any("rgb(0, 0, 0)" in style for style in styles)
        expect(page.get_by_role("region", name="Reward against KL")).to_contain_text(
            "Chosen: words at strength 2, temperature 0.50, and added to it states at strength 1, "
            "repetition penalty 2, temperature 0.50, reward 0.750 at 5.2 nats."
        )
        rows = page.get_by_role("region", name="Table of rewards by rows").get_by_role("row")
        expect(rows.nth(0)).to_contain_text("95 % interval")
        expect(rows.nth(1)).to_contain_text("served")
        expect(rows.nth(1)).to_contain_text("0.610\u00a0±\u00a00.07")
        assert page.locator("section[aria-labelledby=prices] .interval").count() == 1  # none of a single prompt
        strengths = page.get_by_role("region", name="Table of rewards by strength").get_by_role("row")
        expect(strengths.nth(0)).to_contain_text("± 2 standard errors")  # of an earlier version
        assert [strengths.nth(row).inner_text().split() for row in (1, 3)] == [
            ["0.25", "0.400", "±", "0.06", "21.5", "1.2", "0.10"],
            ["1", "0.610", "±", "0.06", "21.5", "3.1", "0.26"],
        ]
        expect(page.get_by_role("region", name="without doing what you want")).to_contain_text(
            "answers are much longer"
        )
        page.get_by_role("button", name="Show all").click()
        expect(page.get_by_label("Events, newest first").get_by_role("listitem")).to_have_count(
            EVENTS + ITERATIONS + 10
        )
        expect(page.get_by_text("the last iteration may exploit the training prompts")).to_be_visible()
        watch.assert_clean()


def test_the_keyboard_alone_reaches_a_job(browser, crowded):
    with opened(browser, crowded.address) as (page, _):
        show_jobs(page)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        for _ in range(3):  # the button, the table, its first link
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_contain_text("ftjob-")


def test_on_a_phone_a_table_shows_that_it_scrolls_and_checkpoints_have_their_whole_names(browser, crowded):
    with opened(browser, crowded.address, color_scheme="light", viewport={"width": 360, "height": 800}) as (page, _):
        show_job(page)
        names = page.get_by_role("region", name="Table of checkpoints").get_by_role("code")
        assert names.first.evaluate("code => code.scrollWidth <= code.clientWidth")
        table = page.get_by_role("region", name="Table of iterations")
        at_start = edges(table)
        table.evaluate("table => { table.scrollLeft = table.scrollWidth }")
        at_end = edges(table)
        assert at_start[1] < at_end[1] - 20 and at_end[0] < at_start[0] - 20  # darker where there is more


def edges(table: Locator) -> tuple[float, float]:
    """The brightness of its outermost columns of pixels, left and right, most of which are empty."""
    image = Image.open(BytesIO(table.screenshot())).convert("L")
    heights = range(image.height)
    return tuple(median(image.getpixel((x, y)) for y in heights) for x in (0, image.width - 1))
