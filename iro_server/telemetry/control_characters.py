"""Control characters in texts that are shown: a terminal obeys some, and others end a log's line."""

from __future__ import annotations

LAYOUT = "\n\t"
_CONTROLS = [*map(chr, (*range(0x20), *range(0x7F, 0xA0))), "\u2028", "\u2029"]
_ESCAPES = str.maketrans({char: repr(char)[1:-1] for char in _CONTROLS})
_ESCAPES_BUT_LAYOUT = {code: escape for code, escape in _ESCAPES.items() if chr(code) not in LAYOUT}


def escaped(text: str, layout: bool = False) -> str:
    r"""``text`` with control characters spelled, such as ``\x1b``. ``layout``: line feeds and tabs stay."""
    return text.translate(_ESCAPES_BUT_LAYOUT if layout else _ESCAPES)
