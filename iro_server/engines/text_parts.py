"""Text parts, ``{"type": "text", "text": "..."}``: content that is no string is a list of them."""

from __future__ import annotations

TEXT_PARTS = ("text", "input_text", "output_text")
EXPECTED = 'a string or parts {"type": "text", "text": "..."}, whose type may be input_text or output_text, is expected'


def part_text(part: object) -> str:
    """The text of a part. ValueError for anything else."""
    match part:
        case {"type": type, "text": str(text)} if type in TEXT_PARTS:
            return text
        case {"type": str(type)} if type not in TEXT_PARTS:
            raise ValueError(f"a part of the type {type[:50]!r} is not supported: {EXPECTED}")
    raise ValueError(EXPECTED)


def text_of(content: object) -> object:
    """The text where ``content`` is a list of text parts, else ``content``. ValueError for a part of another kind."""
    return "".join(map(part_text, content)) if isinstance(content, list) else content
