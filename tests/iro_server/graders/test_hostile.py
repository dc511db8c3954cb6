import math
import os
import platform
import secrets
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from benchmarks.hostile_graders import HOSTILE
from iro_server.graders import pool
from iro_server.graders.base import Sample
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.parsing import parse_grader

pytestmark = pytest.mark.usefixtures("isolation")

LIMITS = PythonLimits(memory_bytes=256 * 2**20, processes=16, disk_bytes=8 * 2**20, output_bytes=2**16, timeout=5)
SURROUNDINGS = GraderEnvironment(python="sandbox", python_limits=LIMITS)
GOOD = "def grade(sample, item): return len(sample['output_text'])"
AT_ONCE = 3  # fewer than may work at once, so that the good grader need not wait for a turn
MARK = f"hostile-{secrets.token_hex(8)}"


@pytest.fixture(scope="module", autouse=True)
def no_warm_sandboxes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "WARM", 0)
        patch.setenv("IRO_SECRET", "s")
        yield


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "key"
    path.write_text("the key")
    path.chmod(0o644)
    return path


def python(source, **more):
    return parse_grader({"type": "python", "source": source, "workers": 1, **more}, SURROUNDINGS)


@pytest.fixture(scope="module")
def outcome(secret):
    """Every hostile grader's two grades, of an attack and of a calm call after it, and how long a good grader took
    meanwhile."""
    before = set(psutil.Process().children(recursive=True))

    def attack(hostile):
        with python(hostile.source(str(secret), MARK), timeout=hostile.timeout) as grader:
            return grader.grade_many([(Sample("x"), {"calm": calm}) for calm in (False, True)])

    waits = []
    with python(GOOD) as good, ThreadPoolExecutor(AT_ONCE) as threads:
        attacks = {hostile.name: threads.submit(attack, hostile) for hostile in HOSTILE}
        while not all(done.done() for done in attacks.values()):
            start = time.monotonic()
            assert good.grade(Sample("four"), {}).reward == 4
            waits.append(time.monotonic() - start)
            time.sleep(0.1)
        grades = {name: done.result() for name, done in attacks.items()}
    return grades, waits, set(psutil.Process().children(recursive=True)) - before


def test_there_are_many_and_each_has_its_name():
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE) >= 40


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_a_hostile_grader_is_contained(hostile, outcome):
    if "syscall(" in hostile.body and platform.machine() != "x86_64":
        pytest.skip("calls the system by the numbers of another architecture")
    attack, calm = outcome[0][hostile.name]
    if hostile.error is None:
        assert (attack.reward, attack.error) == (1.0, None)
    else:
        assert math.isnan(attack.reward)
        assert hostile.error in attack.error and len(attack.error) < 2100
        assert attack.flag == hostile.flag
    if hostile.recovers:
        assert (calm.reward, calm.error) == (7.0, None)


def test_others_are_answered_meanwhile(outcome):
    _, waits, _ = outcome
    assert len(waits) > 10
    assert sorted(waits)[len(waits) // 2] < 3 and max(waits) < 30


def test_no_process_is_left(outcome):
    assert outcome[2] == set()


def test_nothing_is_left_on_the_host(outcome, secret):
    folders = ["/", "/usr/bin", "/tmp", "/dev/shm", tempfile.gettempdir(), str(secret.parent), str(Path.cwd())]
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), sys.prefix, os.path.expanduser("~")]
    assert [folder for folder in folders if (Path(folder) / MARK).exists()] == []
    assert secret.read_text() == "the key"
