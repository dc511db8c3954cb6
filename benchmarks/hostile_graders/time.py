"""Graders that take more time than they may."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import TIMES, Hostile

TIME = [
    Hostile("endless loop", "while True: pass", TIMES),
    Hostile("sleep for ever", "time.sleep(10**6)", TIMES),
    Hostile(
        "loop that ignores every signal",
        """
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass
        """,
        TIMES,
    ),
    Hostile(
        "loop that catches everything",
        """
        while True:
            try: time.sleep(0.01)
            except BaseException: pass
        """,
        TIMES,
    ),
    Hostile("stopping itself", "os.kill(os.getpid(), signal.SIGSTOP)", TIMES),
    Hostile("regular expression without end", "import re; re.match('(a+)+$', 'a' * 64 + 'b')", TIMES),
    Hostile("power tower", "x = 9 ** 9 ** 9", TIMES),
    Hostile(
        "a number whose value loops",
        """
        class Number:
            def __float__(self):
                while True: pass
        return Number()
        """,
        TIMES,
    ),
    Hostile(
        "an exception whose text loops",
        """
        class Bad(Exception):
            def __str__(self):
                while True: pass
        raise Bad()
        """,
        TIMES,
    ),
    Hostile(
        "endless loading", "", "the source does not load: timed out after 5 s", recovers=False, setup="while True: pass"
    ),
    Hostile("tracing hook", "sys.settrace(lambda *a: time.sleep(10**6)); (lambda: 0)()", TIMES),
    Hostile(
        "loading for an hour",
        "",
        "the source does not load: timed out after 5 s",
        recovers=False,
        setup="time.sleep(3600)",
    ),
]
