"""Runs of batch jobs: processes that the server starts and watches for its operator."""
