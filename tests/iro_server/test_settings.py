"""What a server reads in its environment, and what its settings refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from iro_server.engines.prepare import iro_home
from iro_server.graders.service import ServiceSettings
from iro_server.settings import Settings

TIMES = [name for name, field in Settings.model_fields.items() if field.annotation in (float, float | None)]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", TIMES)
def test_no_time_is_infinite(tmp_path: Path, name: str, value: float) -> None:
    """Workers read the settings as JSON, which has no word for it."""
    with pytest.raises(ValidationError, match=f"{name}\n.*finite number"):
        Settings(data_dir=tmp_path, **{name: value})  # type: ignore[arg-type]


def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a compose file's ``${NAME:-}`` leaves it. An empty path would be the working directory."""
    for name in ("IRO_HOME", *(f"IRO_{field.upper()}" for field in Settings.model_fields)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IRO_GRADER_SERVICE_KEY", "sixteen letters.")
    home, settings, service = iro_home(), Settings(), ServiceSettings()
    for name in ("IRO_HOME", *(f"IRO_{field.upper()}" for field in Settings.model_fields if "key" not in field)):
        monkeypatch.setenv(name, "")
    assert (iro_home(), Settings(), ServiceSettings()) == (home, settings, service)
    assert settings.data_dir == tmp_path / ".cache/iro/server"


def test_null_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRO_RETENTION", "null")
    monkeypatch.setenv("IRO_REQUIRE_KEYS", "null")
    assert (Settings().retention, Settings().require_keys) == (None, None)


def test_a_directory_in_the_home_needs_no_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of variables, and ``--data-dir=~/server``, leave the tilde as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IRO_HOME", "~/models")
    monkeypatch.setenv("IRO_DATA_DIR", "~/server")
    assert (iro_home(), Settings().data_dir) == (tmp_path / "models", tmp_path / "server")
