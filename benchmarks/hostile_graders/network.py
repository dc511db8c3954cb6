"""Graders that open connections."""

from __future__ import annotations

from benchmarks.hostile_graders.hostile import Hostile

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
