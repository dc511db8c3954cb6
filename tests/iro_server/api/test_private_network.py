"""What a tenant of a loopback server with keys, as one behind a proxy is, reaches of the network behind it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import openai
import pytest

from iro_server.access import key_requirement
from iro_server.access.public_address import is_public
from iro_server.api.app import create_app
from iro_server.engines.ports import free_port
from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import webhook_sender as webhooks
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for, wait_for
from tests.iro_server.api.test_graders import SCORE
from tests.iro_server.api.test_webhooks import SUCCEEDED, Receiver

pytestmark = pytest.mark.usefixtures("brief_keys")


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


def keyed(settings, client):
    """The client of somebody whose key `iro keys create` made just now."""
    secret = keys.create(open_database(settings), "tenant")[1]
    return client.copy(api_key=secret)


def allowed(client, url):
    try:
        client.fine_tuning.alpha.graders.validate(grader={**SCORE, "base_url": url})
    except openai.BadRequestError as refused:
        assert "IRO_GRADER_ENDPOINTS" in refused.message
        return False
    return True


def test_once_there_are_keys_a_grader_asks_only_endpoints_that_the_operator_named(settings):
    with Receiver(200) as inside, serving(settings, ByteEngine()) as client:
        assert allowed(client, inside.url)  # one user, without keys
        tenant = keyed(settings, client)
        wait_for(lambda: not allowed(tenant, inside.url), seconds=60)
        assert not allowed(tenant, "http://169.254.169.254/v1")
        with pytest.raises(openai.BadRequestError):
            tenant.fine_tuning.alpha.graders.run(grader={**SCORE, "base_url": inside.url}, model_sample="x")
        assert not inside.got


def test_a_job_starts_with_what_holds_then(settings):
    app = create_app(settings, ByteEngine())
    grader_environment = app.state.context.grader_environment
    assert grader_environment.model_copy(update={"project": "p"}).any_endpoint
    keys.create(open_database(settings), "tenant")
    wait_for(lambda: not grader_environment.model_copy().any_endpoint, seconds=60)
    started = grader_environment.model_copy(update={"project": "p"})
    assert GraderEnvironment.model_validate_json(started.model_dump_json()) == started
    assert (started.project, started.base_url, started.any_endpoint) == ("p", grader_environment.base_url, False)


def test_the_operators_word_is_the_last(settings):
    with Receiver(200) as inside:
        changes = {"grader_endpoints": {inside.url: ""}, "private_webhooks": True}
        with serving(settings.model_copy(update=changes), ByteEngine()) as client:
            tenant = keyed(settings, client)
            assert allowed(tenant, inside.url)
            assert sample(tenant, inside.url).status == 200


def sample(client, url):
    """What a test of a webhook to ``url`` comes to: the status, or the error and after how many seconds it came."""
    endpoint = client.webhooks.create(name="n", url=url, event_types=[SUCCEEDED])
    started = time.monotonic()
    try:
        status = client.webhooks.test(endpoint.id, event_type=SUCCEEDED).status_code
    except openai.BadRequestError as refused:
        return SimpleNamespace(status=None, said=refused.message, seconds=time.monotonic() - started)
    return SimpleNamespace(status=status, said=None, seconds=time.monotonic() - started)


def test_once_there_are_keys_no_webhook_goes_to_a_private_address(settings):
    with Receiver(200, 200) as inside, serving(settings, ByteEngine()) as client:
        assert sample(client, inside.url).status == 200
        tenant = keyed(settings, client)
        time.sleep(2 * key_requirement.KEY_SECONDS)
        open_port, closed = sample(tenant, inside.url), sample(tenant, f"http://127.0.0.1:{free_port()}/")
        assert len(inside.got) == 1
        assert open_port.said == closed.said and "127.0.0.1:" not in closed.said


@pytest.mark.slow(5)
def test_a_test_of_a_webhook_does_not_tell_ports_apart(settings, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT", 1.0)
    settings = settings.model_copy(update={"private_webhooks": True})
    silent = Receiver(delay=3)
    with silent, Receiver(404) as wrong, serving(settings, ByteEngine()) as client:
        tenant = keyed(settings, client)
        time.sleep(2 * key_requirement.KEY_SECONDS)
        answers = [sample(tenant, url) for url in (silent.url, wrong.url, f"http://127.0.0.1:{free_port()}/")]
    assert len({answer.said for answer in answers}) == 1
    assert all(answer.status is None and answer.seconds > 0.95 for answer in answers)


def test_a_test_of_a_webhook_does_not_tell_which_names_exist(settings, monkeypatch):
    monkeypatch.setattr(webhooks, "TIMEOUT", 1.0)
    with serving(settings, ByteEngine()) as client:
        tenant = keyed(settings, client)
        time.sleep(2 * key_requirement.KEY_SECONDS)
        private, unknown = sample(tenant, "https://localhost/"), sample(tenant, "https://iro-unknown.localdomain/")
        address = sample(tenant, "https://10.0.0.1/")
    assert private.said == unknown.said and "private" not in private.said
    assert min(private.seconds, unknown.seconds) > 0.95
    assert "private network" in address.said and address.seconds < 0.9


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fec0::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::8.8.8.8", False),
        ("2002:a00:1::", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:8.8.8.8", False),
        ("::10.0.0.1", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize("status", [200, 404, 500])
def test_errors_do_not_quote_an_endpoint_that_the_caller_chose(settings, status, monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.ATTEMPTS", 1)
    body = {"error": {"message": "the secret"}, "other": "the secret"}
    with Private(status, body) as inside, serving(settings, ByteEngine()) as client:
        grader = {**SCORE, "base_url": inside.url}
        error = client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x").iro["error"]
    assert "the secret" not in error and ("200" in error or str(status) in error or "no chat completion" in error)


def test_nor_the_answer_that_it_cannot_read(settings):
    choice = {"message": {"role": "assistant", "content": "the secret"}}
    with Private(200, {"choices": [choice]}) as inside, serving(settings, ByteEngine()) as client:
        grader = {**SCORE, "base_url": inside.url}
        error = client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x").iro["error"]
    assert "0 numbers" in error and "the secret" not in error


class Private(Receiver):
    """Answers every POST with ``status`` and ``body`` as JSON."""

    def __init__(self, status, body):
        super().__init__()
        raw = json.dumps(body).encode()

        def answer(handler):
            handler.rfile.read(int(handler.headers["content-length"]))
            handler.send_response(status)
            handler.send_header("content-length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw)

        self.server.RequestHandlerClass.do_POST = answer
