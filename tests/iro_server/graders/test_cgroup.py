"""Sandboxes in control groups: the choice by files that stand for the kernel's, and the rest in real groups."""

import os
import time
from pathlib import Path

import psutil
import pytest

from iro_server.graders import cgroup
from iro_server.graders.base import Sample
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.parsing import parse_grader
from tests.iro_server.graders.conftest import all_started

LIMITS = PythonLimits(memory_bytes=256 * 2**20, processes=16, timeout=10)
MOUNTS = """\
31 24 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
{} 31 0:38 {} {} rw,relatime - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("root", "folder", "membership", "group"),
    [
        ("/", "/sys/fs/cgroup", "0::/\n", "/sys/fs/cgroup"),
        ("/", "/sys/fs/cgroup/unified", "4:memory:/x\n0::/iro.service\n", "/sys/fs/cgroup/unified/iro.service"),
        ("/iro.slice", "/groups", "0::/iro.slice/a", "/groups/a"),
        ("/elsewhere", "/groups", "0::/iro.slice/a", None),
        ("/", "/sys/fs/cgroup", "4:memory:/x\n", None),
    ],
)
def test_the_servers_own_group_is_found(root, folder, membership, group):
    assert cgroup.server_group(MOUNTS.format(41, root, folder), membership) == (group and Path(group))


def test_no_mount_is_no_group():
    assert cgroup.server_group(MOUNTS.splitlines()[0], "0::/\n") is None


def delegated(folder, available="cpu memory pids", enabled=""):
    (folder / "cgroup.controllers").write_text(available)
    (folder / "cgroup.subtree_control").write_text(enabled)
    return folder


def test_where_the_controllers_are_the_server_moves_aside_and_enables_them(tmp_path):
    (tmp_path / cgroup.SERVER).mkdir()
    assert cgroup.prepare(delegated(tmp_path)) == tmp_path
    assert (tmp_path / cgroup.SERVER / "cgroup.procs").read_text() == str(os.getpid())
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_server_that_has_moved_aside_uses_the_group_above(tmp_path):
    moved = tmp_path / cgroup.SERVER
    moved.mkdir()
    assert cgroup.prepare(delegated(tmp_path, enabled="memory pids")) == cgroup.prepare(moved) == tmp_path
    assert not (moved / "cgroup.procs").exists()


def test_groups_of_a_server_that_is_gone_are_removed(tmp_path):
    abandoned, living = (tmp_path / f"{cgroup.SANDBOX}-{pid}-ab" for pid in (2**30, os.getpid()))
    abandoned.mkdir(), living.mkdir()
    cgroup.prepare(delegated(tmp_path, enabled="memory pids"))
    assert not abandoned.exists() and living.exists()


def test_without_a_controller_there_is_no_group(tmp_path):
    with pytest.raises(OSError, match="no controller of memory and pids"):
        cgroup.prepare(delegated(tmp_path, "hugetlb"))


def test_the_limits_are_written(tmp_path):
    limits = cgroup.settings(LIMITS)
    assert limits == {"memory.max": "268435456", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "18"}


@pytest.mark.parametrize(
    ("choice", "part"),
    [((Path("/groups"), ""), "a cgroup of its own in /groups"), ((None, "no cgroup v2 is mounted"), "no cgroup v2")],
)
def test_the_choice_is_told(monkeypatch, choice, part):
    monkeypatch.setattr(cgroup, "_choice", lambda: choice)
    assert part in cgroup.memory_bound() and cgroup.parent() == choice[0]


def folder_for_groups():
    """One in which this process may make groups, with or without limits; None where it may make none."""
    group = cgroup.server_group(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    try:
        if group:
            cgroup.Group(group, LIMITS).remove()
    except OSError:
        return None
    return group


@pytest.fixture
def groups(monkeypatch, no_warm_sandboxes):
    """The groups of this process's sandboxes, which have none where the host allows none: the rest holds there too."""
    folder = cgroup.parent() or folder_for_groups()
    monkeypatch.setattr(cgroup, "parent", lambda: folder)

    def present():
        all_started()
        return list(folder.glob(f"{cgroup.SANDBOX}-{os.getpid()}-*")) if folder else []

    return present


def python(source, **more):
    return parse_grader(
        {"type": "python", "source": source, "workers": 1, **more}, GraderEnvironment(python_limits=LIMITS)
    )


def test_a_sandbox_is_in_its_group_frozen_between_calls_and_takes_it_along(groups):
    with python("n = 0\ndef grade(sample, item):\n    global n\n    n += 1\n    return n") as grader:
        assert [grader.grade(Sample("x"), {}).reward for _ in range(3)] == [1, 2, 3]
        for group in groups():
            pids = {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
            assert "frozen 1" in (group / "cgroup.events").read_text()
            children = [child for child in psutil.Process().children() if child.pid in pids]
            assert {process.pid for child in children for process in [child, *child.children(recursive=True)]} == pids
        assert len(groups()) == (cgroup.parent() is not None)
    assert groups() == []


@pytest.mark.parametrize("body", ["while True: pass", "os.fork(); os.fork(); time.sleep(100)", "os.abort()"])
def test_what_goes_wrong_leaves_no_group(groups, body):
    with python(f"import os, time\ndef grade(sample, item):\n    {body}", timeout=1) as grader:
        assert grader.grade(Sample("x"), {}).error
        assert groups() == []


def test_a_grader_is_closed_while_it_is_frozen_and_in_no_time(groups):
    grader = python("def grade(sample, item): return 1")
    grader.grade(Sample("x"), {})
    start = time.monotonic()
    grader.close()
    assert time.monotonic() - start < 30
    assert groups() == []


def test_processes_that_outgrow_the_limit_together_are_ended(groups):
    source = "import os, time\ndef grade(sample, item):\n    os.fork(); x = b'x' * (150 * 2**20); time.sleep(9)"
    with python(source) as grader:
        assert grader.grade(Sample("x"), {}).error == "used more than 256 MiB of memory"
    assert groups() == []
