"""A server whose python graders run in a service of their own."""

from __future__ import annotations

import openai
import pytest

from iro_server.api.app import create_app
from iro_server.graders import pool
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader
from iro_server.store.database import open_database
from iro_server.store.tables import Permission, new_id
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, ended, new_key, serving, settings_for, start_job, wait_for
from tests.iro_server.graders.grader_service import grader_service
from tests.iro_server.jobs.fake_job import JOB

pytestmark = pytest.mark.usefixtures("isolation")

KEEPS = """
seen = []
def grade(sample, item):
    seen.append(item)
    if item.get("tell"): raise ValueError(f"have seen {seen}")
    return len(seen)
"""
PYTHON = {"type": "python", "name": "quick", "source": KEEPS, "workers": 1}
HI = [{"role": "user", "content": "hi"}]
SEARCH = {"beam_width": 2, "num_successors": 2, "pick": "grader"}


@pytest.fixture(autouse=True)
def no_local_sandbox(monkeypatch):
    monkeypatch.setattr(pool, "Sandbox", None)


class GradingJob(JOB):
    """Its validation and its worker each grade one sample."""

    @staticmethod
    def validate(config, model, grader) -> list[str]:
        assert grader.grade(Sample("x"), {}).reward == 1
        return []

    @staticmethod
    def execute(config, out, **options):
        with parse_grader(config.grader) as grader:
            assert grader.grade(Sample("x"), {}).reward == 1
        return JOB.execute(config, out, **options)


def test_requests_and_jobs_grade_in_the_service(tmp_path):
    with grader_service(tmp_path) as service:
        settings = settings_for(tmp_path, align_entry=f"{__name__}:GradingJob", **service.settings())
        with serving(settings, ByteEngine()) as client:
            answer = client.fine_tuning.alpha.graders.run(grader=PYTHON, model_sample="x")
            assert (answer.reward, answer.iro["error"]) == (1, None)
            job = ended(client, start_job(client, PYTHON))
            assert job.status == "succeeded", job.error


@pytest.mark.slow(20)
def test_a_service_that_is_away_is_a_503_and_jobs_wait_for_it(tmp_path):
    service = grader_service(tmp_path)  # started below
    settings = settings_for(tmp_path, align_entry=f"{__name__}:GradingJob", grader_patience=0.5, **service.settings())
    model = aligned(settings, "mine", grader=PYTHON)
    with serving(settings, ByteEngine(noise=0.1)) as client:
        with pytest.raises(openai.InternalServerError) as refusal:
            client.fine_tuning.alpha.graders.run(grader=PYTHON, model_sample="x")
        assert (refusal.value.status_code, refusal.value.code) == (503, "grader_service_unavailable")
        assert refusal.value.type == "server_error" and str(service.port) not in refusal.value.response.text
        assert int(refusal.value.response.headers["retry-after"]) > 0
        chat = {"model": model, "messages": HI, "max_tokens": 4, "extra_body": {"search": SEARCH}}
        with pytest.raises(openai.InternalServerError) as unpicked:
            client.chat.completions.create(**chat)
        assert (unpicked.value.status_code, unpicked.value.code) == (503, "grader_service_unavailable")
        with pytest.raises(openai.APIError, match="graders cannot run now"):
            list(client.chat.completions.create(stream=True, **chat))

        job = start_job(client, PYTHON)
        with pytest.raises(AssertionError, match="waited in vain"):
            wait_for(lambda: client.fine_tuning.jobs.retrieve(job).status != "validating_files", seconds=3)
        with service:
            assert ended(client, job).status == "succeeded"
            assert client.chat.completions.create(**chat).choices[0].message.content


def test_a_guest_neither_sees_what_the_owner_sent_nor_what_the_grader_says(tmp_path):
    with grader_service(tmp_path) as service:
        settings = settings_for(tmp_path, **service.settings())
        owner, guest = new_key(settings, "default"), new_key(settings, "guest")
        model = aligned(settings, "shared", grader=PYTHON)
        with open_database(settings).begin() as session:
            session.add(Permission(id=new_id("cp_"), model_name=model, project_id="guest"))
        with serving(settings, ByteEngine(noise=0.1)) as client:

            def ask(key: str, **item: object) -> str:
                body = {"search": SEARCH, "item": item}
                client.with_options(api_key=key).chat.completions.create(
                    model=model, messages=HI, max_tokens=4, extra_body=body
                )

            ask(guest, whose="guest")
            with pytest.raises(openai.BadRequestError, match="could grade no completion") as to_guest:
                ask(guest, tell=True)
            assert "have seen" not in to_guest.value.response.text
            with pytest.raises(openai.BadRequestError, match="have seen") as to_owner:
                ask(owner, tell=True)
            assert "guest" not in to_owner.value.response.text


def test_a_server_that_lacks_the_services_key_does_not_start(tmp_path):
    with pytest.raises(ValueError, match="needs IRO_GRADER_SERVICE_KEY"):
        create_app(settings_for(tmp_path, grader_service="http://graders:8002"), ByteEngine())
