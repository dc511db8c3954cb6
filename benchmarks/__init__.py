"""Benchmarks wait for work as the server does: what importing ``iro_server`` sets has to be set before torch is."""

import iro_server as iro_server
