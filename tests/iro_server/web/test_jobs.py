"""Jobs in the browser: the list, one job while it runs, and what its buttons do."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from iro_server.jobs import records
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.serving import GRADER, ended, start_job
from tests.iro_server.web.conftest import opened


def test_a_job_runs_before_ones_eyes_is_paused_resumed_and_cancelled(browser, served):
    job_id = start_job(served.client, GRADER | {"name": "waits"}, iterations=16)
    with opened(browser, served.address) as (page, watch):
        page.get_by_role("link", name=job_id).click()
        expect(page.get_by_text("iteration 2 of 16")).to_be_visible()
        expect(page).to_have_title(f"{job_id} · Jobs · Iro")
        expect(page.get_by_role("main")).to_be_focused()  # the link that was clicked is gone
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_text("paused", exact=True)).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        expect(page.get_by_text("The job was paused")).to_be_visible()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_text("running", exact=True)).to_be_visible()
        expect(page.get_by_text("iteration 4 of 16")).to_be_visible()
        checkpoints = page.get_by_role("region", name="Table of checkpoints").get_by_role("row")
        expect(checkpoints).to_have_count(1 + 4)  # with the head
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Keep it").click()
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="End the job for good").click()
        expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
        expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
        expect(page.get_by_role("heading", level=1)).to_be_focused()
        watch.assert_clean()
    assert ended(served.client, job_id).status == "cancelled"


def test_a_failed_job_says_why(browser, served):
    job_id = start_job(served.client, GRADER | {"name": "raises"})
    ended(served.client, job_id)
    with opened(browser, served.address, f"/#/jobs/{job_id}") as (page, watch):
        expect(page.get_by_role("alert")).to_contain_text("the grader gave NaN for row 1")
        watch.assert_clean()


def test_a_job_that_failed_early_has_no_rewards_to_wait_for_and_a_reason_in_the_list(browser, served):
    job_id = start_job(served.client, GRADER | {"name": "raises"})
    error = ended(served.client, job_id).error
    with opened(browser, served.address) as (page, watch):
        expect(page.get_by_role("row").filter(has_text=job_id)).to_contain_text(error.code)
        page.get_by_role("link", name=job_id).click()
        expect(page.get_by_text("there are no rewards")).to_be_visible()
        with open_database(served.settings).begin() as session:
            records.add_event(session, job_id, "Step 0/1", type="metrics", data={"step": 0, "total_steps": 1})
        page.reload()
        rewards = page.get_by_role("region", name="Reward by iteration")
        expect(rewards.get_by_role("table")).to_be_visible()
        assert rewards.get_by_role("img").count() == 0  # no chart of no values
        watch.assert_clean()


@pytest.mark.slow(6)
def test_the_answers_of_an_estimate_are_not_samples_of_the_frozen_model(browser, served):
    job_id = start_job(served.client, GRADER)
    ended(served.client, job_id)
    sample = {"prompt": "say z", "completion": "zzz", "reward": 3.0}
    with open_database(served.settings).begin() as session:
        records.add_event(session, job_id, "Samples", data={"step": 0, "samples": [sample]})
        estimate = {"verdict": "go", "samples": [{"prompt": 0, "text": "of the estimate"}]}
        records.add_event(session, job_id, "Estimate: go", data=estimate)
    with opened(browser, served.address, f"/#/jobs/{job_id}") as (page, watch):
        samples = page.get_by_role("region", name="Samples")
        expect(samples.get_by_text("say z")).to_be_visible()
        expect(samples.get_by_text("zzz")).to_be_visible()
        watch.assert_clean()


def test_what_a_job_waited_is_not_in_the_time_that_it_ran(browser, served):
    job_id = start_job(served.client, GRADER)
    ended(served.client, job_id)
    with open_database(served.settings).begin() as session:
        job = find(session, Job, job_id)
        job.created_at, job.ran = job.finished_at - 600, 90.0
    with opened(browser, served.address) as (page, watch):
        expect(page.get_by_role("row").filter(has_text=job_id[-8:])).to_contain_text("1 min 30 s")
        page.goto(f"{served.address}/#/jobs/{job_id}")
        for name, time in (("Waited", "8 min 30 s"), ("Ran", "1 min 30 s")):
            fact = page.locator(".facts > div").filter(has=page.get_by_text(name, exact=True))
            expect(fact).to_contain_text(time)
        watch.assert_clean()


def test_a_model_that_is_served_unproven_is_not_said_to_answer_as_the_frozen_one(browser, served):
    job_id = start_job(served.client, GRADER, keep_unproven=True)
    ended(served.client, job_id)
    with open_database(served.settings).begin() as session:
        job = find(session, Job, job_id)
        job.search = (job.search or {}) | {"improved": False}
    with opened(browser, served.address, f"/#/jobs/{job_id}") as (page, watch):
        expect(page.get_by_text("The model is served all the same")).to_be_visible()
        expect(page.get_by_text("So the model answers as the frozen one does")).to_have_count(0)
        expect(page.get_by_text("More prompts, or more rollouts of each")).to_be_visible()
        with open_database(served.settings).begin() as session:
            got = "Gain: 0.1, of a single prompt, which gives no interval"
            records.add_event(session, job_id, got, level="warn")
        page.reload()
        expect(page.get_by_text("measured on a single prompt: more prompts may show a gain")).to_be_visible()
        watch.assert_clean()


@pytest.mark.slow(8)
def test_a_job_is_started_again_by_its_request(browser, served):
    validation = served.client.files.create(file=("v.jsonl", b'{"prompt": "say v"}\n'), purpose="fine-tune").id
    first = served.client.fine_tuning.jobs.create(
        model="bytes",
        training_file=served.client.files.create(
            file=("t.jsonl", b'{"prompt": "say z"}\n' * 3), purpose="fine-tune"
        ).id,
        validation_file=validation,
        suffix="again",
        metadata={"team": "red"},
        method={
            "type": "reinforcement",
            "reinforcement": {
                "grader": GRADER | {"name": "raises"},
                "hyperparameters": {"eval_samples": 2, "reasoning_effort": "low"},
                "iro": {"iterations": 2, "keep_unproven": True},
            },
        },
    )
    ended(served.client, first.id)
    with opened(browser, served.address, f"/#/jobs/{first.id}") as (page, watch):
        page.get_by_role("button", name="Start again").click()
        expect(page.get_by_text("3 rows, all valid")).to_be_visible()
        expect(page.get_by_label("Iterations")).to_have_value("2")
        page.get_by_label("Name").fill("another")
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_role("button", name="Start again")).to_be_visible()
        watch.assert_clean()
    second = served.client.fine_tuning.jobs.list().data[0]
    assert second.id != first.id and second.iro["suffix"] == "another"
    assert (second.method, second.metadata, second.validation_file) == (first.method, {"team": "red"}, validation)


def test_a_job_of_the_forms_own_grader_is_started_again_in_the_form(browser, served):
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_label("Training rows").fill('{"prompt": "say z"}\n' * 3)
        page.get_by_label("Words").fill("z, y")
        page.get_by_role("button", name="Start the job").click()
        page.get_by_role("button", name="Start again").click()
        expect(page.get_by_label("Kind of grader")).to_have_value("words")
        expect(page.get_by_label("Words")).to_have_value("z, y")
        watch.assert_clean()


def test_a_job_whose_rows_are_gone_is_started_again_without_them_and_without_those_of_another(browser, served):
    job_id = start_job(served.client, GRADER | {"name": "raises"}, iterations=3)
    job = ended(served.client, job_id)
    served.client.files.delete(job.training_file)
    with opened(browser, served.address, "/#/new") as (page, watch):
        page.get_by_label("Training rows").fill('{"prompt": "of another job"}')
        page.goto(f"{served.address}/#/jobs/{job_id}")
        page.get_by_role("button", name="Start again").click()
        expect(page.get_by_label("Iterations")).to_have_value("3")
        expect(page.get_by_role("alert")).to_contain_text(f"No such file: {job.training_file}")
        expect(page.get_by_label("Training rows")).to_have_value("")
        page.get_by_role("button", name="Undo").click()
        expect(page.get_by_label("Training rows")).to_have_value('{"prompt": "of another job"}')
        expect(page.get_by_role("alert")).to_have_count(0)
        watch.assert_clean(refusals=1)


def test_a_queued_job_says_how_many_start_before_it(browser, served):
    first, second = (start_job(served.client, GRADER | {"name": "waits"}, iterations=16) for _ in range(2))
    with opened(browser, served.address) as (page, watch):
        expect(page.get_by_role("row").filter(has_text=second)).to_contain_text("after 1 more")
        page.get_by_role("link", name=second).click()
        expect(page.get_by_text("It starts after 1 other job of yours.")).to_be_visible()
        watch.assert_clean()
    for id in (second, first):
        served.client.fine_tuning.jobs.cancel(id)
