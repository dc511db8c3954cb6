"""Who may do what: keys, projects, limits, by the official client against a real server."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from iro_server.access import audit
from iro_server.api import job_runs
from iro_server.api.app import check_keys
from iro_server.settings import Settings, is_loopback
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import SAYS_Z, new_eval, run_eval
from tests.iro_server.api.serving import GRADER, conforms, ended, serving, settings_for, start_job, upload, wait_for

pytestmark = pytest.mark.usefixtures("brief_keys")
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


def test_without_keys_a_laptop_needs_none_and_with_one_everybody_does(settings):
    with serving(settings, ByteEngine()) as client:
        client.chat.completions.create(model="bytes", messages=HI, max_tokens=4)
        made, secret = keys.create(open_database(settings), "mine")
        wait_for(lambda: refused(client), seconds=60)
        keyed = client.with_options(api_key=secret)
        assert keyed.models.list().data[0].id == "bytes"
        keys.revoke(open_database(settings), made.id)
        wait_for(lambda: refused(keyed), seconds=60)
        assert refused(client)  # the last key is revoked, and the server does not open to everyone


def refused(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError as error:
        assert error.body and error.status_code == 401
        return True
    return False


def test_a_wrong_key_a_missing_one_and_a_probe(settings):
    keys.create(open_database(settings), "mine")
    with serving(settings, ByteEngine()) as client:
        with pytest.raises(openai.AuthenticationError) as wrong:
            client.models.list()
        assert wrong.value.code == "invalid_api_key"
        missing = httpx.get(f"{client.base_url}models")
        assert missing.status_code == 401 and "API key" in missing.json()["error"]["message"]
        assert missing.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{client.base_url}health").status_code == 200


def test_a_browser_asks_for_the_key_of_a_report_and_of_nothing_else(settings):
    secret = keys.create(open_database(settings), "mine")[1]
    with serving(settings, ByteEngine()) as client:
        keyed = client.with_options(api_key=secret)
        stored = {"item": {"q": "a"}, "sample": {"output_text": "z"}}
        source = {"type": "file_content", "content": [stored]}
        url = run_eval(keyed, new_eval(keyed, [SAYS_Z]), {"type": "jsonl", "source": source}).report_url
        asked = httpx.get(url)
        assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic ")
        assert "as the password" in asked.json()["error"]["message"]
        assert "says z" in httpx.get(url, auth=("", secret)).text
        assert httpx.get(url, auth=("me", secret + "x")).headers["www-authenticate"].startswith("Basic ")
        assert httpx.get(url, headers={"authorization": "Basic é".encode("latin-1")}).status_code == 401
        assert httpx.post(url, auth=("me", secret)).status_code == 401
        assert httpx.get(f"{client.base_url}models", auth=("me", secret)).status_code == 401


def test_only_a_keys_hash_is_stored(settings):
    sessions = open_database(settings)
    made, secret = keys.create(sessions, "mine")
    assert keys.by_secret(sessions, secret).id == made.id and keys.by_secret(sessions, secret + "x") is None
    stored = settings.data_dir.glob("iro.db*")
    assert not any(secret.encode() in path.read_bytes() for path in stored)


def test_a_key_does_what_its_scopes_say_and_no_more(settings):
    sessions = open_database(settings)
    with serving(settings, ByteEngine()) as client:
        calls = {
            "read": lambda c: c.files.list(),
            "generate": lambda c: c.chat.completions.create(model="bytes", messages=HI, max_tokens=4),
            "train": lambda c: upload(c),
            "admin": lambda c: c.get("/webhook_endpoints", cast_to=object),
        }
        for scope in calls:
            secret = keys.create(sessions, scope, "team", scopes=[scope])[1]
            keyed = client.with_options(api_key=secret)
            for name, call in calls.items():
                if name == scope:
                    call(keyed)
                else:
                    with pytest.raises(openai.PermissionDeniedError, match=f"with the scope '{name}'") as denied:
                        call(keyed)
                    assert denied.value.code == "insufficient_scope"


@pytest.mark.parametrize("scope", ["generate", "admin"])
def test_who_does_a_thing_may_look_at_what_it_needs(settings, monkeypatch, scope):
    monkeypatch.setattr(job_runs, "job_kinds", dict)  # importing all jobs takes ten seconds
    path = {"generate": "/models", "admin": "/iro/job_kinds"}
    secret = keys.create(open_database(settings), scope, "team", scopes=[scope])[1]
    with serving(settings, ByteEngine()) as client:
        keyed = client.with_options(api_key=secret)
        for name in path:
            if name == scope:
                keyed.get(path[name], cast_to=object)
            else:
                with pytest.raises(openai.PermissionDeniedError, match=f"with the scope 'read' or '{name}'"):
                    keyed.get(path[name], cast_to=object)


def test_an_expired_key_is_refused(settings):
    sessions = open_database(settings)
    secret = keys.create(sessions, "brief", expires_at=int(time.time()) + 5)[1]
    with serving(settings, ByteEngine()) as client:
        keyed = client.with_options(api_key=secret)
        keyed.models.list()
        wait_for(lambda: refused(keyed), seconds=60)


def test_a_data_directory_is_its_users_alone(tmp_path):
    settings = settings_for(tmp_path / "new")
    before = os.umask(0)
    try:
        open_database(settings)
    finally:
        os.umask(before)
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700


def test_a_key_sees_only_its_own_projects_things(settings):
    sessions = open_database(settings)
    alice, bob, carol = (
        keys.create(sessions, name, project)[1] for name, project in (("alice", "a"), ("bob", "b"), ("carol", "a"))
    )
    with serving(settings, ByteEngine()) as client:
        ours, theirs, shared = (client.with_options(api_key=key) for key in (alice, bob, carol))
        job = ended(ours, start_job(ours))
        checkpoint = ours.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint
        calls = [
            lambda c: c.files.retrieve(job.training_file),
            lambda c: c.files.content(job.training_file),
            lambda c: c.fine_tuning.jobs.retrieve(job.id),
            lambda c: c.fine_tuning.jobs.list_events(job.id),
            lambda c: c.fine_tuning.jobs.checkpoints.list(job.id),
            lambda c: c.models.retrieve(job.fine_tuned_model),
            lambda c: c.models.retrieve(checkpoint),
            lambda c: c.chat.completions.create(model=job.fine_tuned_model, messages=HI, max_tokens=4),
            lambda c: c.chat.completions.create(model=checkpoint, messages=HI, max_tokens=4),
        ]
        for call in calls:
            call(ours), call(shared)
            with pytest.raises(openai.NotFoundError):
                call(theirs)
        for call in (theirs.fine_tuning.jobs.cancel, theirs.fine_tuning.jobs.pause, theirs.fine_tuning.jobs.resume):
            with pytest.raises(openai.NotFoundError):
                call(job.id)
        for call in (theirs.files.delete, theirs.models.delete):
            with pytest.raises(openai.NotFoundError):
                call(job.training_file)
        with pytest.raises(openai.NotFoundError):
            method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
            theirs.fine_tuning.jobs.create(model="bytes", training_file=job.training_file, method=method)
        assert not theirs.files.list().data and not theirs.fine_tuning.jobs.list().data
        assert [model.id for model in theirs.models.list()] == ["bytes"]
        assert [each.id for each in shared.fine_tuning.jobs.list()] == [job.id]


def test_requests_a_minute_are_limited_by_key(settings):
    sessions = open_database(settings)
    limited = keys.create(sessions, "limited", requests_per_minute=3)[1]
    free = keys.create(sessions, "free")[1]
    with serving(settings, ByteEngine()) as client:
        ours = client.with_options(api_key=limited)
        left = [ours.models.with_raw_response.list().headers["x-ratelimit-remaining-requests"] for _ in range(3)]
        assert left == ["2", "1", "0"]
        with pytest.raises(openai.RateLimitError) as refusal:
            ours.models.list()
        headers = refusal.value.response.headers
        assert refusal.value.code == "rate_limit_exceeded" and refusal.value.type == "requests"
        assert 0 < int(headers["retry-after"]) <= 60 and headers["x-ratelimit-limit-requests"] == "3"
        client.with_options(api_key=free).models.list()


def test_tokens_a_minute_count_what_a_search_may_draw(settings):
    secret = keys.create(open_database(settings), "limited", tokens_per_minute=200)[1]
    with serving(settings, ByteEngine()) as client:
        ours = client.with_options(api_key=secret)
        search = {"beam_width": 2, "num_successors": 2}
        ask = {"model": "bytes", "messages": HI, "max_tokens": 20, "extra_body": {"search": search}}
        first = ours.chat.completions.with_raw_response.create(**ask)
        assert int(first.headers["x-ratelimit-remaining-tokens"]) <= 200 - 80
        with pytest.raises(openai.RateLimitError) as refusal:
            ours.chat.completions.create(**ask), ours.chat.completions.create(**ask)
        assert refusal.value.type == "tokens"


def test_requests_at_once_are_limited_by_key(settings):
    secret = keys.create(open_database(settings), "limited", concurrency=1)[1]
    engine = ByteEngine(script="x" * 100, noise=0.0, seconds_per_token=0.05)
    with serving(settings, engine) as client, ThreadPoolExecutor() as threads:
        ours = client.with_options(api_key=secret)
        slow = threads.submit(ours.chat.completions.create, model="bytes", messages=HI, max_tokens=40)
        wait_for(lambda: engine.open_sessions)
        with pytest.raises(openai.RateLimitError) as refusal:
            ours.models.list()
        assert refusal.value.type == "concurrency"
        slow.result()
        ours.models.list()


def test_every_answer_names_its_request_and_the_audit_log_tells_of_it(settings):
    with serving(settings, ByteEngine()) as client:
        ids = [
            client.models.with_raw_response.list().headers["x-request-id"],
            httpx.get(f"{client.base_url}nothing").headers["x-request-id"],
        ]
        upload(client)
    lines = [
        json.loads(line)
        for line in (settings.data_dir / "audit" / f"{socket.gethostname()}.jsonl").read_text().splitlines()
    ]
    by_id = {line["request"]: line for line in lines}
    assert [by_id[id]["status"] for id in ids] == [200, 404]
    assert any((line["method"], line["path"], line["status"]) == ("POST", "/v1/files", 200) for line in lines)
    assert {"time", "client", "project", "key", "ms"} <= by_id[ids[0]].keys()
    logging.getLogger(f"iro.audit.{settings.data_dir}").handlers.clear()


def test_a_long_path_is_cut_in_both_logs(settings):
    with serving(settings, ByteEngine()) as client:
        request = httpx.get(f"{client.base_url}{'x' * 5000}").headers["x-request-id"]
    content = (settings.data_dir / "audit" / f"{socket.gethostname()}.jsonl").read_text()
    line = next(line for line in map(json.loads, content.splitlines()) if line["request"] == request)
    assert len(line["path"]) == audit.MAX_PATH
    logging.getLogger(f"iro.audit.{settings.data_dir}").handlers.clear()

    audit.cut_access_log()
    access_log, arguments = logging.getLogger("uvicorn.access"), ("127.0.0.1:1", "GET", "/" + "x" * 5000, "1.1", 404)
    record = access_log.makeRecord("", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)
    assert access_log.filter(record)
    assert len(record.getMessage()) < audit.MAX_PATH + 100 and record.getMessage().endswith("404")


def test_a_full_audit_log_is_rotated_and_the_oldest_file_is_deleted(settings, monkeypatch):
    monkeypatch.setattr(audit, "FILE_BYTES", 100)
    monkeypatch.setattr(audit, "OLD_FILES", 2)
    log, other_process = audit.audit_log(settings), logging.getLogger("other process")
    path = settings.data_dir / "audit" / f"{socket.gethostname()}.jsonl"
    other_process.addHandler(audit.RotatedFile(path))
    for number in range(20):
        log.info("%02d%s", number, "x" * 40)
        other_process.warning("%02d%s", number, "y" * 40)
    for writer in (log, other_process):
        writer.handlers.pop().close()
    files = sorted(path.parent.iterdir())
    assert [each.name for each in files] == [path.name, f"{path.name}.1", f"{path.name}.2"]
    lines = [line for each in reversed(files) for line in each.read_text().splitlines()]
    assert [line[:3] for line in lines] == [f"{n:02d}{letter}" for n in range(20) for letter in "xy"][-len(lines) :]
    assert all(each.stat().st_size < 200 for each in files)


def test_a_web_page_on_another_name_is_kept_out_of_a_server_without_keys(settings):
    with serving(settings, ByteEngine()) as client:
        refusal = httpx.get(f"{client.base_url}models", headers={"host": "evil.example"})
        assert refusal.status_code == 403 and refusal.json()["error"]["code"] == "host_not_allowed"
        assert httpx.get(f"{client.base_url}models", headers={"host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("a.localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_what_is_loopback(host, ours):
    assert is_loopback(host) is ours


def test_no_server_is_open_to_other_machines_without_a_key(tmp_path):
    settings = Settings(data_dir=tmp_path, host="0.0.0.0")
    with pytest.raises(ValueError, match="iro keys create"):
        check_keys(settings)
    check_keys(settings.model_copy(update={"require_keys": False}))
    keys.create(open_database(settings), "first")
    check_keys(settings)


def test_the_advice_to_make_a_key_names_the_database_and_no_password(tmp_path, new_database, monkeypatch):
    url = new_database("postgresql").replace("://iro@", "://iro:hunter2@")
    options = {"data_dir": tmp_path, "host": "0.0.0.0"}
    with pytest.raises(ValueError, match=r"--database-url 'postgresql\+psycopg://iro:\*\*\*@") as named:
        check_keys(Settings(**options, database_url=url))
    monkeypatch.setenv("IRO_DATABASE_URL", url)
    with pytest.raises(ValueError, match="iro keys create") as given:
        check_keys(Settings(**options))
    assert "hunter2" not in str(named.value) + str(given.value) and "--database-url" not in str(given.value)


def test_the_servers_own_key_acts_for_the_project_it_names(settings):
    sessions = open_database(settings)
    secret = keys.create(sessions, "mine", "a")[1]
    with serving(settings, ByteEngine()) as client:
        file = upload(client.with_options(api_key=secret))
        own = client.with_options(api_key=keys.internal(settings.data_dir))
        assert conforms(own.with_options(project="a").files.retrieve(file)).id == file
        with pytest.raises(openai.NotFoundError):
            own.with_options(project="b").files.retrieve(file)
    assert stat.S_IMODE((settings.data_dir / "internal.key").stat().st_mode) == 0o600


def test_a_request_that_no_minute_could_hold_is_not_to_be_tried_again(settings):
    secret = keys.create(open_database(settings), "small", tokens_per_minute=20)[1]
    with serving(settings, ByteEngine()) as client, pytest.raises(openai.RateLimitError) as refusal:
        keyed = client.with_options(api_key=secret, max_retries=5)
        keyed.chat.completions.create(model="bytes", messages=HI, max_tokens=400)
    assert "Request too large" in refusal.value.message
    assert refusal.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in refusal.value.response.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://[", "http://localhost.evil.example"])
def test_a_page_of_another_site_sends_no_form_to_a_server_without_keys(settings, origin):
    form = {"file": ("rows.jsonl", b'{"prompt": "a"}\n'), "purpose": (None, "fine-tune")}
    with serving(settings, ByteEngine()) as client:
        url = f"{client.base_url}files"
        refusal = httpx.post(url, files=form, headers={"origin": origin})
        assert refusal.status_code == 403 and refusal.json()["error"]["code"] == "origin_not_allowed"
        assert not client.files.list().data
        assert httpx.post(url, files=form, headers={"origin": "http://localhost:3000"}).status_code == 200
        secret = keys.create(open_database(settings), "mine")[1]
        wait_for(lambda: refused(client), seconds=60)
        headers = {"origin": origin, "authorization": f"Bearer {secret}"}  # which no page of another site has
        assert httpx.post(url, files=form, headers=headers).status_code == 200
