"""Checks of users' texts and schemas that take long in Python: they run in worker processes, which import this package
and not the server."""
