"""Calls of graders, by requests and by jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from iro_server import JsonObject
from iro_server.telemetry import metrics, tracing


@contextmanager
def graded(type: str) -> Iterator[None]:
    """A call of a grader of this type, as traces and metrics see it."""
    kind = {"iro.grader.type": type}
    with tracing.span("grade", attributes=kind), metrics.timed(metrics.GRADING_SECONDS.labels(type)):
        yield


def so_far() -> dict[str, JsonObject]:
    """This process's calls by type of grader, as JSON has them: ``buckets`` ([upper bound, calls up to it]…) and
    ``sum``, in seconds."""
    by_type: dict[str, JsonObject] = {}
    (calls,) = metrics.GRADING_SECONDS.collect()
    for sample in calls.samples:
        of_type = by_type.setdefault(sample.labels["type"], {"buckets": []})
        if sample.name.endswith("_bucket"):
            of_type["buckets"].append([sample.labels["le"], sample.value])
        elif sample.name.endswith("_sum"):
            of_type["sum"] = sample.value
    return by_type
