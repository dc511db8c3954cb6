"""The committed build is what the sources give."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from iro_server.api.page import BUILT

SOURCES = BUILT.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow(8)
@pytest.mark.skipif("CI" not in os.environ and not shutil.which("npm"), reason="Node is not installed")
def test_a_build_of_the_sources_gives_the_committed_files(tmp_path):
    shutil.copytree(SOURCES, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules", "built"))
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
        done = subprocess.run(command, cwd=tmp_path / "web", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "web" / "built") == contents(BUILT), "run `npm run build` in iro_server/web"
