"""What a server says of where jobs work reaches the processes of its jobs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from iro_server.alignment.placement import Placement
from iro_server.settings import Settings

ELSEWHERE = {"storage": "s3://bucket/runs", "executor": "ray", "ray_address": "head:6379", "ray_gpus": 0.5}


def test_a_worker_reads_what_the_server_was_told(tmp_path, monkeypatch):
    for name, value in Settings(data_dir=tmp_path, **ELSEWHERE).placement.items():
        monkeypatch.setenv(name, value)
    assert Placement() == Placement(**ELSEWHERE)


def test_by_default_everything_stays_here(tmp_path):
    assert Settings(data_dir=tmp_path).placement == {
        "IRO_EXECUTOR": "local",
        "IRO_RAY_CPUS": "1.0",
        "IRO_RAY_GPUS": "0.0",
        "IRO_RAY_FIT_ACTORS": "1",
    }


MISTAKES = [{"executor": "slurm"}, {"storage": "bucket"}, {"ray_actors": 0}, {"ray_fit_actors": 0}]


@pytest.mark.parametrize("wrong", MISTAKES)
def test_mistakes_name_their_field(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Placement(**wrong)
