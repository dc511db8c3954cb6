"""Documents against the results files: every table and figure is drawn from a file, every number from a field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.testing.compare import compare_images

from benchmarks import record
from benchmarks.redraw import ROOT, Table, documents, drawing, figures, markdown, redrawn, tables

FILES = sorted((ROOT / "results").rglob("*.json"))
TABLES = sorted({table for path in documents() for table in tables(path.read_text())})
NUMBER = re.compile(r"\d[\d,.]*")
MACHINE_PATH = re.compile(r"(?<![\w.>~/])/(?!(?:dev|etc|proc|sys|usr)/)[\w.]+/[\w.]")
DELETIONS = 10  # of a file, evenly spaced: a digest of all of it notices them
Place = tuple[Any, ...]


def name_of(value: Path | Table) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else f"{value.results}-{value.function}"


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every text, number and truth value below ``value``, with its keys and indices."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from leaves(child, (*place, key))
    if not isinstance(value, dict | list):
        yield place, value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def without(content: Any, place: Place) -> Any:
    """``content`` without the value at ``place``; the rest is shared."""
    key, *inner = place
    copied = content.copy()
    if inner:
        copied[key] = without(content[key], tuple(inner))
    else:
        del copied[key]
    return copied


def changed_numbers(value: Any) -> Any:
    """``value`` with every number replaced by another one."""
    if isinstance(value, dict):
        return {key: changed_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [changed_numbers(item) for item in value]
    return 3 * value + 7 if is_number(value) else value


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in a Markdown text, without the first column, headings and lines between."""
    lines = text.splitlines()
    table_lines = [line for n, line in enumerate(lines) if line.startswith("|") and not is_heading(lines, n)]
    return [line.strip("| ").split(" | ")[1:] for line in table_lines if not set(line) <= {"|", "-"}]


def is_heading(lines: list[str], number: int) -> bool:
    return number + 1 < len(lines) and set(lines[number + 1]) <= {"|", "-", " "} and "-" in lines[number + 1]


@pytest.mark.parametrize("path", documents(), ids=name_of)
def test_a_documents_tables_are_those_of_its_results_files(path: Path) -> None:
    text = path.read_text()
    assert redrawn(text) == text, "run `make results`"


@pytest.mark.parametrize("table", TABLES, ids=name_of)
def test_every_number_of_a_table_comes_from_its_results_file(table: Table) -> None:
    content = record.read(ROOT / table.results)
    texts = [value for _, value in leaves(content) if isinstance(value, str)]
    changed = rows(markdown(table.function, changed_numbers(content)))
    for cells, others in zip(rows(table.markdown), changed, strict=True):
        for cell, other in zip(cells, others, strict=True):
            if re.search("[a-z=]", cell) and any(cell.rstrip("…") in text for text in texts):
                continue  # a message or an aim, as recorded
            same = [old for old, new in zip(NUMBER.findall(cell), NUMBER.findall(other), strict=True) if old == new]
            assert not same, f"{cell!r}: {same} stay although every number of {table.results} changes"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_number_deleted_from_a_results_file_is_noticed(path: Path, tmp_path: Path) -> None:
    content = record.read(path)
    places = [place for place, value in leaves(content) if is_number(value)]
    assert places
    for place in places[:: math.ceil(len(places) / DELETIONS)]:
        (tmp_path / path.name).write_text(json.dumps(without(content, place)))
        with pytest.raises(ValueError, match="was changed"):
            record.read(tmp_path / path.name)


def test_a_table_does_not_survive_the_deletion_of_a_number_that_it_shows() -> None:
    content = record.read(ROOT / "results/quality/imdb.json")
    for method, row in enumerate(content["methods"]):
        for bound in row["reward"]:
            with pytest.raises(KeyError):
                markdown("benchmarks.tables.quality", without(content, ("methods", method, "reward", bound)))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_results_file_has_one_form_and_no_path_of_a_machine(path: Path) -> None:
    run = record.read(path)["run"]
    assert (run["benchmark"], f"{run['preset']}.json") == (path.parent.name, path.name)
    assert {"config", "seeds", "versions"} <= {*run}
    assert not [value for _, value in leaves(record.read(path)) if MACHINE_PATH.search(str(value))]


def test_every_results_file_is_shown_in_a_document() -> None:
    shown = {table.results for table in TABLES} | {figure.results for figure in figures()}
    assert {str(path.relative_to(ROOT)) for path in FILES} == shown


@pytest.mark.parametrize("figure", sorted(figures()), ids=lambda figure: figure.file)
def test_a_figure_is_the_one_of_its_results_file(figure: Any, tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    drawing(figure.function)(record.read(ROOT / figure.results), path)
    assert compare_images(str(ROOT / figure.file), str(path), tol=1) is None, "run `make results`"


def test_a_benchmark_writes_its_configuration_seeds_versions_and_numbers(tmp_path: Path, capsys: Any) -> None:
    parser = record.command_line("speed", "Measures speed.")
    parser.add_argument("--tokens", type=int, default=64)
    file = tmp_path / "speed" / "small.json"
    numbers = {"rate": 2.5, "log": f"{Path.home()}/models, {ROOT}/runs/x and /etc/shadow"}
    reports: list[Any] = []
    record.finish(parser.parse_args(["--results", str(file)]), numbers, reports.append, seeds=[0, 1])
    content = record.read(file)
    run = content["run"]
    assert (run["benchmark"], run["preset"], run["config"], run["seeds"]) == ("speed", "small", {"tokens": 64}, [0, 1])
    assert {"python", "git", "torch"} <= {*run["versions"]}
    assert (content["rate"], content["log"]) == (2.5, "~/models, PROJECT/runs/x and /etc/shadow")
    assert reports == [numbers]
    record.finish(parser.parse_args(["--results", str(file), "--json"]), numbers, reports.append, seeds=[0, 1])
    assert json.loads(capsys.readouterr().out) == content and len(reports) == 1


def test_a_results_file_that_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    record.write(tmp_path / "a.json", {"benchmark": "a"}, {"rate": 2.5})
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("2.5", "2.6"))
    with pytest.raises(ValueError, match="was changed"):
        record.read(tmp_path / "a.json")
