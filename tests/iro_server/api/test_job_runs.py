"""Runs of batch jobs through the API: real processes of the registered jobs, and who may start them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from PIL import Image

from iro_server.jobs import lock
from iro_server.jobs.job_runs.folder import PNG_END, RunFolder
from iro_server.jobs.job_runs.kinds import path_fields
from iro_server.store.database import open_database
from iro_server.store.tables import JobRun, new_id
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, upload, wait_for

SMALL = {"studies": ["matrices"], "models": 1, "iterations": 60, "prompts": 50, "lengths": [5, 20]}
ENDLESS = SMALL | {"iterations": 10**6}
COT = {"kind": "theory.cot", "preset": "smoke"}
ENDED = ("succeeded", "failed", "cancelled")
SCOPES = ("--scope", "read", "--scope", "train", "--scope", "admin")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server on loopback that needs no keys."""
    settings = settings_for(tmp_path_factory.mktemp("data"), job_restarts=1)
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=300) as http:
        yield SimpleNamespace(client=client, http=http, settings=settings)


def start(http: httpx.Client, **body: Any) -> str:
    answer = http.post("iro/job_runs", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def get(http: httpx.Client, run: str, part: str = "", **query: object) -> Any:
    answer = http.get(f"iro/job_runs/{run}{part}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ended(http: httpx.Client, run: str) -> Any:
    return wait_for(lambda: (shown := get(http, run))["status"] in ENDED and shown, seconds=500)


def refusal(http: httpx.Client, **body: object) -> tuple[int, str, str]:
    answer = http.post("iro/job_runs", json=body)
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def test_every_registered_job_has_a_schema_and_its_presets_conform(served: SimpleNamespace) -> None:
    kinds = {kind["id"]: kind for kind in served.http.get("iro/job_kinds").json()["data"]}
    assert {"theory.cot", "bilevel.quadratic", "align"} <= kinds.keys()
    assert kinds["theory.cot"]["summary"].startswith("Chain of thought")
    assert kinds["theory.cot"]["presets"]["smoke"]["models"] == 5
    for kind in kinds.values():
        fields = {} if kind["problem"] else kind["config_schema"]["properties"]
        assert kind["problem"] or fields
        assert [name for name, field in fields.items() if not field.get("description")] == [], kind["id"]
    assert path_fields(kinds["align"]["config_schema"]) >= {"training_file", "model_dir", "engine_adapters"}
    assert path_fields(kinds["federated.fadas"]["config_schema"]) == {"data", "trace"}


def test_a_run_has_live_metrics_a_result_and_figures(served: SimpleNamespace) -> None:
    run = start(served.http, **COT, config=SMALL, name="small")
    queued = get(served.http, run)
    assert queued["config"]["models"] == 1 and queued["config"]["deep_iterations"] == 10  # of the preset
    assert queued["config"]["d"] == 30 and queued["name"] == "small"  # the default
    shown = ended(served.http, run)
    assert shown["status"] == "succeeded", shown["error"]
    assert shown["figures"] == ["gallery", "matrices"]
    rows = get(served.http, run, "/metrics")["data"]
    assert rows[0].keys() == {"step", "loss"} and shown["metrics_bytes"] > 0
    page = get(served.http, run, "/metrics", offset=1, limit=1)
    assert page == {"object": "list", "data": rows[1:2], "has_more": True}
    result = get(served.http, run, "/result")
    assert result["config"]["iterations"] == 60 and result["checks"][0]["holds"]
    figure = served.http.get(f"iro/job_runs/{run}/figures/matrices")
    assert figure.headers["content-type"] == "image/png" and figure.content.startswith(b"\x89PNG")
    assert run in [row["id"] for row in served.http.get("iro/job_runs").json()["data"]]
    for name in ("unknown", "..%2Fresult", "page.html"):
        assert served.http.get(f"iro/job_runs/{run}/figures/{name}").status_code == 404


@pytest.mark.slow(18)
def test_a_run_is_cancelled_and_its_process_ends(served: SimpleNamespace) -> None:
    run = start(served.http, **COT, config=ENDLESS)
    folder = served.settings.run_dir(run)
    wait_for(lambda: get(served.http, run)["metrics_bytes"], seconds=300)
    assert served.http.get(f"iro/job_runs/{run}/result").json()["error"]["code"] == "result_not_found"
    assert served.http.delete(f"iro/job_runs/{run}").json()["error"]["code"] == "run_open"
    assert served.http.post(f"iro/job_runs/{run}/cancel").json()["status"] == "cancelled"
    wait_for(lambda: not lock.held(folder))
    assert served.http.post(f"iro/job_runs/{run}/cancel").json()["error"]["code"] == "run_ended"
    assert get(served.http, run, "/metrics")["data"]
    assert served.http.delete(f"iro/job_runs/{run}").json()["deleted"]
    assert served.http.get(f"iro/job_runs/{run}").status_code == 404 and not folder.exists()


def test_reads_of_a_run_that_is_being_deleted_answer_or_say_that_it_is_gone(served: SimpleNamespace) -> None:
    parts = ("", "/metrics", "/result", "/figures/curve")

    def read(run: str, part: str) -> set[int]:
        seen: set[int] = set()
        with httpx.Client(base_url=str(served.client.base_url), timeout=300) as http:
            while 404 not in seen:
                seen.add(http.get(f"iro/job_runs/{run}{part}").status_code)
        return seen

    with ThreadPoolExecutor(len(parts)) as readers:
        for _ in range(10):
            run = JobRun(id=new_id("jobrun_"), kind=COT["kind"], name="", config={}, status="succeeded")
            out = served.settings.run_dir(run.id) / "run"
            (out / "figures").mkdir(parents=True)
            (out / "metrics.jsonl").write_text('{"step": 1}\n')
            (out / "result.json").write_text("{}")
            (out / "figures" / "curve.png").write_bytes(b"\x89PNG" * 10_000 + PNG_END)
            id = run.id
            with open_database(served.settings).begin() as session:
                session.add(run)
            reads = [readers.submit(read, id, part) for part in parts]
            served.http.delete(f"iro/job_runs/{id}").raise_for_status()
            assert all(read.result() <= {200, 404} for read in reads)


def test_a_figure_that_is_being_drawn_is_not_there_yet(served: SimpleNamespace) -> None:
    run = JobRun(id=new_id("jobrun_"), kind=COT["kind"], name="", config={}, status="succeeded")
    path, id = served.settings.run_dir(run.id) / "run" / "figures" / "curve.png", run.id
    path.parent.mkdir(parents=True)
    with open_database(served.settings).begin() as session:
        session.add(run)
    with Image.new("L", (8, 8)) as image:
        image.save(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert served.http.get(f"iro/job_runs/{id}/figures/curve").json()["error"]["code"] == "figure_not_found"
    path.write_bytes(whole)
    assert served.http.get(f"iro/job_runs/{id}/figures/curve").content == whole


@pytest.mark.slow(6)
def test_a_process_that_is_killed_is_started_again_and_then_given_up(served: SimpleNamespace) -> None:
    run = start(served.http, **COT, config=ENDLESS)
    killed: set[int] = set()

    def kill() -> Any:
        pid = lock.holder(served.settings.run_dir(run))
        if pid is not None and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return (shown := get(served.http, run))["status"] in ENDED and shown

    shown = wait_for(kill, seconds=300)
    assert (shown["status"], shown["error"]["code"], len(killed)) == ("failed", "worker_died", 2)


@pytest.mark.slow(10)
def test_what_the_job_itself_refuses_is_the_runs_error(served: SimpleNamespace) -> None:
    shown = ended(served.http, start(served.http, **COT, config={"studies": ["unknown"]}))
    assert shown["status"] == "failed"
    assert (shown["error"]["code"], shown["error"]["param"]) == ("invalid_config", "studies")
    assert "no study unknown" in shown["error"]["message"]


def test_what_the_schema_refuses_is_a_400(served: SimpleNamespace) -> None:
    http = served.http
    assert refusal(http, kind="unknown") == (400, "invalid_value", "kind")
    assert refusal(http, kind="theory.cot", preset="x") == (400, "invalid_value", "preset")
    assert refusal(http, **COT, config={"models": "many"}) == (400, "invalid_value", "config.models")
    assert refusal(http, **COT, config={"lengths": [1, "x"]}) == (400, "invalid_value", "config.lengths.1")
    assert refusal(http, **COT, config={"modles": 3}) == (400, "unknown_parameter", "config.modles")
    assert refusal(http, kind="bench.tasks") == (400, "invalid_value", "config")  # its tasks are missing


@pytest.mark.parametrize("number", ["1e999", "NaN"])
def test_a_number_that_is_not_finite_is_a_400_and_runs_are_listed_still(served: SimpleNamespace, number: str) -> None:
    body = f'{{"kind": "bilevel.bl_just", "config": {{"context": {number}}}}}'
    answer = served.http.post("iro/job_runs", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "config.context")
    assert served.http.get("iro/job_runs").status_code == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "../../iro.db", "file-../../x", 7, ["/etc"]])
def test_no_path_of_the_server_can_be_chosen(served: SimpleNamespace, path: object) -> None:
    for kind, field in (("federated.fadas", "data"), ("align", "training_file"), ("align", "model_dir")):
        answer = served.http.post("iro/job_runs", json={"kind": kind, "preset": "smoke", "config": {field: path}})
        assert answer.status_code in (400, 404)
        assert answer.json()["error"]["param"] == f"config.{field}"


def test_a_stored_file_stands_where_a_path_is_asked_for(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, job_run_concurrency=0)
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=300) as http:
        file = upload(client)
        run = start(http, kind="align", preset="smoke", config={"training_file": file, "validation_file": file})
        assert get(http, run)["config"]["training_file"] == file
        client.files.delete(file)
        assert (settings.run_dir(run) / "files" / file).read_text().startswith('{"messages"')
        assert http.post(f"iro/job_runs/{run}/cancel").json()["status"] == "cancelled"


@pytest.mark.slow(15)
def test_a_run_goes_on_when_its_server_starts_again(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=300) as http:
        run = start(http, **COT, config=ENDLESS)
        wait_for(lambda: get(http, run)["metrics_bytes"], seconds=300)
    assert not lock.held(settings.run_dir(run))
    with serving(settings, ByteEngine()) as client, httpx.Client(base_url=str(client.base_url), timeout=300) as http:
        wait_for(lambda: get(http, run)["status"] == "in_progress")
        http.post(f"iro/job_runs/{run}/cancel")


def test_only_a_key_that_was_given_the_scope_admin_starts_runs(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, require_keys=True, job_run_concurrency=0)
    keys = {"owner": SCOPES, "unscoped": (), "trainer": SCOPES[:4], "stranger": SCOPES}
    secrets = {name: new_key(settings, name, *options) for name, options in keys.items()}
    with serving(settings, ByteEngine()) as client:
        callers = {
            name: httpx.Client(base_url=str(client.base_url), headers={"authorization": f"Bearer {key}"}, timeout=300)
            for name, key in secrets.items()
        }
        run = start(callers["owner"], **COT)
        for name in ("unscoped", "trainer"):
            assert refusal(callers[name], **COT)[:2] == (403, "insufficient_scope")
        for name in ("unscoped", "stranger"):
            assert callers[name].get("iro/job_runs").json()["data"] == []
            assert callers[name].get(f"iro/job_runs/{run}").status_code == 404
        assert callers["stranger"].post(f"iro/job_runs/{run}/cancel").status_code == 404
        assert get(callers["owner"], run)["status"] == "queued"
        for caller in callers.values():
            caller.close()


def test_metrics_that_are_read_while_their_run_is_resumed_are_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loads, resumed = RunFolder(tmp_path), json.loads, list[int]()
    folder.out.mkdir()
    path = folder.out / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "seconds": 1.25}}\n' for step in range(2000)))

    def resume(text: str) -> Any:
        if not resumed:
            resumed.append(1)
            path.write_text("".join(f'{{"step": {step}, "seconds": 1.2345}}\n' for step in range(2000)))
        return loads(text)

    monkeypatch.setattr("iro_server.jobs.job_runs.folder.json.loads", resume)
    rows = folder.metrics(0, 5000)
    assert rows and [row["step"] for row in rows] == list(range(len(rows)))
