"""The base of every request's model: an unknown field is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from iro_server import JsonObject


class ClosedModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def set_fields(self) -> JsonObject:
        """Fields that are neither null nor absent, as JSON."""
        return self.model_dump(mode="json", exclude_none=True)
