"""The interactive page in a real browser: sliders move the curves, and an address can set them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from theory.page import Panel, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGES = sorted((Path(__file__).parents[2] / "theory" / "docs").glob("*.html"))

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt install chromium)")

# Moves every slider one step by its own event, as a hand would, then leaves what the panels show in the title.
MOVE = """<script>
for (const input of document.querySelectorAll("input")) {
  input.value = Number(input.value) + 1;
  input.dispatchEvent(new Event("input"));
}
document.title = "moved";
</script>"""


def opened(page: Path, fragment: str = "") -> str:
    """The page's DOM after its scripts have run, from a headless Chromium."""
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    address = page.resolve().as_uri() + fragment
    done = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


def shown(dom: str) -> list[Any]:
    """The y values of each curve on the page, in order."""
    curves = re.findall(r'<g class="curve"[^>]*data-y="([^"]*)"', dom)
    return [json.loads(each.replace("&quot;", '"')) for each in curves]


@needs_browser
def test_sliders_and_addresses_choose_the_curves(tmp_path: Path) -> None:
    frames = {str(i): [{"name": f"curve {i}", "x": [0, 1], "y": [i, 2.0**i]}] for i in range(3)}
    page = tmp_path / "page.html"
    write_page(page, "Title", "Intro", [Panel("one", "One", "x", "y", {"alpha": [0.2, 0.4, 0.6]}, frames)])
    assert shown(opened(page)) == [[0, 1]]
    assert shown(opened(page, "#one.alpha=2")) == [[2, 4]]
    page.write_text(page.read_text() + MOVE)
    moved = opened(page)
    assert shown(moved) == [[1, 2]] and "<title>moved" in moved and "0.4</output>" in moved


@needs_browser
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_published_page_moves(page: Path, tmp_path: Path) -> None:
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    before = shown(opened(copy))
    copy.write_text(page.read_text() + MOVE)
    after = shown(opened(copy))
    assert before and after and before != after
