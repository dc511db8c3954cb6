"""JSON as Python values."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""A parsed JSON object whose fields its reader knows: a configuration, a row of metrics, a result."""
