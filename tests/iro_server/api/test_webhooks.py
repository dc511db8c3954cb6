from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import openai
import pytest
from sqlalchemy import select, update

from iro_server.engines.ports import free_port
from iro_server.jobs import deliveries
from iro_server.jobs import webhook_sender as webhooks
from iro_server.store.database import open_database
from iro_server.store.tables import DEFAULT_PROJECT, Delivery
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import conforms, ended, new_key, serving, settings_for, start_job, wait_for
from tests.iro_server.api.test_files import other_project

ON_EACH_DATABASE = True
SUCCEEDED = "fine_tuning.job.succeeded"


class Receiver:
    """A server that notes what it gets. Each answer has the next of ``statuses``, or 204, ``delay`` seconds late,
    or once the receiver closes."""

    def __init__(self, *statuses: int, delay: float = 0.0) -> None:
        self.statuses, self.delay = list(statuses), delay
        self.got: list[tuple[bytes, dict[str, str]]] = []
        self.closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((body, dict(self.headers)))
                receiver.closing.wait(receiver.delay)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(deliveries, "BACKOFF", 0.05)
    monkeypatch.setattr(webhooks, "POLL", 0.05)


@contextmanager
def listening(client, url, types=(SUCCEEDED,)):
    endpoint = conforms(client.webhooks.create(name="mine", url=url, event_types=list(types)))
    yield endpoint
    client.webhooks.delete(endpoint.id)


def tell(settings, type=SUCCEEDED, project=DEFAULT_PROJECT, job="ftjob-1"):
    with open_database(settings).begin() as session:
        deliveries.enqueue(session, project, type, {"id": job})


def delivery(settings, endpoint) -> Delivery:
    with open_database(settings)() as session:
        return session.scalars(select(Delivery).where(Delivery.endpoint_id == endpoint.id)).one()


def test_endpoints_are_made_listed_changed_and_deleted(client):
    url = "https://example.com/hook"
    made = [conforms(client.webhooks.create(name=f"n{i}", url=url, event_types=[SUCCEEDED])) for i in range(3)]
    assert made[0].signing_secret.startswith("whsec_")
    assert made[0].signing_secret_hint.endswith(made[0].signing_secret[-4:])
    listed = client.webhooks.list(limit=2)
    assert [endpoint.id for endpoint in listed] == [endpoint.id for endpoint in made[::-1]]
    assert not hasattr(listed.data[0], "signing_secret")
    seen = conforms(client.webhooks.retrieve(made[0].id))
    assert (seen.name, seen.url, seen.event_types) == ("n0", url, [SUCCEEDED])
    changed = conforms(client.webhooks.update(seen.id, name="new", event_types=["fine_tuning.job.failed"]))
    assert (changed.name, changed.url, changed.event_types) == ("new", url, ["fine_tuning.job.failed"])
    for endpoint in made:
        assert conforms(client.webhooks.delete(endpoint.id)).deleted
        with pytest.raises(openai.NotFoundError):
            client.webhooks.retrieve(endpoint.id)


def test_the_event_types_are_those_that_happen_here(client):
    types = conforms(client.webhooks.event_types.list()).data
    assert types == [f"fine_tuning.job.{end}" for end in ("succeeded", "failed", "cancelled")]
    with pytest.raises(openai.BadRequestError) as refused:
        client.webhooks.create(name="n", url="https://example.com", event_types=["batch.completed"])
    assert refused.value.param == "event_types.0"


@pytest.mark.parametrize("url", ["http://example.com/", "http://10.0.0.1/", "ftp://localhost/", "nonsense", "https://"])
def test_an_endpoint_is_https_or_on_this_machine(client, url):
    with pytest.raises(openai.BadRequestError) as refused:
        client.webhooks.create(name="n", url=url, event_types=[SUCCEEDED])
    assert refused.value.param == "url"


@pytest.mark.parametrize(
    "url", ["http://localhost:1/", "http://127.0.0.1/x", "http://[::1]:8080/", "https://10.0.0.1/"]
)
def test_an_endpoint_may_be_on_this_machine(client, url):
    with listening(client, url) as endpoint:
        assert endpoint.url == url


def test_an_endpoint_is_its_own_projects_alone(served):
    other = other_project(served)
    with Receiver() as receiver, listening(served.client, receiver.url) as endpoint:
        with pytest.raises(openai.NotFoundError):
            other.webhooks.retrieve(endpoint.id)
        with pytest.raises(openai.NotFoundError):
            other.webhooks.delete(endpoint.id)
        assert other.webhooks.list().data == []
        tell(served.settings, project="proj_other")
        tell(served.settings, type="fine_tuning.job.failed")
        tell(served.settings, job="ftjob-own")
        wait_for(lambda: receiver.got)
        assert [json.loads(body)["data"]["id"] for body, _ in receiver.got] == ["ftjob-own"]


def test_the_official_client_verifies_what_a_finished_job_sends(client):
    with Receiver() as receiver, listening(client, receiver.url) as endpoint:
        job = ended(client, start_job(client))
        body, headers = wait_for(lambda: [sent for sent in receiver.got if job.id.encode() in sent[0]])[0]
        event = conforms(client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret))
        assert (event.type, event.object, event.data.id) == (SUCCEEDED, "event", job.id)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body, headers, secret="whsec_" + "A" * 43 + "=")
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.replace(b"succeeded", b"cancelled"), headers, secret=endpoint.signing_secret)


def test_a_refused_event_is_sent_again_as_the_same_event(served):
    with Receiver(500, 302) as receiver, listening(served.client, receiver.url) as endpoint:
        tell(served.settings)
        wait_for(lambda: len(receiver.got) == 3)
        wait_for(lambda: delivery(served.settings, endpoint).due is None)
        assert len({headers["webhook-id"] for _, headers in receiver.got}) == 1
        assert len({body for body, _ in receiver.got}) == 1
        for body, headers in receiver.got:
            served.client.webhooks.verify_signature(body, headers, secret=endpoint.signing_secret)
        assert delivery(served.settings, endpoint).attempts == 3


def test_an_endpoint_that_is_gone_is_left_alone(served):
    with Receiver(410) as receiver, listening(served.client, receiver.url) as endpoint:
        tell(served.settings)
        wait_for(lambda: delivery(served.settings, endpoint).due is None)
        assert (len(receiver.got), delivery(served.settings, endpoint).last_error) == (1, "status 410")


def test_events_are_given_up_after_days(served, monkeypatch):
    monkeypatch.setattr(deliveries, "GIVE_UP", 0.0)
    with Receiver(500) as receiver, listening(served.client, receiver.url) as endpoint:
        tell(served.settings)
        wait_for(lambda: delivery(served.settings, endpoint).due is None)
        assert (len(receiver.got), delivery(served.settings, endpoint).last_error) == (1, "status 500")


def test_an_event_survives_the_server(tmp_path, database_url, monkeypatch):
    monkeypatch.setattr(deliveries, "BACKOFF", 3600.0)
    settings = settings_for(tmp_path, database_url=database_url)
    with Receiver(503) as receiver:
        with serving(settings, ByteEngine()) as client:
            secret = client.webhooks.create(name="n", url=receiver.url, event_types=[SUCCEEDED]).signing_secret
            tell(settings)
            wait_for(lambda: receiver.got)
        assert len(receiver.got) == 1
        with open_database(settings).begin() as session:
            session.execute(update(Delivery).values(due=0))  # as if the hour were over
        with serving(settings, ByteEngine()) as client:
            wait_for(lambda: len(receiver.got) == 2)
            (_, first), (body, second) = receiver.got
            assert first["webhook-id"] == second["webhook-id"]
            client.webhooks.unwrap(body, second, secret=secret)


def test_a_slow_endpoint_holds_up_no_other(served):
    client = served.client
    with Receiver(delay=60) as slow, Receiver() as quick, listening(client, slow.url), listening(client, quick.url):
        for _ in range(3):
            tell(served.settings)
        wait_for(lambda: len(quick.got) == 3, seconds=50)
        assert len(slow.got) == 1


def test_an_endpoint_that_never_answers_counts_as_failed(served, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT", 0.2)
    monkeypatch.setattr(deliveries, "GIVE_UP", 0.0)
    with Receiver(delay=60) as receiver, listening(served.client, receiver.url) as endpoint:
        tell(served.settings)
        wait_for(lambda: delivery(served.settings, endpoint).due is None)
        assert "no answer within" in delivery(served.settings, endpoint).last_error


def test_of_two_servers_one_makes_an_attempt_until_its_lease_ends(tmp_path, database_url, monkeypatch):
    settings = settings_for(tmp_path, database_url=database_url)
    with serving(settings, ByteEngine()) as client:
        endpoint = client.webhooks.create(name="n", url="http://127.0.0.1:9/", event_types=[SUCCEEDED])
    sessions = open_database(settings)
    tell(settings)
    (first,) = deliveries.claim(sessions, 10, [])
    assert deliveries.claim(open_database(settings), 10, []) == []
    monkeypatch.setattr(deliveries, "time", SimpleNamespace(time=lambda: time.time() + deliveries.LEASE + 1))
    assert deliveries.claim(sessions, 10, [endpoint.id]) == []
    (second,) = deliveries.claim(sessions, 10, [])
    assert second.delivery.id == first.delivery.id
    deliveries.settle(sessions, first.delivery, None, final=False)  # too late: the attempt is another's
    assert delivery(settings, endpoint).due is not None
    deliveries.settle(sessions, second.delivery, None, final=False)
    assert delivery(settings, endpoint).due is None


@pytest.mark.parametrize("keep", [True, False])
def test_a_rotated_secret_signs_and_the_old_one_where_it_is_kept(served, keep):
    with Receiver() as receiver, listening(served.client, receiver.url) as endpoint:
        rotated = conforms(served.client.webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=keep))
        assert rotated.signing_secret != endpoint.signing_secret
        tell(served.settings)
        wait_for(lambda: receiver.got)
        body, headers = receiver.got[0]
        served.client.webhooks.unwrap(body, headers, secret=rotated.signing_secret)
        if keep:
            served.client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)
        else:
            with pytest.raises(openai.InvalidWebhookSignatureError):
                served.client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret)


def test_a_sample_is_sent_on_request(client):
    with Receiver(418) as receiver, listening(client, receiver.url) as endpoint:
        result = conforms(client.webhooks.test(endpoint.id, event_type="fine_tuning.job.failed"))
        assert (result.status_code, result.success) == (418, True)
        body, headers = receiver.got[0]
        assert client.webhooks.unwrap(body, headers, secret=endpoint.signing_secret).type == "fine_tuning.job.failed"


def test_a_sample_to_nobody_is_refused(client):
    with listening(client, f"http://127.0.0.1:{free_port()}/") as endpoint:
        with pytest.raises(openai.BadRequestError) as refused:
            client.webhooks.test(endpoint.id, event_type=SUCCEEDED)
        assert refused.value.code == "webhook_unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "https://a..b.example.com/h",
        f"https://{'a' * 64}.invalid/",
        "https://💩.invalid/",
        f"https://a.invalid/{'a' * 70000}",
    ],
    ids=["empty label", "long label", "emoji", "long path"],
)
def test_an_address_that_cannot_be_called_does_not_answer(served, monkeypatch, url):
    monkeypatch.setattr(deliveries, "GIVE_UP", 0.0)
    with listening(served.client, url) as endpoint:
        with pytest.raises(openai.BadRequestError) as refused:
            served.client.webhooks.test(endpoint.id, event_type=SUCCEEDED)
        assert refused.value.code == "webhook_unreachable"
        tell(served.settings)
        wait_for(lambda: delivery(served.settings, endpoint).due is None)
        assert delivery(served.settings, endpoint).last_error


def test_a_name_outside_ascii_is_resolved_as_it_was_given(client, monkeypatch):
    resolve, hosts = socket.getaddrinfo, []
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *args, **options: hosts.append(host) or resolve(host, *args)
    )
    with listening(client, "https://straße.invalid/") as endpoint, pytest.raises(openai.BadRequestError):
        client.webhooks.test(endpoint.id, event_type=SUCCEEDED)
    assert "xn--strae-oqa.invalid" in hosts  # not strasse.invalid, which may be another's


@pytest.mark.slow(10)
def test_a_slow_name_server_holds_up_its_own_projects_webhooks_alone(tmp_path, monkeypatch):
    resolve, answered = socket.getaddrinfo, threading.Event()

    def slow(host, *args, **options):
        if host == "slow.test":
            answered.wait(60)
            raise socket.gaierror("no such name")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(webhooks, "TIMEOUT", 6.0)
    settings = settings_for(tmp_path, private_webhooks=True)
    flood, other = new_key(settings, "flood"), new_key(settings, "other")
    with serving(settings, ByteEngine()) as client, Receiver(200) as receiver, ThreadPoolExecutor(40) as threads:
        flooding, client = client.with_options(api_key=flood), client.with_options(api_key=other)
        slow_id = flooding.webhooks.create(name="slow", url="https://slow.test/", event_types=[SUCCEEDED]).id
        quick_id = client.webhooks.create(name="quick", url=receiver.url, event_types=[SUCCEEDED]).id
        tests = [threads.submit(flooding.webhooks.test, slow_id, event_type=SUCCEEDED) for _ in range(40)]
        time.sleep(1)
        started = time.monotonic()
        assert client.webhooks.test(quick_id, event_type=SUCCEEDED).status_code == 200
        assert time.monotonic() - started < 3
        assert {type(test.exception()) for test in tests} == {openai.BadRequestError}
        answered.set()


def test_a_server_for_many_calls_no_private_address(tmp_path):
    settings = settings_for(tmp_path, private_webhooks=False)
    with Receiver() as receiver, serving(settings, ByteEngine()) as client:
        endpoint = client.webhooks.create(name="n", url=receiver.url, event_types=[SUCCEEDED])
        with pytest.raises(openai.BadRequestError, match="an address of a private network"):
            client.webhooks.test(endpoint.id, event_type=SUCCEEDED)
        assert not receiver.got
