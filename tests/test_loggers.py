"""A test starts while the threads of its server make loggers."""

from __future__ import annotations

import logging
import threading

from _pytest.logging import LogCaptureHandler, catching_logs


def test_a_test_starts_while_a_thread_makes_loggers() -> None:
    done = threading.Event()

    def make_loggers() -> None:
        for number in range(50_000):
            logging.getLogger(f"made_by_a_thread_{number}")
        done.set()

    thread = threading.Thread(target=make_loggers)
    thread.start()
    try:
        while not done.is_set():
            with catching_logs(LogCaptureHandler()):
                pass
    finally:
        thread.join()
        for name in [name for name in logging.Logger.manager.loggerDict if name.startswith("made_by_a_thread_")]:
            del logging.Logger.manager.loggerDict[name]
