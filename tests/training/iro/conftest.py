from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.iro.toy_job import toy_config
from training.iro.config import AlignConfig


@pytest.fixture
def config(tmp_path: Path) -> AlignConfig:
    return toy_config(tmp_path)
