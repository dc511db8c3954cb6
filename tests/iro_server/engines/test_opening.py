"""The table of engines by kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from iro_server.engines import opening
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.opening import open_engine
from iro_server.settings import Settings
from tests.toy import ToyEngine

URLS = ("http://127.0.0.1:9/v1",)
UNKNOWN = "no engine of kind 'sglang': the kinds are embedded, vllm, text"


@pytest.mark.parametrize("urls", [(), URLS])
def test_an_unknown_kind_is_refused_before_anything_is_opened(tmp_path: Path, urls: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=UNKNOWN):
        open_engine(tmp_path, None, Endpoints(urls, kind="sglang"))


def test_settings_refuse_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=UNKNOWN):
        Settings(data_dir=tmp_path, engine_kind="sglang")


def test_the_embedded_engine_takes_no_urls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes no engine URLs"):
        open_engine(tmp_path, None, Endpoints(URLS, kind="embedded"))


def test_an_engine_in_the_table_can_be_set_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(opening.ENGINES, "toy", lambda model_dir, endpoints, name: ToyEngine())
    for urls in ((), URLS):
        settings = Settings(data_dir=tmp_path, engine_kind="toy", engine_urls=list(urls))
        assert isinstance(open_engine(tmp_path, None, settings.endpoints), ToyEngine)
        assert settings.engine_fields["engine_kind"] == "toy"  # of its jobs


def test_an_engine_of_servers_needs_urls(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the URLs of its servers"):
        open_engine(tmp_path, None, Endpoints(kind="text"))


@pytest.mark.parametrize("kind", ["vllm", "embedded"])
def test_the_default_without_urls_is_the_embedded_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(opening.ENGINES, "embedded", lambda model_dir, endpoints, name: ToyEngine())
    settings = Settings(data_dir=tmp_path, engine_kind=kind)
    assert isinstance(open_engine(tmp_path, None, settings.endpoints), ToyEngine)
    assert settings.engine_fields == {"engine_precision": "float32"}


def test_a_worker_looks_for_a_jobs_servers_where_they_are_now_and_keeps_the_jobs_precision(tmp_path: Path) -> None:
    on_servers, in_process = {"engine_urls": ["http://old:1/v1"]}, {"engine_precision": "bfloat16"}
    moved, embedded = Settings(data_dir=tmp_path, engine_urls=list(URLS)), Settings(data_dir=tmp_path)
    assert moved.moved_engine_fields(on_servers)["engine_urls"] == list(URLS)
    assert moved.moved_engine_fields(in_process) == {}
    assert embedded.moved_engine_fields(on_servers) == embedded.moved_engine_fields(in_process) == {}


def test_a_precision_is_of_the_embedded_engine_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="engine_precision is of an engine in this process"):
        open_engine(
            tmp_path, None, Settings(data_dir=tmp_path, engine_urls=list(URLS), engine_precision="bfloat16").endpoints
        )
