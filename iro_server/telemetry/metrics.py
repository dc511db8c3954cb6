"""What this process has counted and timed, for Prometheus. What it is doing at the moment is read as it is asked:
`api/metrics.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def _counter(name: str, documentation: str, *labels: str) -> Counter:
    return Counter(name, documentation, labels, registry=REGISTRY)


def _histogram(name: str, documentation: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
    return Histogram(name, documentation, labels, registry=REGISTRY, buckets=buckets)


REQUEST_SECONDS = _histogram(
    "iro_request_seconds", "From a request's arrival to the end of its answer", "method", "route", "status"
)
REFUSED = _counter("iro_refused", "Requests answered with 429 or 503, by the error's code", "status", "code")
QUEUE_SECONDS = _histogram(
    "iro_queue_seconds", "How long a generation request waited for its turn, or to be turned away"
)
FIRST_CHUNK_SECONDS = _histogram(
    "iro_first_chunk_seconds", "From a generation request's arrival to the end of its first search round"
)
PROMPT_TOKENS = _counter("iro_prompt_tokens", "Tokens of the prompts that were searched from")
SENT_TOKENS = _counter("iro_engine_prompt_tokens", "Tokens of the prompts and beams that engine servers were sent")
CACHED_TOKENS = _counter("iro_engine_cached_tokens", "Of them, those that the servers found in their prefix caches")
BASE_TOKENS = _counter("iro_base_tokens", "Tokens sampled from the frozen model")
VALUE_TOKENS = _counter("iro_value_tokens", "Tokens scored by value functions")
ROUNDS = _counter("iro_search_rounds", "Rounds of search")
STEP_ROWS = _histogram("iro_step_rows", "Rows in each step of the engine", buckets=ROWS)
GRADING_SECONDS = _histogram("iro_grading_seconds", "One call of a grader", "type")
DELIVERIES = _counter("iro_webhook_deliveries", "Attempts to deliver a webhook", "outcome")


@contextmanager
def timed(seconds: Histogram) -> Iterator[None]:
    """Observe how long the block took, whatever it raises."""
    started = perf_counter()
    try:
        yield
    finally:
        seconds.observe(perf_counter() - started)
