import os

from iro_server.graders.environment import PythonLimits
from iro_server.graders.watch import Watch


def watch(tmp_path, limits=None):
    folders = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    return Watch(*folders, limits or PythonLimits())


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_a_process_that_ends_during_a_look_is_one_that_went_on(tmp_path):
    write(tmp_path / "1" / "stat", "1 (a) b) S" + " 0" * 16 + " 3 0\n")
    (tmp_path / "7").mkdir()
    watched = watch(tmp_path)
    assert watched.tasks() == 4 and set(watched.running()) == {"1", "7"}
    watched.close()


def test_processes_that_are_stopped_do_not_run(tmp_path):
    for pid, state in {"1": "T", "2": "Z", "3": "D"}.items():
        write(tmp_path / pid / "stat", f"{pid} (a) {state}" + " 0" * 16 + " 1 0\n")
    watched = watch(tmp_path)
    assert watched.running() == ["3"]
    watched.close()
