"""Where checkpoints are kept: a folder, and object storage, in memory and behind a real S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from iro_server.engines.ports import free_port
from tests.training.test_run import WALK, Killed, dying
from training.checkpoints import StorageUnavailable, StoredCheckpoints, claim, open_checkpoints
from training.run import RunError

ABOUT = {"metrics_bytes": 7, "seconds": 0.5}
VALUE = {"states": torch.arange(6, dtype=torch.float16).reshape(2, 3), "text": "é", "rows": [1, 2.5, None]}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of an S3 server that runs as a process of its own."""
    for module in ("s3fs", "moto.server"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'iro-align[dev]'")
    port = free_port()
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    variables = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (variables | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        try:
            _wait_for(url, server)
            import s3fs

            s3fs.S3FileSystem.clear_instance_cache()  # of an earlier server, on another port
            s3fs.S3FileSystem().mkdir("runs")
            yield "s3://runs/of-tests"
        finally:
            server.terminate()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the S3 server did not start"
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3")
    kinds = {"folder": str(tmp_path / "kept"), "file": f"file://{tmp_path}/kept", "memory": f"memory://{uuid4().hex}"}
    return kinds[request.param]


def test_what_is_saved_is_read_again_by_another_process(storage: str) -> None:
    location = f"{storage}/{uuid4().hex}"
    open_checkpoints(location).save("1-train-0.5", VALUE, ABOUT)
    again = open_checkpoints(location)
    assert again.names() == ["1-train-0.5"] and again.has("1-train-0.5") and not again.has("1-train-0")
    assert again.about("1-train-0.5") == ABOUT
    loaded = again.load("1-train-0.5")
    assert torch.equal(loaded.pop("states"), VALUE["states"]) and loaded == {k: VALUE[k] for k in ("text", "rows")}


def test_a_value_is_replaced_and_the_old_one_removed(storage: str) -> None:
    location = f"{storage}/{uuid4().hex}"
    checkpoints = open_checkpoints(location)
    for number in (1, 2):
        checkpoints.save("a", number, ABOUT | {"seconds": float(number)})
    for each in (checkpoints, open_checkpoints(location)):
        assert each.load("a") == 2 and each.about("a")["seconds"] == 2
    if isinstance(checkpoints, StoredCheckpoints):
        assert len(checkpoints.files.ls(checkpoints.root, detail=False)) == 2  # the value and its mark


def test_a_name_that_would_be_a_path_is_refused(storage: str) -> None:
    checkpoints = open_checkpoints(f"{storage}/{uuid4().hex}")
    with pytest.raises(ValueError, match=r"^step gaps-ED/ATC-GT: a name has no /; write - instead$"):
        checkpoints.save("gaps-ED/ATC-GT", 1, ABOUT)
    assert checkpoints.names() == []


def test_a_value_without_its_mark_does_not_count() -> None:
    """What an upload leaves that was cut off."""
    location = f"memory://{uuid4().hex}"
    checkpoints = StoredCheckpoints(location)
    checkpoints.save("a", 1, ABOUT)
    checkpoints.files.rm_file(f"{checkpoints.root}/a.json")
    assert not open_checkpoints(location).has("a")


def test_the_cache_of_values_keeps_within_its_bytes() -> None:
    checkpoints = StoredCheckpoints(f"memory://{uuid4().hex}", cache_bytes=20_000)
    values = {str(n): torch.full((2_000,), float(n)) for n in range(5)}  # 8 kB each
    for name, value in values.items():
        checkpoints.save(name, value, ABOUT)
    for name, value in [*values.items(), *values.items()]:
        assert torch.equal(checkpoints.load(name), value)
        assert sum(path.stat().st_size for path in checkpoints.cache.iterdir()) <= 20_000
    checkpoints.save("large", torch.zeros(10_000), ABOUT)
    assert torch.equal(checkpoints.load("large"), torch.zeros(10_000))


def test_a_killed_run_goes_on_from_storage(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WALK.execute({"seed": 3}, tmp_path / "whole")
    monkeypatch.setenv("IRO_STORAGE", storage)
    with pytest.raises(Killed):
        dying(2).execute({"seed": 3}, tmp_path / "killed")
    assert not (tmp_path / "killed/checkpoints").exists()
    location = json.loads((tmp_path / "killed/config.json").read_text())["checkpoints"]
    assert location.startswith(f"{storage}/walk-killed-")
    monkeypatch.setenv("IRO_STORAGE", "memory://elsewhere")  # a run stays where it began
    before = open_checkpoints(location)
    assert sorted(before.names()) == ["position-0", "position-1"]
    assert WALK.execute({"seed": 3}, tmp_path / "killed") == whole
    assert (tmp_path / "killed/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()
    assert len(open_checkpoints(location).names()) == 4
    assert before.about("position-1") == open_checkpoints(location).about("position-1")  # not computed again


def test_runs_of_one_name_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRO_STORAGE", f"memory://{uuid4().hex}")
    first, second = (WALK.execute({"seed": seed}, tmp_path / str(seed) / "run") for seed in (1, 2))
    assert first["position"] != second["position"]


def test_a_run_whose_metrics_are_lost_says_so(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        dying(2).execute({}, tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="has lost rows"):
        WALK.execute({}, tmp_path)


def test_storage_that_cannot_be_used_says_so_in_a_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageUnavailable, match=r"storage s3://no-such-bucket/x.* cannot be used: ") as failure:
        claim("s3://no-such-bucket/x", "run")
    assert "\n" not in str(failure.value)
    with pytest.raises(StorageUnavailable, match="nonsense"):
        claim("nonsense://x", "run")


def test_s3_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StorageUnavailable, match=r"iro-align\[s3\]"):
        claim("s3://bucket/x", "run")
