"""The page as the server sends it: without a key, with a strict policy, and small."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest

from iro_server.api.page import BUILT, address
from iro_server.settings import Settings
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for

MAX_BYTES = 300_000  # of the page and all that it loads, gzipped


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A client of a server that requires keys, without one."""
    settings = settings_for(tmp_path_factory.mktemp("data"), require_keys=True)
    with serving(settings, ByteEngine()) as client:
        yield httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"))


def test_page_and_assets_need_no_key_and_load_nothing_from_elsewhere(http):
    page = http.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    assert "<script>" not in page.text and "style=" not in page.text
    assets = re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page.text)
    assert len(assets) == 2
    for path in assets:
        asset = http.get(path)
        assert asset.status_code == 200 and "immutable" in asset.headers["cache-control"]
        assert http.get(path, headers={"if-none-match": asset.headers["etag"]}).status_code == 304
    for answer in (page, asset, http.head("/")):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
        assert "unsafe" not in policy and answer.headers["x-content-type-options"] == "nosniff"


def test_size(http):
    files = [path for path in BUILT.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < MAX_BYTES
    assert {path.name for path in files} > {"index.html"}


@pytest.mark.parametrize(
    ("path", "status"),
    [("/assets/", 404), ("/assets/../index.html", 404), ("/assets/%2e%2e/index.html", 404), ("/v1/none", 401)],
)
def test_other_paths_keep_their_errors_and_no_folder_is_listed(http, path, status):
    answer = http.get(path)
    error = answer.json()["error"]
    assert answer.status_code in (status, 401) and error["type"] == "invalid_request_error", error


def test_the_page_answers_to_no_other_method(http):
    assert http.post("/").json()["error"]["code"] == "method_not_allowed"


def test_the_api_document_leaves_the_page_out(tmp_path):
    with serving(settings_for(tmp_path), ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        paths = httpx.get(f"{address}/openapi.json").json()["paths"]
        assert "/v1/models" in paths and not {"/", "/assets", "/assets/{path}"} & paths.keys()
        assert httpx.get(f"{address}/v1/none").json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/"),
        ("0.0.0.0", "http://127.0.0.1:8000/"),
        ("::1", "http://[::1]:8000/"),
        ("::", "http://[::1]:8000/"),
        ("iro.example", "http://iro.example:8000/"),
    ],
)
def test_the_address_that_a_server_logs_and_calls_itself_by(host, url):
    settings = Settings(host=host, port=8000)
    assert (address(settings), settings.own_url) == (url, f"{url}v1")


def test_a_server_logs_where_its_page_is(tmp_path, caplog):
    with caplog.at_level("INFO", logger="iro"), serving(settings_for(tmp_path), ByteEngine()) as client:
        httpx.get(str(client.base_url) + "health/live")
    assert f"the page is at {str(client.base_url).removesuffix('v1/')}" in caplog.messages
