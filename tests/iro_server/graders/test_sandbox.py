"""What a sandbox's processes may take of the kernel, and what they may do between two calls."""

import contextlib
import platform
import tempfile
import time

import psutil
import pytest

from iro_server.api import app
from iro_server.graders import cgroup
from iro_server.graders.base import Sample
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.parsing import parse_grader
from iro_server.graders.sandbox import Sandbox
from iro_server.settings import Settings
from tests.iro_server.api.serving import wait_for

pytestmark = pytest.mark.usefixtures("isolation", "no_warm_sandboxes")

LIMITS = PythonLimits(memory_bytes=256 * 2**20, processes=16, timeout=10)
SOCKETS = """
import os, socket, time
def fill(sender):
    sender.setblocking(False)
    try: sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**30)
    except OSError: pass
    held = 0
    try:
        while True: held += sender.send(b"x" * 2**16)
    except BlockingIOError:
        return held
def hoard():
    pairs = []
    try:
        while len(pairs) < 110: pairs.append(socket.socketpair())
    except OSError: pass
    return pairs, sum(fill(end) for pair in pairs for end in pair)
def grade(sample, item):
    reading, writing = os.pipe()
    for _ in range(8):
        if os.fork() == 0:
            pairs, held = hoard()
            os.write(writing, b"%d\\n" % held)
            time.sleep(1000)
    os.close(writing)
    with open(reading) as file:
        held = sum(int(file.readline()) for _ in range(8))
    time.sleep(1)
    return held / 2**20
"""


def python(source, **more):
    return parse_grader(
        {"type": "python", "source": source, "workers": 1, **more}, GraderEnvironment(python_limits=LIMITS)
    )


def grade(body, **more):
    with python(f"import ctypes, os, signal, socket, time\ndef grade(sample, item):\n    {body}\n", **more) as grader:
        return grader.grade(Sample("x"), {})


def test_what_sockets_hold_counts_as_memory():
    with python(SOCKETS) as grader:
        graded = grader.grade(Sample("x"), {})
    assert graded.error == "used more than 256 MiB of memory", graded.reward


@pytest.mark.parametrize(
    "body",
    [
        "socket.socket(socket.AF_UNIX).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)",
        "socket.socket(socket.AF_UNIX).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",  # many senders may fill one receiver
        "socket.socket(socket.AF_UNIX, socket.SOCK_RAW)",
        "os.setxattr('/tmp', 'user.x', b'x')",  # an access list takes 100 KB of the kernel's, for each file
        "open('/proc/self/oom_score_adj', 'w').write('0')",
        "open('/proc/self/oom_score_adj', 'w').write('1000')",
        "import fcntl; fcntl.fcntl(os.pipe()[0], fcntl.F_SETPIPE_SZ, 2**20)",
        "import fcntl; fcntl.fcntl(0, 10, signal.SIGCONT)",  # F_SETSIG
    ],
)
def test_what_the_kernel_would_hold_for_it_is_refused(body):
    error = grade(body).error
    assert error and ("PermissionError" in error or "Read-only file system" in error)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of another architecture")
@pytest.mark.parametrize("number", [206, 209, 222, 333, 444, 463])
def test_calls_that_take_kernel_memory_are_refused(number):
    """io_setup, io_submit, timer_create, io_pgetevents, landlock_create_ruleset, setxattrat."""
    body = f"""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall({number}, 0, 0, 0, 0) == -1
    raise OSError(ctypes.get_errno(), "refused")"""
    assert "PermissionError" in grade(body.strip()).error


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of another architecture")
def test_bits_above_an_argument_of_32_pass_no_filter():
    body = """
    size, high = ctypes.c_int(2**20), 1 << 32
    end = socket.socket(socket.AF_UNIX)
    arguments = [54, end.fileno(), high | socket.SOL_SOCKET, high | socket.SO_SNDBUF, ctypes.addressof(size), 4]
    if ctypes.CDLL(None, use_errno=True).syscall(*map(ctypes.c_long, arguments)):
        raise OSError(ctypes.get_errno(), "refused")"""
    assert "PermissionError" in grade(body.strip()).error


def test_a_program_it_starts_cannot_offer_the_server_to_a_host_out_of_memory():
    shell = "echo 500 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"
    body = f"import subprocess; return int(subprocess.check_output(['sh', '-c', {shell!r}]))"
    assert grade(body).reward == 1000


WAKES_LATER = """
import signal, time
real = signal.setitimer
def work(*_):
    while True: pass
def grade(sample, item):
    if item["calm"]: return 7.0
    signal.signal(signal.SIGVTALRM, work)
    signal.signal(signal.SIGALRM, work)
    real(signal.ITIMER_REAL, 0.3)
    signal.setitimer = lambda *arguments: None  # the worker's own, which would end the timer
    return 1.0
"""
CHAIN = """
import os, time
def grade(sample, item):
    if item["calm"]: return os.getpid()
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
    os.wait()
    return 1.0
"""


def sandboxed():
    """The processes in sandboxes of this process."""
    processes = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended as it was looked at
            if child.name() == "bwrap":
                processes += child.children(recursive=True)
    return processes


def cpu_seconds(processes):
    return sum(process.cpu_times().user + process.cpu_times().system for process in processes)


def test_a_timer_does_not_wake_a_grader_between_two_calls():
    with python(WAKES_LATER) as grader:
        assert grader.grade(Sample("x"), {"calm": False}).reward == 1.0
        time.sleep(0.5)
        before = cpu_seconds(sandboxed())
        time.sleep(1)
        assert cpu_seconds(sandboxed()) - before < 0.1


def test_what_rests_is_stopped_and_answers_the_next_call():
    with python("born = __import__('time').monotonic_ns()\ndef grade(sample, item): return born") as grader:
        first = grader.grade(Sample("x"), {}).reward
        wait_for(lambda: {process.status() for process in sandboxed()} == {psutil.STATUS_STOPPED}, 10)
        assert grader.grade(Sample("x"), {}).reward == first


def test_a_library_that_starts_a_thread_as_it_is_imported_is_imported_once():
    source = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()  # as pyarrow's allocator does
born = time.monotonic_ns()
def grade(sample, item): return born
"""
    with python(source) as grader:
        first = grader.grade(Sample("x"), {}).reward
        assert grader.grade(Sample("x"), {}).reward == first


def test_a_thread_that_a_call_left_stops_with_its_process():
    source = """
import threading, time
def work():
    while True: pass
def grade(sample, item):
    if item["calm"]: return 1
    for _ in range(4): threading.Thread(target=work, daemon=True).start()
    return 0
"""
    with python(source) as grader:
        assert grader.grade(Sample("x"), {"calm": False}).reward == 0
        (worker,) = (process for process in sandboxed() if process.num_threads() > 1)
        used = sum(worker.cpu_times()[:2])
        time.sleep(0.5)
        assert sum(worker.cpu_times()[:2]) == used
        assert grader.grade(Sample("x"), {"calm": True}).reward == 1


def test_a_chain_of_processes_whose_parents_exit_at_once_is_ended():
    with python(CHAIN) as grader:
        for _ in range(20):
            assert grader.grade(Sample("x"), {"calm": False}).reward == 1.0
            wait_for(lambda: not sandboxed())  # the kernel ends them after their sandbox


def test_no_look_misses_a_chain_of_processes():
    sandbox = Sandbox(LIMITS, isolated=True)
    sandbox.ready()
    sandbox.ask({"source": CHAIN, "timeout": 5}, 5)
    sandbox.ask([{}, {"calm": False}], 5)
    assert 2 not in {sandbox._watch.processes() for _ in range(500)}
    assert not sandbox.rest()
    sandbox.close()


class Opened(Exception):
    pass


def open_engine(*_):
    raise Opened


def test_the_server_says_at_its_start_what_bounds_its_sandboxes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(app, "open_engine", open_engine)
    monkeypatch.setattr(app.logs, "configure", lambda _: None)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)  # which a server moves into its data_dir
    with caplog.at_level("INFO", "iro"), pytest.raises(Opened):
        app.serve(Settings(data_dir=tmp_path, model_dir=tmp_path))
    assert f"python graders: {cgroup.memory_bound()}" in caplog.messages
