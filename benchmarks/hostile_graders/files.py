"""Graders that read and write outside their folder."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import Hostile

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
