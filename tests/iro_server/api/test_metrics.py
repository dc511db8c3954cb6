"""What the server tells Prometheus of real requests, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from iro_server.api.metrics import metrics
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, aligned, serving, settings_for, start_job, wait_for

DOCKER = Path(__file__).parents[3] / "docker"
HI = [{"role": "user", "content": "hi"}]
CHAT = {"method": "POST", "route": "/chat/completions"}


def scrape(client, **headers: str) -> str:
    answer = httpx.get(str(client.base_url).replace("/v1/", "/metrics"), headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.text


def samples(client) -> dict[tuple, float]:
    """By name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(scrape(client))
        for sample in family.samples
    }


def grown(before: dict[tuple, float], after: dict[tuple, float], name: str, **labels: str) -> float:
    key = (name, *sorted(labels.items()))
    return after[key] - before.get(key, 0.0)


def test_a_request_is_counted_once_by_what_it_cost(served):
    client, model = served.client, aligned(served.settings, "counted")
    before = samples(client)
    usage = client.chat.completions.create(model=model, messages=HI, seed=1, max_tokens=8).usage
    after = samples(client)
    for name, expected in [
        ("iro_prompt_tokens_total", usage.prompt_tokens),
        ("iro_base_tokens_total", usage.base_tokens),
        ("iro_value_tokens_total", usage.value_tokens),
        ("iro_search_rounds_total", usage.rounds),
        ("iro_first_chunk_seconds_count", 1),
        ("iro_queue_seconds_count", 1),
    ]:
        assert grown(before, after, name) == expected > 0, name
    assert grown(before, after, "iro_request_seconds_count", status="200", **CHAT) == 1


def test_a_stream_has_its_first_chunk_before_its_end(served):
    client, engine = served.client, served.engine
    before = samples(client)
    engine.seconds_per_token = 0.02
    try:
        list(client.chat.completions.create(model="bytes", messages=HI, max_tokens=20, temperature=0, stream=True))
    finally:
        engine.seconds_per_token = 0.0
    after = samples(client)
    first = grown(before, after, "iro_first_chunk_seconds_sum")
    whole = grown(before, after, "iro_request_seconds_sum", status="200", **CHAT)
    assert 0.02 <= first < whole - 0.1


def test_what_is_refused_is_counted_by_its_code(tmp_path):
    settings = settings_for(tmp_path, require_keys=True)
    _, secret = keys.create(open_database(settings), "mine", tokens_per_minute=1)
    with serving(settings, ByteEngine()) as client:
        keyed = client.with_options(api_key=secret)
        with pytest.raises(openai.RateLimitError):
            keyed.chat.completions.create(model="bytes", messages=HI, max_tokens=9)
        text = scrape(client, authorization=f"Bearer {secret}")
    assert re.search(r'iro_refused_total\{code="rate_limit_exceeded",status="429"\} [1-9]', text)


def test_requests_that_wait_are_counted_one_by_one(tmp_path):
    engine = ByteEngine(script="x" * 400, noise=0.0, seconds_per_token=0.05)
    with serving(settings_for(tmp_path, max_active_rows=1), engine) as client:
        ask = {"model": "bytes", "messages": HI, "max_tokens": 300, "stream": True}
        streams = [client.chat.completions.create(**ask) for _ in range(3)]
        assert "iro_waiting_requests 2.0" in scrape(client)
        for stream in streams:
            stream.close()
        wait_for(lambda: "iro_waiting_requests 0.0" in scrape(client))


def test_a_key_is_needed_where_keys_are_unless_metrics_are_open(tmp_path):
    settings = settings_for(tmp_path, require_keys=True)
    with serving(settings, ByteEngine()) as client:
        assert httpx.get(str(client.base_url).replace("/v1/", "/metrics")).status_code == 401
    with serving(settings.model_copy(update={"metrics_open": True}), ByteEngine()) as client:
        assert "iro_waiting_requests 0.0" in scrape(client)


def test_jobs_are_told_by_status_and_a_running_one_by_its_step(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url)
    with serving(settings, ByteEngine()) as client:
        id = start_job(client, GRADER | {"name": "slow"}, iterations=6)
        wait_for(lambda: client.fine_tuning.jobs.checkpoints.list(id).data)
        during = samples(client)
        client.fine_tuning.jobs.cancel(id)
        after = samples(client)
    assert during[("iro_jobs", ("status", "running"))] == 1 and after[("iro_jobs", ("status", "cancelled"))] == 1
    assert during[("iro_job_step", ("job", id))] >= 1 and during[("iro_job_steps", ("job", id))] == 6
    assert ("iro_job_step", ("job", id)) not in after


def test_without_its_database_the_server_still_tells_the_rest(tmp_path, new_database, postgresql):
    url = new_database("postgresql")
    name = url.rsplit("/", 1)[1]
    settings = settings_for(tmp_path, database_url=url, require_keys=False, job_poll=60)
    with serving(settings, ByteEngine()) as client:
        assert "iro_database_up 1.0" in scrape(client)
        with create_engine(postgresql.url, isolation_level="AUTOCOMMIT").connect() as admin:
            admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            text = scrape(client)
            admin.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")  # for the server, which is to stop
    assert "iro_database_up 0.0" in text and "iro_waiting_requests 0.0" in text and "iro_jobs{" not in text


def test_without_a_free_connection_the_server_still_tells_the_rest(tmp_path):
    sessions = open_database(settings_for(tmp_path, database_connections=1, database_timeout=0.2))
    admission = SimpleNamespace(waiting={}, active=0, max_rows=1, max_cache_tokens=None)
    models = SimpleNamespace(engine=SimpleNamespace(health=lambda: SimpleNamespace(live_rows=None)))
    context: Any = SimpleNamespace(sessions=sessions, admission=admission, models=models)
    assert b"iro_database_up 1.0" in metrics(context).body
    with sessions() as session:
        session.connection()
        text = metrics(context).body
    assert b"iro_database_up 0.0" in text and b"iro_waiting_requests 0.0" in text


def test_a_grader_is_timed_by_its_type(client):
    before = samples(client)
    body = {"grader": GRADER, "model_sample": "z"}
    client.post("/fine_tuning/alpha/graders/run", body=body, cast_to=object)
    assert grown(before, samples(client), "iro_grading_seconds_count", type="string_check") == 1


def test_the_dashboard_asks_for_metrics_that_there_are(client):
    """Those of the engine in this process too, of which the test's engine has no rows."""
    there = set(re.findall(r"^(?:# TYPE )?((?:iro|process)_\w+)", scrape(client), re.MULTILINE)) | {"iro_live_rows"}
    there |= {f"{name}_bucket" for name in there} | {f"{name}_{end}" for name in there for end in ("sum", "count")}
    there |= {"iro_job_step", "iro_job_steps", "iro_job_seconds_left"}
    dashboard = json.loads((DOCKER / "grafana" / "iro.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 10
    unknown = {name for expr in asked for name in re.findall(r"\b(?:iro|process)_\w+", expr)} - there
    assert unknown == set()


def test_methods_that_a_client_makes_up_are_counted_as_one(client):
    for method in ("BREW", "STEEP"):
        assert httpx.request(method, f"{client.base_url}models").status_code == 405
    text = scrape(client)
    assert "BREW" not in text and 'iro_request_seconds_count{method="other",route="/models",status="405"} 2.0' in text
