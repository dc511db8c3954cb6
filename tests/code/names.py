"""Counts of vague names and of ``Any`` in source files, by their syntax trees."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

VAGUE_NAMES = frozenset(
    (
        "found",
        "one",
        "each",
        "own",
        "told",
        "said",
        "kept",
        "both",
        "whole",
        "least",
        "given",
        "other",
        "look",
        "at",
        "how",
        "whose",
        "what",
        "thing",
        "again",
        "known",
        "seen",
        "left",
        "drawn",
        "asked",
        "made",
    )
)


@dataclass
class NameCounts:
    """``assigned``: names that are assigned. ``vague``: those of them that are vague, by name. ``lines``: of source.

    ``any``: annotations and expressions that name ``typing.Any``; its import does not count.
    """

    assigned: int = 0
    any: int = 0
    lines: int = 0
    vague: Counter[str] = field(default_factory=Counter)

    @property
    def vague_percent(self) -> float:
        return 100 * self.vague.total() / max(1, self.assigned)

    @property
    def any_per_1000_lines(self) -> float:
        return 1000 * self.any / max(1, self.lines)


def count_names(paths: Iterable[Path]) -> NameCounts:
    counts = NameCounts()
    for path in paths:
        source = path.read_text()
        tree = ast.parse(source)
        names = list(assigned_names(tree))
        counts.assigned += len(names)
        counts.vague.update(filter(is_vague, names))
        counts.any += sum(_is_any(node) for node in ast.walk(tree))
        counts.lines += len(source.splitlines())
    return counts


def assigned_names(tree: ast.AST) -> Iterator[str]:
    """Targets of assignments (attributes among them), ``for``, ``with`` and ``except``; parameters; fields, functions
    and classes.

    The loop variables of comprehensions are left out: they live for one line.
    """
    match tree:
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.ExceptHandler(name=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.comprehension):
            yield from assigned_names(child.iter)
            for condition in child.ifs:
                yield from assigned_names(condition)
        else:
            yield from assigned_names(child)


def is_vague(name: str) -> bool:
    """Whether a name, its case and outer underscores apart, names nothing."""
    return name.strip("_").lower() in VAGUE_NAMES


def _is_any(node: ast.AST) -> bool:
    match node:
        case ast.Name(id="Any", ctx=ast.Load()):
            return True
        case ast.Attribute(value=ast.Name(id="typing"), attr="Any"):
            return True
    return False
