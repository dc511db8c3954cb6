"""The system calls that sandboxed code is refused, as the filter program ``bwrap --seccomp`` loads."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import socket

REFUSED = {
    "processes": "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp personality",
    "mounts": "mount umount2 pivot_root chroot mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick",
    "namespaces": "unshare setns",
    "kernel surface": "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register vmsplice",
    "asynchronous reads and writes, whose number all processes of a host share": "io_setup io_submit io_pgetevents",
    "kernel memory by the number of rules and access lists": "landlock_create_ruleset setxattr lsetxattr fsetxattr",
    "timers of any number, and of any signal": "timer_create",
    "keys": "add_key request_key keyctl",
    "the machine": "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct "
    "quotactl quotactl_fd syslog settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname "
    "iopl ioperm modify_ldt",
    "files without a path": "name_to_handle_at open_by_handle_at",
    "watches, which all sandboxes share": "fanotify_init fanotify_mark inotify_init inotify_init1",
    "memory that no process maps, which the watch would miss": "memfd_create memfd_secret shmget shmat msgget semget "
    "mq_open",
}
SETXATTRAT = 463  # of every architecture; libseccomp before 2.6 does not know the name
MAP_SHARED, MAP_ANONYMOUS = 0x01, 0x20
SHARED = MAP_SHARED | MAP_ANONYMOUS
INT = 2**32 - 1  # the kernel reads no more bits of an argument that is an int
SOCKET_TYPE = 0xF  # the other bits are flags
SO_SNDBUFFORCE, SO_RCVBUFFORCE, F_SETSIG = 32, 33, 10
BUFFERS = [socket.SO_SNDBUF, socket.SO_RCVBUF, SO_SNDBUFFORCE, SO_RCVBUFFORCE]
Masked = tuple[int, int, int]  # an argument's index, a mask, the value under it
DATAGRAMS: list[int] = [socket.SOCK_DGRAM, socket.SOCK_RAW]  # the same to AF_UNIX
REFUSED_WITH: list[tuple[str, list[Masked]]] = [
    ("mmap", [(3, SHARED, SHARED)]),
    # Kernel memory. Many senders of datagrams may fill one receiver, and be closed.
    *((call, [(1, SOCKET_TYPE, kind)]) for call in ["socket", "socketpair"] for kind in DATAGRAMS),
    *(("setsockopt", [(1, INT, socket.SOL_SOCKET), (2, INT, option)]) for option in BUFFERS),
    ("fcntl", [(1, INT, fcntl.F_SETPIPE_SZ)]),
    # It would have the kernel send SIGCONT to what is stopped.
    ("fcntl", [(1, INT, F_SETSIG)]),
]
# sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
NAMESPACES = [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
REFUSED_WITH += [("clone", [(0, flag, flag)]) for flag in NAMESPACES]


@functools.cache
def program() -> bytes:
    """The compiled filter. Raises RuntimeError where libseccomp is missing or does not know a call."""
    import pyseccomp as seccomp

    refuse = seccomp.ERRNO(errno.EPERM)
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in " ".join(REFUSED.values()).split():
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number == -1:  # other negative numbers: calls that this architecture lacks
            raise RuntimeError(f"libseccomp does not know the system call {name}; it is too old")
        rules.add_rule(refuse, number)
    rules.add_rule(refuse, SETXATTRAT)
    for call, arguments in REFUSED_WITH:
        rules.add_rule(refuse, call, *(seccomp.Arg(n, seccomp.MASKED_EQ, mask, value) for n, mask, value in arguments))
    for call in ["socket", "socketpair"]:
        rules.add_rule(refuse, call, seccomp.Arg(0, seccomp.NE, socket.AF_UNIX))
    # Its flags lie in memory, where no filter can look; the C library falls back to clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")

    with open(os.memfd_create("seccomp"), "w+b") as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()
