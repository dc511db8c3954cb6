"""Threads, tasks and processes: for work that blocks or holds the interpreter's lock."""
