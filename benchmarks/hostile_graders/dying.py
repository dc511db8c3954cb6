"""Graders whose process ends, and that try to end others."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import Hostile

DYING = [
    Hostile("exit", "sys.exit(3)", "SystemExit: 3"),
    Hostile("exit at once", "os._exit(0)", "the grader's process died (exit code 0)"),
    Hostile("segmentation fault", "ctypes.string_at(0)", "signal SIGSEGV"),
    Hostile("abort", "os.abort()", "signal SIGABRT"),
    Hostile("killing everything it can", "os.kill(-1, signal.SIGKILL)", "ProcessLookupError"),
    Hostile("killing its process group", "os.killpg(0, signal.SIGKILL)", "signal SIGKILL"),
    Hostile("killing the parent", "os.kill(os.getppid(), 9); raise OSError('alive')", "", recovers=True),
    Hostile("killing the first process", "os.kill(1, 9); raise OSError('alive')", ""),
    Hostile("killing a process of the host", "os.kill(@PID@, 9)", "ProcessLookupError"),
    Hostile(
        "killing its own threads",
        """
        for thread in threading.enumerate(): signal.pthread_kill(thread.ident, signal.SIGKILL)
        """,
        "signal SIGKILL",
    ),
    Hostile(
        "importing what does not exist",
        "",
        "the source does not load: ModuleNotFoundError: No module named 'nowhere'",
        recovers=False,
        setup="import nowhere",
    ),
    Hostile("keyboard interrupt", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    Hostile("exit when loading", "", "exit code 3", recovers=False, setup="os._exit(3)"),
    Hostile(
        "exit hooks and finalizers",
        """
        import atexit
        class Forever:
            def __del__(self):
                while True: pass
        atexit.register(time.sleep, 10**6)
        gc.callback = Forever()
        sys.exit()
        """,
        "SystemExit",
    ),
]
