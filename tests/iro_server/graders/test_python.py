import math
import os
import threading
import time

import pytest

from iro_server.graders.base import GraderError, Sample
from iro_server.graders.bubblewrap import WORKER
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.parsing import parse_grader
from iro_server.graders.python import _warn_unsafe
from iro_server.graders.sandbox import isolation_problem
from tests.iro_server.graders.conftest import all_started

pytestmark = pytest.mark.usefixtures("no_warm_sandboxes")


def python(source, **more):
    return parse_grader({"type": "python", "name": "p", "source": source, **more})


def grade(source, text="hello", item=None, **more):
    with python(source, **more) as grader:
        return grader.grade(Sample(text), item or {})


def living_workers():
    """Process ids of grader workers that this process started, but for warm ones that end as soon as they start."""
    all_started()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as cmdline, open(f"/proc/{pid}/stat") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                if str(WORKER) in cmdline.read() and parent == os.getpid():
                    found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_it_sees_the_sample_and_the_item_in_openais_shape():
    source = """
def grade(sample, item):
    assert sample["choices"][0]["message"]["content"] == sample["output_text"]
    assert sample["output_json"] == {"n": 2} and sample["output_tools"] == []
    return sample["output_json"]["n"] * item["weight"]
"""
    assert grade(source, '{"n": 2}', {"weight": 1.5}).reward == 3.0


@pytest.mark.parametrize(("value", "reward"), [("True", 1.0), ("3", 3.0), ("__import__('numpy').float32(0.5)", 0.5)])
def test_numbers_of_any_type_are_rewards(value, reward):
    assert grade(f"def grade(sample, item): return {value}").reward == reward


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return float('nan')", "nan, not a finite number"),
        ("return float('-inf')", "-inf, not a finite number"),
        ("return -1e200", "-1e+200, not at most 1e+100 in size"),
        ("return '0.5'", "grade returned str, not a number"),
        ("return None", "grade returned NoneType, not a number"),
        ("return 10 ** 400", "OverflowError"),
        ("return item['label']", "KeyError: 'label' (grader.py, line 2)"),
        ("raise SystemExit(3)", "SystemExit: 3 (grader.py, line 2)"),
        ("import os; os._exit(7)", "the grader's process died (exit code 7)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died (signal SIGSEGV)"),
    ],
)
def test_what_is_no_reward_is_nan_with_the_users_error(body, said):
    failed = grade(f"def grade(sample, item):\n    {body}\n")
    assert math.isnan(failed.reward)
    assert said in failed.error


def test_a_missing_key_is_answered_with_the_keys_there_are():
    source = "def grade(sample, item):\n    return item['label']\n"
    text = grade(source, "x", {"labels": [1], "messages": []}).error
    assert text.startswith("KeyError: 'label' (grader.py, line 2); sample has output_text, ")
    assert text.endswith("; item has labels, messages")


def test_a_bad_sample_fails_alone_and_order_is_kept():
    source = """
import os
def grade(sample, item):
    if item["k"] == 3: raise ValueError("three")
    if item["k"] == 20: os._exit(1)
    if item["k"] == 30:
        while True: pass
    return item["k"]
"""
    with python(source, timeout=1) as grader:
        grades = grader.grade_many([(Sample("x"), {"k": k}) for k in range(40)])
    bad = {k: g.error for k, g in enumerate(grades) if g.error}
    assert bad == {
        3: "ValueError: three (grader.py, line 4)",
        20: "the grader's process died (exit code 1)",
        30: "timed out after 1 s",
    }
    assert [g.reward for k, g in enumerate(grades) if k not in bad] == [k for k in range(40) if k not in bad]


def test_an_endless_loop_is_killed_and_leaves_nothing_running():
    with python("def grade(sample, item):\n    while True: pass\n", timeout=0.5, workers=1) as grader:
        assert grader.grade(Sample("x"), {}).error == "timed out after 0.5 s"
        assert living_workers() == []


def test_printing_and_reading_input_do_not_disturb_it():
    source = """
import os, sys
print("loading")
def grade(sample, item):
    print('{"reward": 99}', flush=True)
    os.write(1, b"noise"); sys.stderr.write("noise")
    return len(sys.stdin.read())
"""
    with python(source) as grader:
        assert [g.reward for g in grader.grade_many([(Sample("x"), {})] * 20)] == [0.0] * 20


def test_the_source_is_loaded_once_per_process_and_never_per_call():
    source = "import os, time\nloaded = time.monotonic_ns()\ndef grade(sample, item): return loaded % 10**9\n"
    with python(source, workers=2) as grader:
        first = {g.reward for g in grader.grade_many([(Sample("x"), {})] * 100)}
        again = {g.reward for g in grader.grade_many([(Sample("x"), {})] * 100)}
    assert len(first) == 2 and again == first


def test_long_sources_and_samples_pass():
    weights = "w" * 250_000
    with python(f"W = '{weights}'\ndef grade(sample, item): return len(W) + len(sample['output_text'])") as grader:
        grades = grader.grade_many([(Sample("é" * 100_000), {"x": "y" * 10**6})] * 20)
    assert {g.reward for g in grades} == {350_000.0}


@pytest.mark.parametrize(
    ("more", "grader_environment", "said"),
    [
        ({"source": "#" * 256 * 1024 + "\ndef grade(s, i): return 1"}, {}, "grader.source: longer than 256 kB"),
        ({"timeout": 6}, {"python_limits": {"timeout": 5}}, "timeout is 6 s, more than the 5 s this server allows"),
        ({}, {"python": "off"}, "python graders are switched off on this server"),
    ],
)
def test_what_this_server_does_not_allow_is_refused(more, grader_environment, said):
    spec = {"type": "python", "source": "def grade(s, i): return 1", **more}
    with pytest.raises(GraderError, match=said):
        parse_grader(spec, GraderEnvironment.model_validate(grader_environment))


def test_a_timeout_nobody_set_is_at_most_what_the_server_allows():
    grader_environment = GraderEnvironment(python_limits=PythonLimits(timeout=0.5))
    source = "def grade(sample, item):\n    while True: pass\n"
    with parse_grader({"type": "python", "source": source}, grader_environment) as grader:
        assert grader.grade(Sample("x"), {}).error == "timed out after 0.5 s"


def test_an_item_nested_too_deeply_to_send_fails_alone():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with python("def grade(sample, item): return 1", workers=1) as grader:
        grades = grader.grade_many([(Sample("x"), {"deep": deep}), (Sample("x"), {})])
    assert grades[0].flag == "sample_parse_error" and "nested too deeply" in grades[0].error
    assert grades[1].reward == 1


@pytest.mark.parametrize("python_mode", ["sandbox", "unsafe"])
def test_numpy_scipy_and_sklearn_work_in_graders(python_mode):
    source = """
import numpy, scipy.stats, sklearn.linear_model
def grade(sample, item):
    x = numpy.arange(10.0)[:, None]
    return sklearn.linear_model.LinearRegression().fit(x, 2 * x[:, 0]).coef_[0] + scipy.stats.norm.cdf(0)
"""
    with parse_grader({"type": "python", "source": source}, GraderEnvironment(python=python_mode)) as grader:
        assert grader.grade(Sample("x"), {}).reward == pytest.approx(2.5)


def test_unsafe_runs_plain_processes_and_says_so(caplog):
    _warn_unsafe.cache_clear()
    source = f"import os\ndef grade(sample, item): return os.path.exists({__file__!r})"
    for _ in range(2):
        with parse_grader({"type": "python", "source": source}, GraderEnvironment(python="unsafe")) as grader:
            assert grader.grade(Sample("x"), {}).reward == 1
    assert [record.levelname for record in caplog.records if "plain processes" in record.message] == ["WARNING"]


def test_a_host_that_cannot_isolate_refuses_and_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    isolation_problem.cache_clear()
    spec = {"type": "python", "source": "def grade(sample, item): return 1"}
    told = r"isolation.* no program bwrap; install bubblewrap, or set IRO_PYTHON_GRADERS=unsafe"
    try:
        with pytest.raises(GraderError, match=told):
            parse_grader(spec, GraderEnvironment())
        with parse_grader(spec) as own:  # on the command line it is the user's own code
            assert own.grade(Sample("x"), {}).reward == 1
    finally:
        isolation_problem.cache_clear()


def test_a_source_that_does_not_load_says_why_for_every_sample():
    with python("import nonexistent_module\ndef grade(sample, item): return 1") as grader:
        errors = {g.error for g in grader.grade_many([(Sample("x"), {})] * 3)}
    (error,) = errors
    assert "does not load" in error and "No module named 'nonexistent_module' (grader.py, line 1)" in error


def test_the_environment_is_kept_from_the_grader(monkeypatch):
    monkeypatch.setenv("IRO_TEST_SECRET", "s")
    assert grade("import os\ndef grade(sample, item): return 'IRO_TEST_SECRET' in os.environ").reward == 0


def test_close_ends_idle_and_busy_processes():
    source = "import time\ndef grade(sample, item):\n    time.sleep(item['s'])\n    return 1\n"
    grader = python(source, workers=2)
    with grader:
        grader.grade_many([(Sample("x"), {"s": 0})] * 20)
        assert len(living_workers()) == 2
        results = []
        busy = threading.Thread(target=lambda: results.extend(grader.grade_many([(Sample("x"), {"s": 25})] * 3)))
        busy.start()
        time.sleep(0.3)
    busy.join(timeout=10)
    assert [g.error for g in results] == ["the grader is closed"] * 3
    assert living_workers() == []
    assert grader.grade(Sample("x"), {"s": 0}).error == "the grader is closed"


def test_no_samples_no_grades_and_no_process():
    with python("def grade(sample, item): return 1") as grader:
        assert grader.grade_many([]) == []
        assert living_workers() == []
