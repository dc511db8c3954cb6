"""The import graph stays small enough to read: few rooms on the ground floor of the packages that have grown."""

from __future__ import annotations

import grimp
import pytest


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("iro_server", "training", cache_dir=None)


def modules_in(graph: grimp.ImportGraph, package: str) -> set[str]:
    """The modules and packages directly in ``package``, which `python -m` starts (``__main__``) left out."""
    return {name for name in graph.find_children(package) if not name.endswith("__main__")}


def arrows_between(graph: grimp.ImportGraph, names: set[str]) -> set[tuple[str, str]]:
    """Pairs of ``names`` of which the first, or a module in it, imports the second, or a module in it."""
    place = {module: name for name in names for module in {name, *graph.find_descendants(name)}}
    imports = [(module, imported) for module in place for imported in graph.find_modules_directly_imported_by(module)]
    arrows = {(place[module], place[imported]) for module, imported in imports if imported in place}
    return {(importer, imported) for importer, imported in arrows if importer != imported}


def test_iro_server_has_at_most_twelve_rooms_on_its_ground_floor(graph: grimp.ImportGraph) -> None:
    rooms = modules_in(graph, "iro_server")
    assert "iro_server.api" in rooms and len(rooms) <= 12


def test_bilevel_has_at_most_eight_rooms_and_fifteen_arrows(graph: grimp.ImportGraph) -> None:
    rooms = modules_in(graph, "training.bilevel")
    arrows = arrows_between(graph, rooms)
    assert ("training.bilevel.studies", "training.bilevel.algorithms") in arrows
    assert len(rooms) <= 8 and len(arrows) <= 15
