"""Graders that leave something at work after their call."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import Hostile

LEFT_BEHIND = [
    Hostile("a child", "if os.fork() == 0: time.sleep(10**6)", None),
    Hostile(
        "a daemon",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 256)
                while True: pass
            os._exit(0)
        os.wait()
        """,
        None,
    ),
    Hostile(
        "a busy thread", "threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()", None
    ),
    Hostile("a program", "import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)", None),
    Hostile(
        "a daemon that takes memory",
        """
        if os.fork() == 0:
            time.sleep(0.2)
            hoard = [b"x" * 2**20 for _ in range(10**6)]
        """,
        None,
    ),
    Hostile(
        "a timer that wakes it later",
        """
        def work(*_):
            while True: hoard.append(bytearray(2**20))
        hoard, start_timer = [], signal.setitimer
        signal.signal(signal.SIGALRM, work)
        start_timer(signal.ITIMER_REAL, 0.2)
        signal.setitimer = lambda *arguments: None  # with which the worker would end the timer
        """,
        None,
        recovers=False,
    ),
    Hostile(
        "a chain of processes whose parents exit at once",
        """
        if os.fork() == 0:
            while True:
                if os.fork(): os._exit(0)
        os.wait()
        """,
        None,
    ),
    Hostile(
        "a chain of programs",
        """
        import subprocess
        link = 'sh -c "$0" "$0" & exit'
        subprocess.Popen(["sh", "-c", link, link], start_new_session=True)
        """,
        None,
    ),
    Hostile(
        "a timer that starts children later",
        """
        def work(*_):
            for _ in range(8):
                if os.fork() == 0:
                    while True: pass
        start_timer = signal.setitimer
        signal.signal(signal.SIGALRM, work)
        start_timer(signal.ITIMER_REAL, 0.2)
        signal.setitimer = lambda *arguments: None
        """,
        None,
        recovers=False,
    ),
    Hostile(
        "a chain of spawned programs whose parents exit at once",
        """
        link = "import os, sys; os.posix_spawn(sys.executable, [sys.executable, '-c', *sys.argv[1:] * 2], os.environ)"
        os.posix_spawn(sys.executable, [sys.executable, "-c", link, link], os.environ, setsid=True)
        """,
        None,
    ),
]
