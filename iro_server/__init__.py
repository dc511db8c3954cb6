"""What a user talks to. The first import of it makes OpenMP's idle threads wait without spinning."""

from iro_server.openmp import wait_without_spinning

wait_without_spinning()
