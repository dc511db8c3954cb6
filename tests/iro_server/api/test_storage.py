"""What the database refuses, and a database that is slow, are answered as what they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import create_engine, text

from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, upload

ON_EACH_DATABASE = True


@pytest.mark.parametrize("path", ["files/%00", "files/%00/content", "models/%00", "fine_tuning/jobs/%00/events"])
def test_nul_in_an_id_names_nothing(client, path):
    answer = httpx.get(f"{client.base_url}{path}")
    assert answer.status_code == 404 and answer.json()["error"]["message"]


def test_nul_in_metadata_does_not_break_the_list_of_jobs(client):
    metadata = {"a": "b\0c"}
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    job = client.fine_tuning.jobs.create(model="bytes", training_file=upload(client), method=method, metadata=metadata)
    named = client.fine_tuning.jobs.list(extra_query={"metadata[a]": "b\ufffdc"}).data
    assert [each.id for each in named] == [job.id]
    ended(client, job.id)  # else it ends in another test, which may listen for jobs


def test_nul_in_a_models_name_is_an_unknown_model(client):
    body = {"model": "bytes\0", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{client.base_url}chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_file_of_three_gigabytes_may_be_announced(client):
    assert client.uploads.create(bytes=3 * 2**30, filename="a.jsonl", mime_type="x", purpose="fine-tune").bytes == (
        3 * 2**30
    )


def test_a_database_that_is_slow_is_unavailable(new_database, tmp_path):
    url = new_database("postgresql")
    quick = {"database_connections": 2, "database_timeout": 0.5, "database_statement_timeout": 2.0}
    with serving(settings_for(tmp_path, database_url=url, **quick), ByteEngine()) as client:
        with create_engine(url).begin() as other, ThreadPoolExecutor(4) as pool:
            other.execute(text("LOCK TABLE files"))  # their statements time out, or they wait for a connection
            answers = list(pool.map(lambda _: httpx.get(f"{client.base_url}files", timeout=20), range(4)))
            assert httpx.get(f"{client.base_url}health/live").status_code == 200
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"]["code"] for answer in answers} == {"storage_unavailable"}
        assert httpx.get(f"{client.base_url}files").status_code == 200


def test_a_database_that_is_slow_while_a_key_is_checked_is_unavailable(new_database, tmp_path):
    url = new_database("postgresql")
    settings = settings_for(tmp_path, database_url=url, database_statement_timeout=1.0)
    _, secret = keys.create(open_database(settings), "first", None)
    with serving(settings, ByteEngine()) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        with create_engine(url).begin() as other:
            other.execute(text("LOCK TABLE api_keys"))
            answer = httpx.get(f"{client.base_url}models", headers=headers, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
        assert httpx.get(f"{client.base_url}models", headers=headers).status_code == 200


def test_a_database_that_takes_no_writes_for_now_is_unavailable(new_database, tmp_path):
    url = new_database("postgresql")
    name = create_engine(url).url.database
    read_only = f"ALTER DATABASE {name} SET default_transaction_read_only = "
    with serving(settings_for(tmp_path, database_url=url), ByteEngine()) as client:
        with create_engine(url, isolation_level="AUTOCOMMIT").connect() as primary:
            primary.execute(text(f"{read_only} on"))  # as a standby, which is the primary after a failover
            standby = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            primary.execute(text(f"{standby} AND datname = '{name}'"))
            body = {"bytes": 8, "filename": "a.jsonl", "mime_type": "x", "purpose": "fine-tune"}
            answers = [httpx.post(f"{client.base_url}uploads", json=body) for _ in range(3)]
            primary.execute(text("SET default_transaction_read_only = off"))
            primary.execute(text(f"{read_only} off"))
        assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (503, "storage_unavailable")
        trying_again = client.with_options(max_retries=3)  # a worker may have connected to the standby meanwhile
        assert trying_again.uploads.create(**body).status == "pending"
