"""What a key may do, and what each request takes."""

from __future__ import annotations

from typing import Literal

Scope = Literal["read", "generate", "train", "admin"]
SHARED = ("/v1/fine_tuning/checkpoints/", "/v1/webhook_endpoints", "/metrics")  # whom a project tells, the whole server


def needed(method: str, path: str) -> Scope:
    """ "read": to look; "generate": to have models answer; "train": to store, to start and to delete; "admin": sharing
    models, webhooks, and the metrics of the whole server."""
    if path.startswith(SHARED):
        return "admin"
    if method in ("GET", "HEAD", "OPTIONS"):
        return "read"
    return "generate" if path in ("/v1/chat/completions", "/v1/completions") else "train"
