"""On a server that requires keys, the page shows a tenant's own things, and keeps a key for the tab alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from playwright.sync_api import expect

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, start_job
from tests.iro_server.web.conftest import opened


@pytest.fixture(scope="module")
def tenants(tmp_path_factory):
    """A server with two projects, the first of which has a job."""
    settings = settings_for(tmp_path_factory.mktemp("data"), require_keys=True, job_concurrency=0)
    keys = {name: new_key(settings, name) for name in ("first", "second")}
    with serving(settings, ByteEngine()) as client:
        job = start_job(client.with_options(api_key=keys["first"]))
        yield SimpleNamespace(address=str(client.base_url).removesuffix("/v1/"), keys=keys, job=job)


def sign_in(page, key: str) -> None:
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Continue").click()


def test_a_second_tenant_sees_nothing_of_the_first(browser, tenants):
    with opened(browser, tenants.address) as (page, watch):
        sign_in(page, tenants.keys["first"])
        expect(page.get_by_role("link", name=tenants.job)).to_be_visible()
        page.get_by_role("button", name="Forget key").click()
        expect(page.get_by_role("link", name=tenants.job)).to_have_count(0)
        sign_in(page, tenants.keys["second"])
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        assert tenants.job not in page.content()
        page.goto(f"{tenants.address}/#/jobs/{tenants.job}")
        expect(page.get_by_role("alert")).to_contain_text("No such fine-tuning job")
        page.goto(f"{tenants.address}/#/playground?job={tenants.job}")
        expect(page.get_by_label("Model", exact=True)).to_have_count(1)
        assert page.get_by_label("Model", exact=True).locator("option").all_inner_texts() == ["bytes (frozen)"]
        assert not watch.foreign_requests and not watch.dialogs


def test_a_wrong_key_is_refused_and_a_key_stays_in_its_tab(browser, tenants):
    with opened(browser, tenants.address) as (page, watch):
        sign_in(page, "wrong")
        expect(page.get_by_role("alert")).to_contain_text("does not accept this key")
        page.get_by_label("Key", exact=True).fill("iro-ключ")
        expect(page.get_by_role("alert")).to_contain_text("A key cannot contain “к”")
        expect(page.get_by_role("button", name="Continue")).to_be_disabled()
        alerts = []  # while the server is asked
        page.route("**/v1/models", lambda route: (alerts.append(page.get_by_role("alert").count()), route.continue_()))
        sign_in(page, tenants.keys["second"])
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        assert alerts == [0]
        page.unroute("**/v1/models")
        page.reload()
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        stored = "[Object.values(localStorage), document.cookie, location.href, Object.keys(sessionStorage)]"
        assert page.evaluate(stored) == [[], "", f"{tenants.address}/", ["iro-key"]]
        other_tab = page.context.new_page()
        other_tab.goto(tenants.address)
        expect(other_tab.get_by_label("Key", exact=True)).to_be_visible()
        assert not watch.foreign_requests
