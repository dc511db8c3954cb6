"""A file may be deleted while what is to read it is created."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.iro_server.api.batches import CHAT, chat, lines_of, uploaded
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, serving, settings_for, upload

METHOD = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    settings = settings_for(tmp_path_factory.mktemp("data"))
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=60) as http:
        yield SimpleNamespace(client=client, http=http, settings=settings)


def refusal(served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, file: str, route: str, **body: Any) -> Any:
    """Of a request during which ``file`` is deleted: its bytes go just before they are linked."""
    path, link = served.settings.files_dir / file, os.link

    def delete_and_link(source: Path, target: Path) -> None:
        if source == path:
            path.unlink()
        link(source, target)

    monkeypatch.setattr(os, "link", delete_and_link)
    answer = served.http.post(route, json=body)
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]


def test_a_batch_of_a_deleted_file_is_a_404_and_leaves_no_folder(served, monkeypatch):
    file = uploaded(served.client, lines_of([chat(0)]))
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    assert refusal(served, monkeypatch, file, "batches", **body) == (404, "file_not_found", "input_file_id")
    assert not list((served.settings.data_dir / "batches").iterdir())


def test_a_run_of_a_deleted_file_is_a_404_and_leaves_no_folder(served, monkeypatch):
    training, validation = upload(served.client), upload(served.client)
    body = {"kind": "align", "preset": "smoke", "config": {"training_file": training, "validation_file": validation}}
    error = (404, "file_not_found", "config.validation_file")
    assert refusal(served, monkeypatch, validation, "iro/job_runs", **body) == error
    assert not list((served.settings.data_dir / "runs").iterdir())


def test_a_job_of_a_deleted_file_is_a_404_and_leaves_no_folder(served, monkeypatch):
    training, validation = upload(served.client), upload(served.client)
    body = {"model": "bytes", "training_file": training, "validation_file": validation, "method": METHOD}
    error = (404, "file_not_found", "validation_file")
    assert refusal(served, monkeypatch, validation, "fine_tuning/jobs", **body) == error
    assert not list((served.settings.data_dir / "jobs").iterdir())
