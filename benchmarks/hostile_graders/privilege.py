"""Graders that ask for rights."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import Hostile

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
