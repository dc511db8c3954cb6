"""Every method on every task at equal numbers of rows: ``iro run bench.tasks``."""
