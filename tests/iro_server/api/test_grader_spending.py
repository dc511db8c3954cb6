"""Tokens that a model grader draws on this server count against the key whose request it grades."""

from __future__ import annotations

import openai
import pytest

from iro_server.graders.environment import JUDGE_TOKENS
from iro_server.store import keys
from iro_server.store.database import open_database
from iro_server.telemetry.request import CHARGED_KEY
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, new_key, serving, settings_for
from tests.iro_server.api.test_picking import HI, SCORE, SEARCH

LIMIT = 10_000  # tokens a minute
JUDGED = 200  # tokens that the judge may draw
JUDGE = SCORE | {"sampling_params": {"temperature": 0, "max_tokens": JUDGED}}


def remaining(client: openai.OpenAI) -> int:
    """Tokens that the key has left before a request of few."""
    answer = client.chat.completions.with_raw_response.create(model="bytes", messages=HI, max_tokens=1)
    return int(answer.headers["x-ratelimit-remaining-tokens"])


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


def test_a_grader_that_is_tried_spends_its_callers_tokens(settings):
    key = new_key(settings, "default", "--tokens-per-minute", str(LIMIT))
    with serving(settings, ByteEngine("0.7")) as client:
        client = client.with_options(api_key=key)
        assert client.fine_tuning.alpha.graders.run(grader=JUDGE, model_sample="x").reward == 0.7
        assert remaining(client) < LIMIT - JUDGED


def test_a_judge_that_picks_spends_the_tokens_of_who_asked_and_not_its_owners(settings):
    owner, guest = (new_key(settings, name, "--tokens-per-minute", str(LIMIT)) for name in ("default", "guest"))
    model = aligned(settings, "shared", grader=JUDGE)
    with serving(settings, ByteEngine("0.7", noise=0.1)) as client:
        owner, guest = (client.with_options(api_key=key) for key in (owner, guest))
        owner.fine_tuning.checkpoints.permissions.create(model, project_ids=["guest"])
        guest.chat.completions.create(model=model, messages=HI, max_tokens=4, extra_body={"search": SEARCH})
        assert remaining(guest) < LIMIT - 2 * JUDGED  # some finals may be alike, and are judged all the same
        assert remaining(owner) > LIMIT - JUDGED


def test_a_key_without_tokens_left_gets_no_grades(settings):
    key = new_key(settings, "default", "--tokens-per-minute", str(JUDGED))
    with serving(settings, ByteEngine("0.7")) as client:
        answer = client.with_options(api_key=key).fine_tuning.alpha.graders.run(grader=JUDGE, model_sample="x")
    assert answer.metadata.errors.model_grader_server_error and "Request too large" in answer.iro["error"]


def test_only_the_servers_own_key_may_name_another_that_pays(settings):
    payer = new_key(settings, "payer", "--tokens-per-minute", str(LIMIT))
    other = new_key(settings, "other", "--tokens-per-minute", str(LIMIT))
    (payer_id, _) = (key.id for key in keys.every(open_database(settings)))
    with serving(settings, ByteEngine()) as client:
        headers = {CHARGED_KEY: payer_id}
        spender = client.with_options(api_key=other, default_headers=headers)
        spender.chat.completions.create(model="bytes", messages=HI, max_tokens=400)
        assert remaining(client.with_options(api_key=payer)) > LIMIT - 400
        assert remaining(client.with_options(api_key=other)) < LIMIT - 400


@pytest.mark.parametrize(
    ("limit", "keys_required", "of_a_job"),
    [(None, True, JUDGE_TOKENS), (None, False, None), (500, True, 500), (500, False, 500)],
)
def test_the_judges_of_a_job_have_a_limit_where_keys_are_required(settings, limit, keys_required, of_a_job):
    settings = settings.model_copy(update={"max_judge_tokens_per_job": limit})
    grader_environment = settings.grader_environment("internal", lambda: keys_required)
    assert grader_environment.of_job("default").max_judge_tokens == of_a_job
