"""Content as a string or as text parts: chats, responses, training rows and graders read it alike."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from iro_server.api.jsonl import RowMessage
from iro_server.api.messages import Message
from iro_server.api.response_items import MessageItem, ResultItem
from iro_server.graders.messages import Message as GraderMessage

READERS = [RowMessage, Message, MessageItem, GraderMessage, ResultItem]


def read(reader: type[BaseModel], content: object) -> str:
    if reader is ResultItem:
        return reader.model_validate({"type": "function_call_output", "call_id": "c", "output": content}).output
    return "".join(reader.model_validate({"role": "user", "content": content}).content)


@pytest.mark.parametrize("reader", READERS)
def test_parts_of_each_type_are_joined(reader: type[BaseModel]) -> None:
    parts = [{"type": type, "text": type} for type in ("text", "input_text", "output_text")]
    assert read(reader, parts) == "textinput_textoutput_text"
    assert read(reader, "text") == "text"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, "a part of the type 'image_url' is not supported"),
        ({"type": "text"}, "a string or parts"),
        ({"type": "text", "text": 1}, "a string or parts"),
        ({"type": [], "text": "a"}, "a string or parts"),
        (None, "a string or parts"),
        (1, "a string or parts"),
    ],
)
def test_another_part_is_refused_with_what_is_expected(reader: type[BaseModel], part: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        read(reader, [part])
