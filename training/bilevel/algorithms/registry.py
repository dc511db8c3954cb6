"""Every algorithm by name: the ``METHODS`` of each module of this package.

A new algorithm is one module with ``METHODS``; it is found here, and studies take it by its name.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from training.bilevel import algorithms
from training.bilevel.algorithms.method import BilevelMethod


def collect_methods() -> dict[str, BilevelMethod]:
    """Raises ValueError if two modules use the same name."""
    methods: dict[str, BilevelMethod] = {}
    for module in iter_modules(algorithms.__path__):
        if module.name == "registry":
            continue
        entries = getattr(import_module(f"{algorithms.__name__}.{module.name}"), "METHODS", {})
        duplicates = methods.keys() & entries.keys()
        if duplicates:
            raise ValueError(f"{module.name}: another module has a method {', '.join(sorted(duplicates))}; rename it")
        methods |= entries
    return methods


METHODS = collect_methods()
