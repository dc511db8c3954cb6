"""Which servers of this machine live, looked at while they come and go."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from iro_server.jobs import lock, presence


def test_a_server_is_present_until_it_stops(tmp_path):
    assert not presence.takes_jobs_here(tmp_path)
    with presence.present(tmp_path) as server:
        assert presence.takes_jobs_here(tmp_path)
        assert presence.gone(tmp_path, server) is False
    assert presence.gone(tmp_path, server) is True
    assert not presence.takes_jobs_here(tmp_path)


def test_a_server_that_takes_no_jobs_is_present_and_does_not_count_as_a_worker(tmp_path):
    with presence.present(tmp_path, takes_jobs=False) as server:
        assert presence.gone(tmp_path, server) is False
        assert not presence.takes_jobs_here(tmp_path)
        with presence.present(tmp_path):
            assert presence.takes_jobs_here(tmp_path)


def test_looking_at_a_lock_makes_nothing(tmp_path):
    assert not lock.held(tmp_path / "absent")
    assert lock.holder(tmp_path / "absent") is None
    assert list(tmp_path.iterdir()) == []


HOLD = "import sys, time; from pathlib import Path; from iro_server.jobs import presence\n"
HOLD += "with presence.present(Path(sys.argv[1])): print('present', flush=True); time.sleep(60)"


def test_a_server_that_starts_removes_what_killed_servers_of_its_machine_left(tmp_path):
    """Not what lives, is of another machine, or began just now."""
    killed = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    killed.stdout.readline()
    (left,) = (tmp_path / "servers").iterdir()
    killed.kill()
    killed.wait()
    killed.stdout.close()
    foreign, starting = tmp_path / "servers" / f"{left.stem}.org.1234abcd", tmp_path / "servers" / f"{left.stem}.12ab"
    with presence.present(tmp_path) as living:
        for folder in (foreign, starting):
            folder.mkdir()
        for folder in (left, foreign, tmp_path / "servers" / living):
            os.utime(folder, (0, 0))
        with presence.present(tmp_path) as server:
            remaining = {path.name for path in (tmp_path / "servers").iterdir()}
            assert remaining == {foreign.name, starting.name, living, server}


@pytest.mark.slow(7)
def test_a_server_stops_while_others_look_at_it(tmp_path):
    stopping = threading.Event()

    def look() -> None:
        while not stopping.is_set():
            presence.takes_jobs_here(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            with presence.present(tmp_path):
                pass
    finally:
        stopping.set()
        for looker in lookers:
            looker.join()
    assert list((tmp_path / "servers").iterdir()) == []


def test_a_server_that_starts_may_remove_the_folder_of_one_that_stops(tmp_path, monkeypatch):
    rmtree = presence.shutil.rmtree

    def start_and_remove(folder, **options):
        monkeypatch.setattr(presence.shutil, "rmtree", rmtree)
        os.utime(folder, (0, 0))  # it has been there for long
        with presence.present(tmp_path):
            assert not folder.exists()
        rmtree(folder, **options)

    with presence.present(tmp_path) as server:
        monkeypatch.setattr(presence.shutil, "rmtree", start_and_remove)
    assert presence.gone(tmp_path, server) is True


def test_two_looks_at_a_lock_do_not_take_each_other_for_its_holder(tmp_path, monkeypatch):
    with lock.hold(tmp_path):
        assert lock.held(tmp_path)
    try_lock, looks = lock._try_lock, []

    def look_again(*arguments):
        is_free = try_lock(*arguments)
        if not looks:
            looks.append(is_free)
            looks.append(not lock.held(tmp_path))
        return is_free

    monkeypatch.setattr(lock, "_try_lock", look_again)
    assert not lock.held(tmp_path) and looks == [True, True]
