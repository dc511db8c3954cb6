import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from iro_server.graders import pool
from iro_server.graders.base import Sample
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.parsing import parse_grader
from tests.iro_server.api.serving import wait_for

WHERE = "import os, time\nborn = time.monotonic_ns()\ndef grade(sample, item): return born"
LOOP = "def grade(sample, item):\n    while True: pass"
REPOSITORY = Path(__file__).parents[3]


SLEEP = "import time\ndef grade(sample, item): time.sleep(60)"


def python(source, project="default", **more):
    grader_environment = GraderEnvironment(python_limits=PythonLimits(timeout=10), project=project)
    return parse_grader({"type": "python", "source": source, "workers": 1, **more}, grader_environment)


def children():
    return {child.pid for child in psutil.Process().children() if child.name() == "bwrap"}


def served(slots, projects):
    """In which order threads that wait are given slots: their numbers, by the projects they wait for."""
    order = []

    def wait(number, project):
        with slots.slot(project):
            order.append(number)

    with slots.slot("first"):
        threads = []
        for number, project in enumerate(projects):
            threads.append(threading.Thread(target=wait, args=(number, project)))
            threads[-1].start()
            while sum(map(len, slots._queue._waiting.values())) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    return order


def test_a_projects_threads_get_slots_in_the_order_they_came():
    assert served(pool.SandboxSlots(1, 1), ["first"] * 10) == list(range(10))


def test_projects_that_wait_get_slots_in_rotation():
    assert served(pool.SandboxSlots(1, 1), ["flood"] * 4 + ["other", "third", "other"]) == [0, 4, 5, 1, 6, 2, 3]


@pytest.mark.slow(15)
def test_a_project_that_floods_the_sandboxes_holds_up_no_other_project():
    def flood():
        with python(SLEEP, "flood", timeout=6) as grader:
            return grader.grade(Sample("x"), {}).error

    calls = 2 * pool.AT_WORK
    with ThreadPoolExecutor(calls) as threads, python("def grade(sample, item): return 1", "other") as good:
        flooding = [threads.submit(flood) for _ in range(calls)]
        time.sleep(1)
        assert good.grade(Sample("x"), {}).reward == 1
        assert not all(call.done() for call in flooding)
        assert {call.result() for call in flooding} == {"timed out after 6 s"}


def test_a_warm_sandbox_is_ready_and_what_has_seen_code_is_not_given_on():
    marks = "def grade(sample, item):\n    global n\n    n = globals().get('n', 0) + 1\n    return n"
    for _ in range(5):
        with python(marks) as grader:
            assert [g.reward for g in grader.grade_many([(Sample("x"), {})] * 3)] == [1, 2, 3]
    pool.POOL._starter.submit(lambda: None).result()  # whatever was to be started has been
    wait_for(lambda: 1 <= len(children()) <= pool.WARM)  # a child becomes bwrap once it has entered its cgroup


def test_open_graders_beyond_what_may_rest_give_way_and_come_back(monkeypatch):
    monkeypatch.setattr(pool, "AT_REST", 2)
    monkeypatch.setattr(pool, "WARM", 0)
    with ExitStack() as closing:
        graders = [closing.enter_context(python(WHERE)) for _ in range(4)]
        before = children()
        first = [grader.grade(Sample("x"), {}).reward for grader in graders]
        wait_for(lambda: len(children() - before) == 2)  # one more is started after each that is taken, and closed
        second = [grader.grade(Sample("x"), {}).reward for grader in graders]
        assert second != first and None not in second
    wait_for(lambda: children() <= before)


def test_a_grader_gets_its_turn_while_more_hang_than_may_work_at_once():
    def hang():
        with python(LOOP, timeout=1) as grader:
            return {grade.error for grade in grader.grade_many([(Sample("x"), {})] * 2)}

    many = 2 * pool.AT_WORK
    with ThreadPoolExecutor(many) as threads, python("def grade(sample, item): return 1") as good:
        hanging = [threads.submit(hang) for _ in range(many)]
        time.sleep(0.5)
        assert good.grade(Sample("x"), {}).reward == 1
        assert not all(done.done() for done in hanging)
        assert [done.result() for done in hanging] == [{"timed out after 1 s"}] * many


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_killed_takes_its_sandboxes_with_it(how):
    script = """
from iro_server.graders.parsing import parse_grader
from iro_server.graders.base import Sample
source = '''
import os, time
def grade(sample, item):
    if os.fork() == 0: os.setsid()
    while True: time.sleep(1)
'''
parse_grader({"type": "python", "source": source}).grade(Sample("x"), {})
"""
    server = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    root = psutil.Process(server.pid)
    deadline = time.monotonic() + 60
    while len(family := root.children(recursive=True)) < 4:  # bubblewrap outside and inside, the worker, its child
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(server.pid, how)
    server.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_a_server_that_is_not_root_isolates_too():
    system = f"/usr/bin/python3.{sys.version_info.minor}"
    if os.geteuid() != 0 or not os.access(system, os.X_OK):
        pytest.skip("needs root, and a Python that others may run")
    script = """
import os
from iro_server.graders.parsing import parse_grader
from iro_server.graders.base import Sample
source = '''
import os, time
def grade(sample, item):
    try:
        for n in range(100):
            if os.fork() == 0: time.sleep(1000)
    except BlockingIOError:
        return n
'''
with parse_grader({"type": "python", "source": source}) as grader:
    print(os.geteuid(), *(grade.reward for grade in grader.grade_many([(Sample("x"), {})])))
"""
    paths = [str(REPOSITORY), *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [system, "-c", script],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["65534", "30.0"], ran.stderr  # of 32, bubblewrap and the worker are two
