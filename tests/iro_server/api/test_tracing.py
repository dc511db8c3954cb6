"""The spans of real requests."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra `tracing`")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.iro_server.api.serving import aligned, wait_for
from tests.iro_server.api.tracer import provider

HI = [{"role": "user", "content": "hi"}]
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def exporter():
    """Takes every span of this process."""
    exporter = InMemorySpanExporter()
    provider().add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


def spans_of(exporter, route: str) -> list:
    """Those of the one request to ``route``, once its own has ended."""
    named = f"POST {route}"
    wait_for(lambda: any(span.name == named for span in exporter.get_finished_spans()))
    (request,) = [span for span in exporter.get_finished_spans() if span.name == named]
    return [span for span in exporter.get_finished_spans() if span.context.trace_id == request.context.trace_id]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_trace_from_queue_to_grading(served, exporter, stream):
    client, model = served.client, aligned(served.settings, f"traced-{stream}")
    exporter.clear()
    given = {"search": {"pick": "grader"}, "item": {}}
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    answer = client.chat.completions.with_raw_response.create(
        model=model, messages=HI, max_tokens=8, stream=stream, extra_body=given, extra_headers=headers
    )
    parsed = answer.parse()
    if stream:
        list(parsed)
    spans = spans_of(exporter, "/v1/chat/completions")
    parents = {span.context.span_id: span for span in spans}
    names = [span.name for span in spans]
    assert names.count("round") == names.count("extend") == names.count("score") == 2  # 8 tokens by chunks of 4
    assert {"queue", "prefill", "detokenise", "grade"} <= set(names)
    for span in spans:
        if span.name in ("extend", "score"):
            assert parents[span.parent.span_id].name == "round"
    (request,) = [span for span in spans if span.name == "POST /v1/chat/completions"]
    assert request.attributes["iro.request_id"] == answer.headers["x-request-id"]
    assert f"{request.context.trace_id:032x}" == TRACE  # the caller's own trace goes on here
    (grade,) = [span for span in spans if span.name == "grade"]
    assert grade.attributes["iro.grader.type"] == "string_check"
    assert all(request.start_time <= span.start_time and span.end_time <= request.end_time for span in spans)


def test_the_trace_of_a_stream_does_not_grow_with_its_text(served, exporter):
    exporter.clear()
    list(served.client.completions.create(model="bytes", prompt="hi", max_tokens=50, stream=True))
    names = [span.name for span in spans_of(exporter, "/v1/completions")]
    assert names.count("prefill") == 1 and not {"round", "extend"} & set(names)
