"""What the benchmarks' commands refuse before they begin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decoding, faults_report, redraw

Main = Callable[[], None]


def exit_of(main: Main, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.parametrize("main", [redraw.main, faults_report.main])
def test_help_does_nothing_else(main: Main, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(redraw, "documents", lambda: pytest.fail("redraws"))
    assert exit_of(main, monkeypatch, "--help") == 0
    assert "usage" in capsys.readouterr().out


def test_a_folder_without_results_of_kills_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert exit_of(faults_report.main, monkeypatch, str(tmp_path)) == 2
    assert f"there is no {tmp_path}/results.json" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["24", "0"])
def test_the_papers_loop_draws_whole_chunks(tokens: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(decoding, "Bench", lambda *_: pytest.fail("measures"))
    assert exit_of(decoding.main, monkeypatch, "--loop-tokens", tokens) == 2
    assert "a multiple of 16" in capsys.readouterr().err
