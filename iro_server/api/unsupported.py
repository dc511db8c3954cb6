"""Fields of OpenAI's that this server does not have: one that asks for nothing is accepted, any other is refused."""

from __future__ import annotations

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from iro_server import JsonObject

UNSUPPORTED = "unsupported_parameter"  # pydantic's type of the error, and the code of the answer


class Unsupported:
    """Annotates such a field. Null is accepted, and so is each of ``neutral``: what happens here in any case."""

    def __init__(self, *neutral: object) -> None:
        self.neutral = neutral

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonObject:
        return {"enum": [None, *self.neutral], "description": "Not supported here otherwise."}

    def _check(self, value: object) -> object:
        if value is None or value in self.neutral:
            return value
        but = f", other than {' or '.join(map(repr, self.neutral))}" if self.neutral else ""
        raise PydanticCustomError(UNSUPPORTED, "is not supported by this server{but}", {"but": but})
