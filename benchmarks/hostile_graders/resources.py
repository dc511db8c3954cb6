"""Graders that take memory, processes, disk and descriptors of the host."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import MEMORY, TIMES, Hostile

RESOURCES = [
    Hostile(
        "fork bomb",
        """
        while True: os.fork()
        """,
        "Resource temporarily unavailable",
    ),
    Hostile(
        "fork bomb that goes on",
        """
        while True:
            try: os.fork()
            except OSError: pass
        """,
        TIMES,
    ),
    Hostile(
        "thread bomb",
        "while True: threading.Thread(target=time.sleep, args=(10**6,)).start()",
        "RuntimeError: can't start new thread",
    ),
    Hostile("memory bomb", "hoard = [bytearray(2**24) for _ in range(10**6)]", "MemoryError"),
    Hostile("one huge allocation", "bytearray(2**40)", "MemoryError"),
    Hostile(
        "private map", "mmap.mmap(-1, 2**33, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)", "Cannot allocate memory"
    ),
    Hostile("shared map, which outlives its pages", "mmap.mmap(-1, 2**20)", "PermissionError"),
    Hostile(
        "memory by many processes",
        """
        for _ in range(8):
            if os.fork() == 0:
                hoard = b"x" * (100 * 2**20)
                time.sleep(10**6)
        time.sleep(10**6)
        """,
        MEMORY,
    ),
    Hostile(
        "memory while loading",
        "",
        "MemoryError",
        recovers=False,
        setup="hoard = [bytearray(2**24) for _ in range(10**6)]",
    ),
    Hostile(
        "raising the limit of memory",
        "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "ValueError: not allowed to raise maximum limit",
    ),
    Hostile("memory file", "os.memfd_create('x')", "PermissionError"),
    Hostile("disk filler", "open('x', 'wb').write(b'x' * 2**24)", "File too large"),
    Hostile(
        "disk filler in parts",
        """
        for n in range(100): open(f'x{n}', 'wb').write(b'x' * 2**20)
        """,
        "No space left",
    ),
    Hostile("shared memory filler", "open('/dev/shm/x', 'wb').write(b'x' * 2**24)", "File too large"),
    Hostile("sparse file", "open('x', 'wb').truncate(2**40)", "File too large"),
    Hostile(
        "a million files",
        """
        for n in range(10**6): os.close(os.open(f"{n}", os.O_CREAT))
        """,
        "made more than 10000 files",
    ),
    Hostile("a million descriptors", "hoard = [os.open('/dev/null', 0) for _ in range(10**6)]", "Too many open files"),
    Hostile("a million pipes", "hoard = [os.pipe() for _ in range(10**6)]", "Too many open files"),
    Hostile(
        "epoll exhaustion",
        "import select; hoard = [select.epoll() for _ in range(10**6)]",
        "Too many open files",
    ),
    Hostile("inotify", "if libc.inotify_init() < 0: raise OSError(ctypes.get_errno(), 'refused')", "PermissionError"),
    Hostile("unbounded recursion", "f = lambda: f(); f()", "RecursionError"),
    Hostile(
        "recursion past the stack",
        """
        sys.setrecursionlimit(10**9)
        class Bad:
            def __repr__(self): return repr(self)
        repr(Bad())
        """,
        "signal SIGSEGV",
    ),
    Hostile("dearest priority", "os.nice(-20)", "PermissionError"),
    Hostile("real time", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))", "PermissionError"),
    Hostile("locking memory", "if libc.mlockall(3): raise OSError(ctypes.get_errno(), 'refused')", "PermissionError"),
    Hostile(
        "socket pairs with the largest buffers",
        """
        pairs = [socket.socketpair() for _ in range(110)]
        for end, _ in pairs: end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**30)
        """,
        "PermissionError",
    ),
    Hostile(
        "sockets of many processes, filled",
        """
        for _ in range(12):
            if os.fork() == 0:
                pairs = [socket.socketpair() for _ in range(110)]
                for end in sum(pairs, ()):
                    end.setblocking(False)
                    try:
                        while True: end.send(b"x" * 2**16)
                    except BlockingIOError: pass
                time.sleep(10**6)
        time.sleep(10**6)
        """,
        MEMORY,
    ),
    Hostile(
        "sockets on their way through a socket",
        """
        inside, outside = socket.socketpair()
        while True:
            pair = socket.socketpair()
            pair[0].setblocking(False)
            try:
                while True: pair[0].send(b"x" * 2**16)
            except BlockingIOError: pass
            socket.send_fds(outside, [b"x"], [end.fileno() for end in pair])
        """,
        "Too many references",
    ),
    Hostile("receiver of many senders", "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", "PermissionError"),
    Hostile(
        "pipes with the largest buffers",
        "import fcntl; [fcntl.fcntl(os.pipe()[1], fcntl.F_SETPIPE_SZ, 2**20) for _ in range(100)]",
        "PermissionError",
    ),
    Hostile(
        "the host's slots of asynchronous reads",
        "syscall(206, 8000, ctypes.byref(ctypes.c_ulong()))",
        "PermissionError",
    ),
    Hostile(
        "10,000 timers",
        """
        for _ in range(10_000): syscall(222, 1, None, ctypes.byref(ctypes.c_int()))
        """,
        "PermissionError",
    ),
    Hostile(
        "access lists of 8,000 entries",
        """
        users = b"".join(n.to_bytes(4, "little").join([b"\\2\\0\\6\\0", b""]) for n in range(8000))
        rest = [kind + b"\\0\\6\\0" + b"\\xff" * 4 for kind in (b"\\1", b"\\4", b"\\x10", b"\\x20")]
        for n in range(5000):
            os.close(os.open(f"{n}", os.O_CREAT))
            os.setxattr(f"{n}", "system.posix_acl_access", b"\\2\\0\\0\\0" + rest[0] + users + b"".join(rest[1:]))
        """,
        "PermissionError",
    ),
    Hostile(
        "rules without number",
        """
        descriptor = ctypes.c_long(libc.syscall(444, b"\\0" * 8 + b"\\3" + b"\\0" * 7, 16, 0))
        if descriptor.value < 0: raise OSError(ctypes.get_errno(), "refused")
        """,
        "PermissionError",
    ),
    Hostile(
        "10,000 inotify watches",
        """
        descriptor = libc.inotify_init1(0)
        if descriptor < 0: raise OSError(ctypes.get_errno(), "refused")
        for n in range(10_000): libc.inotify_add_watch(descriptor, os.mkdir(f"{n}") or b"%d" % n, 2)
        """,
        "PermissionError",
    ),
    Hostile(
        "memory files to the limit of descriptors",
        """
        for n in range(10_000): os.truncate(os.memfd_create(f"{n}"), 2**20)
        """,
        "PermissionError",
    ),
    Hostile(
        "a child that a host out of memory ends last",
        """
        import subprocess
        order = subprocess.run(
            ["sh", "-c", "echo 0 > /proc/self/oom_score_adj; cat /proc/self/oom_score_adj"],
            capture_output=True, text=True,
        )
        assert int(order.stdout) < 1000
        """,
        "AssertionError",
    ),
]
