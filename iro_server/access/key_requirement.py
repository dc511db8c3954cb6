"""Whether requests need an API key, as it stands now: a key may be made while the server runs."""

from __future__ import annotations

import threading

from cachetools import TTLCache, cachedmethod

from iro_server.settings import Settings, is_loopback
from iro_server.store import keys
from iro_server.store.database import Sessions

KEY_SECONDS = 2.0  # how long what was read of the keys holds


class KeyRequirement:
    """Call it from any thread: ``require_keys`` where set, else whether the host is not loopback or a key exists."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self.settings, self.sessions = settings, sessions
        self._cache: TTLCache[tuple, bool] = TTLCache(1, KEY_SECONDS)
        self._lock = threading.Lock()

    @cachedmethod(lambda self: self._cache, lock=lambda self: self._lock)
    def __call__(self) -> bool:
        if self.settings.require_keys is not None:
            return self.settings.require_keys
        return not is_loopback(self.settings.host) or keys.exist(self.sessions)
