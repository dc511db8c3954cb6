"""Every property test: no deadline, as machines differ, and the same examples every time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("iro", deadline=None, derandomize=True)
settings.load_profile("iro")
