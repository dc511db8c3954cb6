"""What a user talks to. The first import of it bounds how long OpenMP's idle threads spin."""

from iro_server.concurrency.openmp import limit_spinning

limit_spinning()
