"""What a key may do, and what each request takes."""

from __future__ import annotations

from enum import StrEnum

JOB_RUNS = "/v1/iro/job_runs"  # of whoever runs the machine
JOB_KINDS = "/v1/iro/job_kinds"
SHARED = ("/v1/fine_tuning/checkpoints/", "/v1/webhook_endpoints")  # whom a project tells
METRICS = "/metrics"  # of the whole server

GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/batches")


class Scope(StrEnum):
    read = "read"  # look
    generate = "generate"  # have models answer
    train = "train"  # store files, start jobs, try graders, delete
    admin = "admin"  # share models, webhooks, the metrics of the whole server, runs of batch jobs
    metrics = "metrics"  # the metrics of the whole server, for a monitor


def sufficient(method: str, path: str) -> tuple[Scope, ...]:
    """The scopes of which a key needs one for the request. Who may do a thing may also look at what it needs for it:
    who generates at the models, who runs batch jobs at those."""
    if path.startswith(METRICS):
        return (Scope.admin, Scope.metrics)
    if path.startswith(SHARED):
        return (Scope.admin,)
    if method in ("GET", "HEAD", "OPTIONS"):
        if path.startswith("/v1/models"):
            return (Scope.read, Scope.generate)
        return (Scope.read, Scope.admin) if path.startswith((JOB_RUNS, JOB_KINDS)) else (Scope.read,)
    if path.startswith(JOB_RUNS):
        return (Scope.admin,)
    is_cancelling = path.startswith("/v1/batches/")
    return (Scope.generate,) if method == "POST" and (path in GENERATING or is_cancelling) else (Scope.train,)
