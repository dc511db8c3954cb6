"""Redraw the documents' tables and figures from the results files: ``python -m benchmarks.redraw`` (``make results``).

A document names the results file and the function that draws it:

    <!-- table: results/NAME/PRESET.json MODULE.FUNCTION -->
    <!-- end of table -->
    <!-- figure: results/NAME/PRESET.json MODULE.FUNCTION FILE.png -->

A table's function takes the file's content and returns Markdown, a figure's takes the content and a path.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.record import read
from iro_server import JsonObject

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "docker", "docs", "iro_server", "rl_suite", "theory", "training", "value_heads")
TABLE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
FIGURE = re.compile(r"<!-- figure: (\S+) (\S+) (\S+) -->")


class Table(NamedTuple):
    """A table in a document: its results file, the name of its drawing function, its Markdown."""

    results: str
    function: str
    markdown: str


class Figure(NamedTuple):
    """A figure of a document: its results file, the name of its drawing function, its file; paths from the root."""

    results: str
    function: str
    file: str


def documents() -> list[Path]:
    """All Markdown files of the project."""
    return [*sorted(ROOT.glob("*.md")), *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.md")))]


def tables(text: str) -> Iterator[Table]:
    return (Table(match[2], match[3], match[4]) for match in TABLE.finditer(text))


def figures() -> set[Figure]:
    return {Figure(*match.groups()) for path in documents() for match in FIGURE.finditer(path.read_text())}


def drawing(name: str) -> Callable[..., Any]:
    """The function of this dotted name."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)


def markdown(function: str, content: JsonObject) -> str:
    return drawing(function)(content).strip() + "\n"


def redrawn(text: str) -> str:
    """A document with its tables drawn again."""
    return TABLE.sub(lambda match: match[1] + markdown(match[3], read(ROOT / match[2])) + match[5], text)


def main() -> None:
    description = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=description).parse_args()
    for document in documents():
        text = document.read_text()
        if (redrawn_text := redrawn(text)) != text:
            document.write_text(redrawn_text)
            print(f"{document.relative_to(ROOT)}: redrawn")
    for figure in sorted(figures()):
        drawing(figure.function)(read(ROOT / figure.results), ROOT / figure.file)
        print(f"{figure.file}: drawn from {figure.results}")


if __name__ == "__main__":
    main()
