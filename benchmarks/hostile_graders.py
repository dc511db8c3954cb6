"""Python graders that attack, and what each must come to.

``@SECRET@`` is a file of the host's, ``@PID@`` a process of it, ``@MARK@`` a name under which they try to leave
something there.
"""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass

RUNTIME = "python_grader_runtime_error"
UNRESPONSIVE = "unresponsive_reward_error"


@dataclass(frozen=True)
class Hostile:
    """``body`` is run in a call. ``error``: part of the error, or None where it gets the reward 1 and does no harm.

    ``recovers``: whether a harmless call after it is graded normally. False for those that spoil only their process.
    """

    name: str
    body: str
    error: str | None
    flag: str = RUNTIME
    recovers: bool = True
    setup: str = ""

    @property
    def timeout(self) -> float:
        return 1 if self.error == TIMES else 5

    def source(self, secret: str, mark: str) -> str:
        body = textwrap.indent(textwrap.dedent(self.body).strip(), "    ")
        code = f"""{PRELUDE}
{textwrap.dedent(self.setup)}
def grade(sample, item):
    if item["calm"]:
        return 7.0
{body}
    return 1.0
"""
        return code.replace("@SECRET@", secret).replace("@MARK@", mark).replace("@PID@", str(os.getpid()))


PRELUDE = """
import ctypes, gc, inspect, json, mmap, os, resource, signal, socket, stat, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def syscall(*arguments):
    if libc.syscall(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def channel():
    for descriptor in range(3, 4096):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
"""

TIMES = "timed out after 1 s"
MEMORY = "used more than 256 MiB of memory"

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

NETWORK = [
    Hostile("TCP", "socket.create_connection(('1.1.1.1', 80), 1)", "PermissionError"),
    Hostile("TCP to the server", "socket.create_connection(('127.0.0.1', 8000), 1)", "PermissionError"),
    Hostile("UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
    Hostile("raw packets", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "PermissionError"),
    Hostile("netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "PermissionError"),
    Hostile("the host's virtual sockets", "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)", "PermissionError"),
    Hostile("names", "socket.getaddrinfo('example.com', 80)", "socket.gaierror"),
    Hostile(
        "an abstract socket of the host", "socket.socket(socket.AF_UNIX).connect('\\0@MARK@')", "ConnectionRefusedError"
    ),
    Hostile("container engine", "socket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')", "FileNotFoundError"),
    Hostile("web page", "import urllib.request; urllib.request.urlopen('http://example.com', timeout=1)", "URLError"),
]

FILES = [
    Hostile("the server's key file", "open('@SECRET@').read()", "FileNotFoundError"),
    Hostile("passwords", "open('/etc/shadow').read()", "FileNotFoundError"),
    Hostile("users", "open('/etc/passwd').read()", "FileNotFoundError"),
    Hostile("secure shell keys", "os.listdir('/root/.ssh')", "Error"),
    Hostile("homes", "os.listdir('/home')", "FileNotFoundError"),
    Hostile(
        "environment of the first process", "assert b'IRO_SECRET' in open('/proc/1/environ', 'rb').read()", "Error"
    ),
    Hostile(
        "processes of the host",
        "assert len([p for p in os.listdir('/proc') if p.isdigit()]) > 2",
        "AssertionError",
    ),
    Hostile("memory of the kernel", "open('/proc/kcore', 'rb').read(1)", "Error"),
    Hostile("kernel settings", "open('/proc/sys/kernel/core_pattern', 'w').write('|/x')", "Error"),
    Hostile("system request", "open('/proc/sysrq-trigger', 'w').write('b')", "Error"),
    Hostile("devices", "os.listdir('/sys')", "FileNotFoundError"),
    Hostile("making a device", "os.mknod('disk', 0o60600, os.makedev(254, 0))", "PermissionError"),
    Hostile("symbolic link to the host", "os.symlink('@SECRET@', 'link'); open('link').read()", "FileNotFoundError"),
    Hostile("hard link to a library", "os.link(os.__file__, 'link')", "Invalid cross-device link"),
    Hostile("out by the parent folder", "open('../' * 20 + '@SECRET@').read()", "FileNotFoundError"),
    Hostile("out by another root", "open('/proc/1/root' + '@SECRET@').read()", "Error"),
    Hostile("writing at the root", "open('/@MARK@', 'w')", "Error"),
    Hostile("writing to programs", "open('/usr/bin/@MARK@', 'w')", "Error"),
    Hostile(
        "writing beside the host's files", "open(os.path.dirname('@SECRET@') + '/@MARK@', 'w')", "FileNotFoundError"
    ),
    Hostile("writing to libraries", "open(os.path.dirname(json.__file__) + '/@MARK@', 'w')", "Error"),
    Hostile("changing the worker", "open('/worker.py', 'a').write('x')", "Error"),
    Hostile("changing modes", "os.chmod('/usr/bin/env', 0o777)", "Error"),
    Hostile("a file for root", "open('x', 'w'); os.chown('x', 0, 0)", "Error"),
    Hostile("leaving files in its folder", "open('@MARK@', 'w').write('x'); open('/dev/shm/@MARK@', 'w')", None),
    Hostile("environment", "assert 'IRO_SECRET' in os.environ", "AssertionError"),
    Hostile("importing the server", "import iro_server.settings", "ModuleNotFoundError"),
    Hostile("importing the value functions", "import value_heads.stack", "ModuleNotFoundError"),
]

PRIVILEGE = [
    Hostile("becoming root", "os.setuid(0); assert os.geteuid() == 0 == os.system('id')", "Error"),
    Hostile("becoming another user", "os.setresuid(1, 1, 1)", "Error"),
    Hostile("other groups", "os.setgroups([0])", "PermissionError"),
    Hostile(
        "capabilities",
        """
        kinds = "CapPrm:", "CapEff:", "CapAmb:"
        held = [line.split()[1] for line in open("/proc/self/status") if line.startswith(kinds)]
        assert len(held) != 3 or any(int(bits, 16) for bits in held)
        """,
        "AssertionError",
    ),
    Hostile(
        "a program that gives root",
        """
        import subprocess
        who = subprocess.run(["su", "-c", "id -u"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert who.stdout.strip() == "0"
        """,
        "AssertionError",
    ),
    Hostile(
        "a user namespace",
        "if libc.unshare(0x10000000): raise OSError(ctypes.get_errno(), 'refused')",
        "PermissionError",
    ),
    Hostile("a namespace for a child", "syscall(56, 0x10000000 | 17, 0, 0, 0, 0)", "PermissionError"),
    Hostile(
        "joining a namespace",
        "if libc.setns(os.open('/proc/self/ns/net', 0), 0): raise OSError(1, 'no')",
        "PermissionError",
    ),
    Hostile(
        "mounting",
        "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None): raise OSError(ctypes.get_errno(), 'refused')",
        "PermissionError",
    ),
    Hostile("another root", "os.chroot('/tmp')", "PermissionError"),
    Hostile(
        "tracing the first process",
        "if libc.ptrace(16, 1, 0, 0) == -1: raise OSError(ctypes.get_errno(), 'no')",
        "PermissionError",
    ),
    Hostile("kernel keys", "syscall(250, 0, -3, 0)", "PermissionError"),
    Hostile("kernel programs", "syscall(321, 0, 0, 0)", "PermissionError"),
    Hostile("io_uring", "syscall(425, 8, ctypes.create_string_buffer(256))", "PermissionError"),
    Hostile("performance counters", "syscall(298, ctypes.create_string_buffer(256), 0, -1, -1, 0)", "PermissionError"),
    Hostile("page faults", "syscall(323, 0)", "PermissionError"),
    Hostile("the clock", "time.clock_settime(time.CLOCK_REALTIME, 0)", "PermissionError"),
    Hostile("the host's name", "socket.sethostname('x')", "PermissionError"),
]

ANSWERS = [
    Hostile(
        "printing much", "print('x' * 10**7); print('x' * 10**7, file=sys.stderr); os.write(2, b'x' * 10**6)", None
    ),
    Hostile("a huge return value", "return 'x' * 10**7", "grade returned str, not a number"),
    Hostile("a huge number", "return 10 ** 5000", "OverflowError"),
    Hostile("a huge error", "raise ValueError('x' * 10**7)", "ValueError: xxx"),
    Hostile("an error that is no text", "raise ValueError('\\ud800\\0')", "ValueError: ?"),
    Hostile(
        "an error without text",
        """
        class Bad(Exception):
            def __str__(self): raise SystemExit
            __repr__ = __str__
        raise Bad()
        """,
        "Bad: <exception str() failed>",
    ),
    Hostile(
        "a type without name",
        """
        class Meta(type):
            @property
            def __name__(self): raise KeyError("name")
        class Bad(metaclass=Meta): pass
        return Bad()
        """,
        "KeyError",
    ),
    Hostile(
        "an object that pickles to a command",
        """
        class Bad:
            def __reduce__(self): return os.system, ("touch /tmp/@MARK@",)
        return Bad()
        """,
        "grade returned Bad, not a number",
    ),
    Hostile("nothing", "return None", "grade returned NoneType, not a number"),
    Hostile("complex", "return 1j", "grade returned complex, not a number"),
    Hostile("a list, deep", "x = []\nfor _ in range(10**5): x = [x]\nreturn x", "grade returned list, not a number"),
    Hostile("no number", "return float('nan')", "nan, not a finite number", UNRESPONSIVE),
    Hostile("infinity", "return 1e308 * 10", "inf, not a finite number", UNRESPONSIVE),
    Hostile("less than any number", "return float('-inf')", "-inf, not a finite number", UNRESPONSIVE),
    Hostile("more than any number", "return 1e400", "inf, not a finite number", UNRESPONSIVE),
    Hostile("a number of 100,000 digits", "return 10 ** 10**5", "OverflowError"),
    Hostile("a list", "return [1.0]", "grade returned list, not a number"),
    Hostile("an array", "import numpy; return numpy.ones(3)", "TypeError"),
    Hostile("true", "return True", None),
    Hostile("closing the channel", "os.closerange(3, 256); time.sleep(10**6)", "the code closed the grader's channel"),
    Hostile("closing the channel and going on", "os.closerange(3, 256)", "the grader's process died (exit code 1)"),
    Hostile(
        "a forged answer to no call", 'channel().sendall(b\'{"call": "0", "reward": 1}\\n\')', "an answer to no call"
    ),
    Hostile(
        "an answer that is no JSON",
        "channel().sendall(b'\\x80\\x04N.\\n')",
        "wrote to the grader's channel, and no answer",
    ),
    Hostile("an answer of nested lists", "channel().sendall(b'[' * 60_000 + b'\\n')", "wrote to the grader's channel"),
    Hostile(
        "an answer of other fields", 'channel().sendall(b\'{"call": "0", "x": 1}\\n\')', "wrote to the grader's channel"
    ),
    Hostile(
        "an answer without end", "while True: channel().sendall(b'x' * 4096)", "answered with more than 65536 bytes"
    ),
    Hostile("half an answer", "channel().sendall(b'{'); time.sleep(10**6)", TIMES),
    Hostile("passing descriptors", "socket.send_fds(channel(), [b'x'], [0, 1, 2]); time.sleep(10**6)", TIMES),
    Hostile(
        "a forged answer to its own call",
        """
        number = inspect.currentframe().f_back.f_locals["number"].decode()
        channel().sendall(json.dumps({"call": number, "reward": 10**4000}).encode() + b"\\n")
        time.sleep(10**6)
        """,
        "not a finite number",
        UNRESPONSIVE,
        recovers=False,
    ),
    *(
        Hostile(
            f"{name}, forged",
            f"""
            number = inspect.currentframe().f_back.f_locals["number"].decode()
            channel().sendall(b'{{"call": "' + number.encode() + b'", "reward": ' + {reward} + b'}}\\n')
            time.sleep(10**6)
            """,
            error,
            flag,
            recovers=False,
        )
        for name, reward, error, flag in [
            ("more than any number", "b'1e400'", "inf, not a finite number", UNRESPONSIVE),
            ("no number", "b'NaN'", "nan, not a finite number", UNRESPONSIVE),
            ("a number of 60,000 digits", "b'9' * 60_000", "wrote to the grader's channel, and no answer", RUNTIME),
            ("a list", "b'[1.0]'", "wrote to the grader's channel, and no answer", RUNTIME),
            (
                "lists, 10,000 deep",
                "b'[' * 10**4 + b']' * 10**4",
                "wrote to the grader's channel, and no answer",
                RUNTIME,
            ),
        ]
    ),
    Hostile(
        "two answers",
        """
        number = inspect.currentframe().f_back.f_locals["number"].decode()
        channel().sendall(json.dumps({"call": number, "reward": 1}).encode() + b"\\n")
        """,
        None,
        recovers=False,
    ),
    Hostile("changed internals", "json.dumps = lambda *a: 'x' * 10", "wrote to the grader's channel", recovers=False),
    Hostile(
        "internals that loop",
        """
        def forever(*a):
            while True: pass
        sys.modules["__main__"].describe = forever
        raise ValueError
        """,
        TIMES,
    ),
    Hostile("changed sample and item", "sample.clear(); item['calm'] = False; item['x'] = sample", None),
    Hostile("reading the next call", "channel().recv(1)", TIMES),
]

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
]

KINDS = {
    "time": TIME,
    "resources": RESOURCES,
    "dying": DYING,
    "network": NETWORK,
    "files": FILES,
    "privilege": PRIVILEGE,
    "answers": ANSWERS,
    "left behind": LEFT_BEHIND,
}
HOSTILE = [hostile for kind in KINDS.values() for hostile in kind]
