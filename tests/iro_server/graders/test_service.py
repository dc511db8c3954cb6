"""Python graders in a service of their own: what they give, what they may not, and what happens while it is away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.hostile_graders import HOSTILE
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader
from iro_server.graders.pool import AT_WORK
from iro_server.graders.remote import GraderServiceUnavailable, RemoteGraderProcess
from tests.iro_server.api.serving import wait_for
from tests.iro_server.graders.grader_service import KEY, grader_service

pytestmark = pytest.mark.usefixtures("isolation")

REPOSITORY = Path(__file__).parents[3]
ONE = "def grade(sample, item): return 1"
SLEEPS = """
import subprocess
def grade(sample, item):
    subprocess.run(["sleep", str(item.get("seconds", 60))])
    return 1
"""
COUNTS = "calls = 0\ndef grade(sample, item):\n    global calls\n    calls += 1\n    return calls"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with grader_service(tmp_path_factory.mktemp("service")) as running:
        yield running


def python(service, source, project="default", grader_environment=None, **more):
    grader_environment = grader_environment or service.grader_environment(project)
    return parse_grader({"type": "python", "source": source, "workers": 1, **more}, grader_environment)


def asleep(service):
    """The processes by which calls of SLEEPS sleep in the service's sandboxes."""
    children = psutil.Process(service.process.pid).children(recursive=True)
    return [child for child in children if name_of(child) == "sleep"]


def name_of(process):
    """None of one that ended this instant."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()


def test_grades_and_errors_are_those_of_a_local_grader(service):
    source = """
import os
def grade(sample, item):
    if item["k"] == 3: raise ValueError("three")
    if item["k"] == 20: os._exit(1)
    if item["k"] == 30:
        while True: pass
    if item["k"] == 31: return float("nan")
    return item["k"] + len(sample["output_text"])
"""
    with python(service, source, timeout=1) as grader:
        grades = grader.grade_many([(Sample("é\ud800"), {"k": k, "text": "\ud800"}) for k in range(40)])
    assert {k: grade.error for k, grade in enumerate(grades) if grade.error} == {
        3: "ValueError: three (grader.py, line 4)",
        20: "the grader's process died (exit code 1)",
        30: "timed out after 1 s",
        31: "the reward is nan, not a finite number",
    }
    assert [grade.reward for k, grade in enumerate(grades) if k not in (3, 20, 30, 31)] == [
        k + 2 for k in range(40) if k not in (3, 20, 30, 31)
    ]
    assert (grades[3].flag, grades[31].flag) == ("python_grader_runtime_error", "unresponsive_reward_error")


def test_a_source_that_does_not_load_says_why_for_every_sample(service):
    with python(service, "import nonexistent_module\ndef grade(sample, item): return 1") as grader:
        (error,) = {grade.error for grade in grader.grade_many([(Sample("x"), {})] * 300)}
    assert "does not load" in error and "No module named 'nonexistent_module' (grader.py, line 1)" in error


def test_the_source_is_loaded_once_and_each_grader_has_its_process(service):
    with python(service, COUNTS, "a") as first, python(service, COUNTS, "b") as second:
        assert [grade.reward for grade in first.grade_many([(Sample("x"), {})] * 100)] == list(range(1, 101))
        assert first.grade(Sample("x"), {}).reward == 101
        assert second.grade(Sample("x"), {}).reward == 1


def test_what_is_too_large_or_too_deep_fails_alone(service):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    items = [{}, {"large": "x" * 9_000_000}, {}, {"deep": deep}, {}]
    with python(service, ONE) as grader:
        grades = grader.grade_many([(Sample("x"), item) for item in items])
    assert [grade.error is None for grade in grades] == [True, False, True, False, True]
    assert "too large" in grades[1].error and "nested too deeply" in grades[3].error
    assert {grades[1].flag, grades[3].flag} == {"sample_parse_error"}


@pytest.mark.parametrize("hostile", HOSTILE[::12], ids=lambda hostile: hostile.name)
def test_a_hostile_call_is_contained_in_the_service(service, hostile, tmp_path):
    (tmp_path / "key").write_text("the key")
    with python(service, hostile.source(str(tmp_path / "key"), "hostile-mark"), timeout=hostile.timeout) as grader:
        attack, calm = grader.grade_many([(Sample("x"), {"calm": calm}) for calm in (False, True)])
    assert hostile.error in attack.error if hostile.error else attack.reward == 1
    if hostile.recovers:
        assert calm.reward == 7
    with python(service, ONE) as good:
        assert good.grade(Sample("x"), {}).reward == 1


def test_a_grader_reaches_neither_the_services_key_nor_its_port(service):
    source = f"""
import os, pathlib, socket
def grade(sample, item):
    assert not any("GRADER_SERVICE" in name for name in os.environ)
    assert {KEY!r}.encode() not in b"".join(path.read_bytes() for path in pathlib.Path("/proc").glob("*/environ"))
    socket.create_connection(("127.0.0.1", {service.port}))
"""
    with python(service, source) as grader:
        assert "graders have no network here" in grader.grade(Sample("x"), {}).error


def test_the_service_holds_no_library_that_runs_models(service):
    with python(service, ONE) as grader:
        grader.grade(Sample("x"), {})
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "sqlite" not in maps


def test_who_has_no_key_is_refused(service):
    names = {"project": "p", "process": "0" * 32}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é".encode()}):
        assert httpx.post(f"{service.address}/grade", params=names, headers=headers).status_code == 401
        assert httpx.delete(f"{service.address}/processes", params=names, headers=headers).status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    for body in (b"", b"{}", b'{"source": 1, "timeout": "x", "calls": [1]}', b"[" * 10**6):
        answer = httpx.post(f"{service.address}/grade", params=names, headers=headers, content=body)
        assert answer.status_code == 400, body[:50]


def test_it_does_not_start_without_a_key_or_isolation():
    command = [sys.executable, "-m", "iro_server", "graders"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IRO_")}
    keyless = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert keyless.returncode == 2 and "grader_service_key" in keyless.stderr
    environment |= {"IRO_GRADER_SERVICE_KEY": KEY, "PATH": "/nowhere"}
    unconfined = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert unconfined.returncode == 2 and "no program bwrap" in unconfined.stderr


@pytest.mark.slow(20)
def test_a_project_that_floods_the_service_holds_up_no_other_project(service):
    def flood():
        with python(service, SLEEPS, "flood", timeout=6) as grader:
            return grader.grade(Sample("x"), {}).error

    calls = 2 * AT_WORK
    with ThreadPoolExecutor(calls) as threads, python(service, ONE, "other") as good:
        flooding = [threads.submit(flood) for _ in range(calls)]
        time.sleep(1)
        assert good.grade(Sample("x"), {}).reward == 1
        assert not all(call.done() for call in flooding)
        assert {call.result() for call in flooding} == {"timed out after 6 s"}


def test_closing_a_grader_ends_its_call_in_the_service(service):
    grader = python(service, SLEEPS)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(grader.grade, Sample("x"), {})
        wait_for(lambda: asleep(service))
        grader.close()
        assert call.result(60).error == "the grader is closed"
    wait_for(lambda: not asleep(service))
    assert grader.grade(Sample("x"), {}).error == "the grader is closed"


def test_a_caller_that_is_killed_takes_its_call_with_it(service):
    script = f"""
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader
from iro_server.graders.environment import GraderEnvironment
grader_environment = GraderEnvironment.model_validate_json({service.grader_environment().model_dump_json()!r})
parse_grader({{"type": "python", "source": {SLEEPS!r}}}, grader_environment).grade(Sample("x"), {{}})
"""
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY)
    wait_for(lambda: asleep(service))
    caller.kill()
    caller.wait()
    wait_for(lambda: not asleep(service))


def test_a_call_whose_connection_is_lost_is_made_again(service, monkeypatch):
    timeout, lost = RemoteGraderProcess._http_timeout, iter([httpx.Timeout(0.5)])
    monkeypatch.setattr(RemoteGraderProcess, "_http_timeout", lambda process: next(lost, timeout(process)))
    with ThreadPoolExecutor(1) as thread, python(service, SLEEPS) as grader:
        assert thread.submit(grader.grade, Sample("x"), {"seconds": 2}).result(30).reward == 1
        grader.close()
        wait_for(lambda: not asleep(service))


@pytest.mark.slow(8)
def test_grading_goes_on_after_the_service_was_killed_and_started_again(tmp_path):
    rewards = []
    with grader_service(tmp_path) as service:
        grader = python(service, "import time\ndef grade(sample, item):\n    time.sleep(0.1)\n    return item['k']")
        pairs = [(Sample("x"), {"k": k}) for k in range(60)]
        grading = threading.Thread(target=lambda: rewards.extend(grade.reward for grade in grader.grade_many(pairs)))
        grading.start()
        time.sleep(2.5)
        service.kill()
        time.sleep(1)
        assert grading.is_alive()
        with service:
            grading.join(60)
            grader.close()
    assert rewards == list(range(60))


@pytest.mark.slow(15)
def test_a_stopped_service_ends_its_sandboxes_and_lets_callers_ask_the_next(tmp_path):
    with grader_service(tmp_path) as service, ThreadPoolExecutor(1) as thread:
        grader = python(service, SLEEPS)
        call = thread.submit(grader.grade, Sample("x"), {"seconds": 9})
        wait_for(lambda: asleep(service))
        family = psutil.Process(service.process.pid).children(recursive=True)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) in (0, -signal.SIGTERM)
        assert psutil.wait_procs(family, timeout=60)[1] == []
        with service:
            assert call.result(60).reward == 1
            grader.close()


def test_a_service_that_stays_away_is_said_to_be(tmp_path):
    service = grader_service(tmp_path)  # not started
    with python(service, ONE, grader_environment=service.grader_environment(patience=1)) as grader:
        started = time.monotonic()
        with pytest.raises(GraderServiceUnavailable, match=f"{service.address}: ConnectError"):
            grader.grade(Sample("x"), {})
    assert 1 <= time.monotonic() - started < 30


def test_a_wrong_key_is_said_to_be_at_once(service):
    with python(service, ONE, grader_environment=service.grader_environment(key="wrong")) as grader:
        started = time.monotonic()
        with pytest.raises(GraderServiceUnavailable, match="refuses the key"):
            grader.grade(Sample("x"), {})
    assert time.monotonic() - started < 30
