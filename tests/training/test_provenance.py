"""What a record names beside its config."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from training import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_revision_is_of_a_checkout_and_not_of_a_repository_around_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / ".venv/lib/site-packages/training/provenance.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.versions()["git"] is None
    (tmp_path / ".gitignore").write_text(".venv/\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-m", "the user's project")
    assert provenance.versions()["git"] is None
    git(tmp_path, "add", "--force", ".venv")
    git(tmp_path, "commit", "-m", "a checkout")
    assert provenance.versions()["git"] == git(tmp_path, "rev-parse", "HEAD").strip()
