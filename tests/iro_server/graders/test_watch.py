import os

from iro_server.graders.environment import PythonLimits
from iro_server.graders.watch import Watch


def watch(tmp_path, limits=None):
    folders = [os.open(tmp_path, os.O_RDONLY) for _ in range(2)]
    return Watch(*folders, limits or PythonLimits())


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def state(tmp_path, pid, *threads):
    for number, letter in enumerate(threads):
        write(tmp_path / pid / "task" / str(number) / "stat", f"{number} (a) b) {letter}" + " 0" * 18 + "\n")


def test_a_process_that_ends_during_a_look_is_one_that_went_on(tmp_path):
    state(tmp_path, "1", "S")
    (tmp_path / "7").mkdir()
    watched = watch(tmp_path)
    assert watched.processes() == 2 and set(watched.running()) == {"1", "7"}
    watched.close()


def test_processes_whose_threads_are_all_stopped_do_not_run(tmp_path):
    for pid, threads in {"1": "T", "2": "Z", "3": "D", "4": "TT", "5": "ZR", "6": "TS"}.items():
        state(tmp_path, pid, *threads)
    watched = watch(tmp_path)
    assert set(watched.running()) == {"3", "5", "6"}
    watched.close()
